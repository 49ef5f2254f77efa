"""Which restorer a word of the settings means, guarded where it is a network.

The word is that of `[restore] method` and of `scopeloop denoise --method`. A classical filter that
was asked for by name is what is shown; a network is believed frame by frame, and where it is not,
the best classical filter stands in and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from controller.restoring.frames import EachAlone, RestorerChoice
from inference.api import NoEngine
from inference.restore.api import LiveRestorer, Restorer
from inference.restore.classical import Gaussian, LocalWiener, NonLocalMeans, RadialWiener
from inference.restore.guard import BestClassical, Guarded
from inference.restore.recursive import Recursive

Method: TypeAlias = Literal[
    "auto", "live", "quality", "radial_wiener", "local_wiener", "nlm", "gaussian"
]
NetworkName: TypeAlias = Literal["live", "quality"]
OpenNetwork: TypeAlias = Callable[[NetworkName], Restorer | None]

_CLASSICAL: Final[dict[Method, Callable[[], Restorer]]] = {
    "radial_wiener": RadialWiener,
    "local_wiener": LocalWiener,
    "nlm": NonLocalMeans,
    "gaussian": Gaussian,
}


def restorer_choice(
    method: Method,
    *,
    recursive: bool,
    open_network: OpenNetwork,
    twin_test_every_frames: int = 1,
) -> RestorerChoice:
    """What a word means. open_network: answers None where there are no weights.

    Raises NoEngine where a network was asked for by name and is not here, BadModel.
    """
    restorer, expected = restorer_of(method, open_network, twin_test_every_frames)

    def make() -> LiveRestorer:
        return Recursive(restorer) if recursive else EachAlone(restorer)

    return RestorerChoice(restorer.name, make, expected)


def restorer_of(
    method: Method, open_network: OpenNetwork, twin_test_every_frames: int = 1
) -> tuple[Restorer, frozenset[str]]:
    """A restorer for single frames, and the methods it makes when all is well."""
    if method in _CLASSICAL:
        filter_ = _CLASSICAL[method]()
        return filter_, frozenset({filter_.name})
    network = open_network("quality" if method == "quality" else "live")
    if network is not None:
        return Guarded(network), frozenset({network.name})
    if method != "auto":
        message = (
            f'the network "{method}" is not in inference/weights; scopeloop train restore makes '
            "it, and method auto does without"
        )
        raise NoEngine(message)
    best = BestClassical()
    return best, frozenset(one.name for one in best.restorers)
