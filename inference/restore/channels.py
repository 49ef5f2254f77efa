"""Frames of any number of channels, and computed images in a frame's own number type.

Every channel has its own gain and noise, so each is restored by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.api import BadImage
from inference.restore.api import Restored, Restorer


@dataclass(frozen=True, slots=True, eq=False)
class RestoredImage:
    """A frame with all its channels restored."""

    pixels: npt.NDArray[Any]  # shape and dtype of the frame
    channels: tuple[Restored, ...]

    @property
    def reason(self) -> str:
        """What the channels say, each thing once; "" when all is well."""
        return "; ".join(dict.fromkeys(one.reason for one in self.channels if one.reason))


def restore_image(pixels: npt.NDArray[Any], restorer: Restorer) -> RestoredImage:
    """Restore (h, w) or (h, w, channels); the answer is a computed image, to be labelled so.

    Raises BadImage for anything else, or a type that restorers do not take.
    """
    if pixels.ndim not in (2, 3):
        raise BadImage(f"needs (h, w) or (h, w, channels), got {pixels.shape}")
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    channels = tuple(restorer.restore(planes[..., c]) for c in range(planes.shape[2]))
    image = np.stack([one.image for one in channels], axis=-1).reshape(pixels.shape)
    return RestoredImage(in_type_of(image, pixels), channels)


def in_type_of(image: npt.NDArray[np.float32], pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Round and limit a computed image to the number type of a frame; floats stay as they are."""
    if pixels.dtype.kind != "u":
        return image.astype(pixels.dtype)
    return np.clip(np.rint(image), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
