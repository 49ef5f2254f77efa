"""Which restorer a word of the settings means, guarded where it is a network.

The word is that of `[restore] method` and of `scopeloop denoise --method`. A classical filter that
was asked for by name is what is shown; a network is believed frame by frame, and where it is not,
the best classical filter stands in and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from controller.restoring.frames import EachAlone, RestorerChoice
from inference.api import NoEngine
from inference.restore.anchor import TwoStepWiener
from inference.restore.api import Frame, LiveRestorer, NoiseModel, Restored, Restorer
from inference.restore.classical import Gaussian, LocalWiener, NonLocalMeans, RadialWiener
from inference.restore.guard import BestClassical, GuardedLive
from inference.restore.recursive import Recursive, RecursiveSettings
from inference.restore.views import ComputedView

Method: TypeAlias = Literal[
    "auto", "live", "quality", "two_step_wiener", "radial_wiener", "local_wiener", "nlm", "gaussian"
]
NetworkName: TypeAlias = Literal["live", "quality"]
OpenNetwork: TypeAlias = Callable[[NetworkName], Restorer | None]

_CLASSICAL: Final[dict[Method, Callable[[], Restorer]]] = {
    "two_step_wiener": TwoStepWiener,
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
    network = None
    if method not in _CLASSICAL:
        network = open_network("quality" if method == "quality" else "live")
    if network is not None:
        made_by = network  # narrowed for the function below
        recursion = RecursiveSettings() if recursive else None

        def guarded() -> LiveRestorer:
            return GuardedLive(
                made_by, recursion=recursion, twin_every_frames=twin_test_every_frames
            )

        return RestorerChoice(network.name, guarded, frozenset({network.name}))
    if method in ("live", "quality"):
        message = (
            f'the network "{method}" is not in inference/weights; scopeloop train restore makes '
            "it, and method auto does without"
        )
        raise NoEngine(message)
    restorer = _CLASSICAL.get(method, BestClassical)()
    expected = {one.name for one in BestClassical().restorers} if method == "auto" else set()

    def make() -> LiveRestorer:
        return Recursive(restorer) if recursive else EachAlone(restorer)

    return RestorerChoice(restorer.name, make, frozenset({restorer.name, *expected}))


def view_choice(view: ComputedView) -> RestorerChoice:
    """A computed view, frame by frame."""
    return RestorerChoice(
        view.name, lambda: EachAlone(_Viewing(view)), frozenset({view.name}), view.scale
    )


@dataclass(frozen=True, slots=True)
class _Viewing:
    """A computed view in a restorer's words."""

    view: ComputedView

    @property
    def name(self) -> str:
        return self.view.name

    def restore(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        return self.view.view(frame, noise)
