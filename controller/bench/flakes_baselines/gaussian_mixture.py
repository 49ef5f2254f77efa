"""The Gaussian-mixture contrast method, written anew from its paper.

J.-L. Uslu et al., "An open-source robust machine learning platform for real-time detection and
classification of 2D material flakes", Mach. Learn.: Sci. Technol. 5, 015027 (2024): median filter
of 5 x 5, the substrate's colour as the mode of each channel's histogram, contrast I / I_0 - 1, one
three-dimensional normal distribution a layer number, pixels within a Mahalanobis distance of 5 of
the nearest one; connected regions of one layer number, holes filled, above a least size. Its
parameters are fitted per microscope and wafer from three to five flakes of each thickness.

Two forms of it are run. `shipped` has the authors' own parameters for the wafer in question.
`refitted` is what its authors ask of a user: means and covariances from the labelled flakes of the
OTHER photographs of the same kind of wafer (never from the photograph itself), with the layer
numbers of the committed list; the covariance is widened to the shipped one where few pixels speak.
The published filter for false positives is a logistic model of shapes whose weights are not in the
paper; in its place regions are ranked by likelihood and solidity, and none are removed, which can
only help its average precision. Least size 170 px, as for everybody here (its default is 1,000,
which loses most flakes of this size).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from controller.bench.flakes_baselines.photographs import Photograph
from inference.api import ImageRGB
from inference.flakes.scoring import Instance

FloatImage = npt.NDArray[np.float32]

LEAST_PX: Final = 170
_DISTANCE: Final = 5.0  # the authors' `standard_deviation_threshold`
_SATURATED: Final = 250


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer number's contrasts: mean and covariance, both in the order R, G, B."""

    layers: int
    mean: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]


def read_layers(path: Path) -> tuple[Layer, ...]:
    """The rival's own file: means by channel, covariances in the order B, G, R."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        Layer(
            int(layers),
            np.array([entry["contrast"][c] for c in "rgb"]),
            np.array(entry["covariance_matrix"])[::-1, ::-1],
        )
        for layers, entry in sorted(content.items(), key=lambda item: int(item[0]))
    )


def contrast_of(pixels: ImageRGB) -> FloatImage:
    """I / I_0 - 1 after a median of 5 x 5, with each channel's mode as the substrate."""
    smooth = cv2.medianBlur(np.ascontiguousarray(pixels), 5)
    contrast = np.empty(smooth.shape, dtype=np.float32)
    for channel in range(3):
        counts = np.bincount(smooth[..., channel].ravel(), minlength=_SATURATED + 1)
        mode = max(int(np.argmax(counts[1:_SATURATED])) + 1, 1)
        contrast[..., channel] = smooth[..., channel].astype(np.float32) / mode - 1.0
    return contrast


@dataclass(frozen=True, slots=True, eq=False)
class GaussianMixture:
    """Finds what its layers describe."""

    layers: tuple[Layer, ...]

    def find(self, pixels: ImageRGB) -> tuple[Instance, ...]:
        """Regions of one layer number each, of 8-bit photographs."""
        contrast = contrast_of(pixels)
        nearest, distance = self._nearest(contrast)
        found: list[Instance] = []
        for index, layer in enumerate(self.layers):
            mask = ((nearest == index) & (distance < _DISTANCE)).astype(np.uint8)
            for instance in regions(mask):
                inside = _cut(distance, instance)[instance.mask]
                fit = float(np.exp(-0.5 * (float(np.median(inside)) / 2.0) ** 2))
                score = fit * solidity(instance.mask) * (1.0 - np.exp(-inside.size / 500.0))
                found.append(replace(instance, score=float(score), layers=layer.layers))
        return tuple(found)

    def _nearest(
        self, contrast: FloatImage
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.floating]]:
        """Index and Mahalanobis distance of the nearest layer, each (h, w)."""
        distances = np.empty((len(self.layers), *contrast.shape[:2]), dtype=np.float32)
        for k, layer in enumerate(self.layers):
            root = np.linalg.cholesky(np.linalg.inv(layer.covariance)).astype(np.float32)
            away = (contrast - layer.mean.astype(np.float32)) @ root
            distances[k] = np.sqrt(np.einsum("hwc,hwc->hw", away, away))
        nearest = np.argmin(distances, axis=0)
        return nearest, np.take_along_axis(distances, nearest[None], axis=0)[0]


def refitted(others: Sequence[Photograph], shipped: Sequence[Layer]) -> tuple[Layer, ...]:
    """Layers from the labelled flakes of other photographs; those never seen stay as shipped.

    Every flake counts alike. Where there is one flake only, its spread says nothing about flakes
    in general, so the shipped covariance is a prior worth two flakes.
    """
    means: dict[int, list[npt.NDArray[np.float64]]] = {}
    for photograph in others:
        contrast = contrast_of(photograph.pixels)
        for one in photograph.true:
            if one.layers is not None:
                inner = cv2.erode(one.mask.astype(np.uint8), np.ones((3, 3), dtype=np.uint8)) > 0
                inside = _cut(contrast, one)[inner if inner.any() else one.mask]
                means.setdefault(one.layers, []).append(np.median(inside, axis=0))
    prior = {layer.layers: layer for layer in shipped}
    thickest = max(prior)
    found = []
    for layers in sorted({*prior, *means}):
        usual = prior.get(layers, prior[thickest])
        if layers not in means:
            found.append(usual)
            continue
        samples = np.array(means[layers])
        mean = samples.mean(axis=0)
        scatter = (samples - mean).T @ (samples - mean)
        covariance = (scatter + 2.0 * usual.covariance) / (len(samples) + 2.0)
        found.append(Layer(layers, mean, covariance))
    return tuple(found)


def regions(mask: npt.NDArray[np.uint8], least_px: int = LEAST_PX) -> list[Instance]:
    """Connected regions of a mask, opened by 3 x 3 and with holes filled."""
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), dtype=np.uint8))
    contours, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = []
    for contour in contours:
        if len(contour) < 3:
            continue
        x, y, width, height = cv2.boundingRect(contour)
        filled = np.zeros((height, width), dtype=np.uint8)
        cv2.drawContours(filled, [contour], -1, 1, cv2.FILLED, offset=(-x, -y))
        if int(filled.sum()) >= least_px:
            found.append(Instance(filled > 0, x, y))
    return found


def solidity(mask: npt.NDArray[np.bool_]) -> float:
    """Area over that of the convex hull."""
    points = cv2.findNonZero(mask.astype(np.uint8))
    hull = np.zeros(mask.shape, dtype=np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    return float(np.count_nonzero(mask) / max(int(hull.sum()), 1))


def _cut(image: npt.NDArray[np.floating], instance: Instance) -> npt.NDArray[np.floating]:
    height, width = instance.mask.shape
    y, x = instance.box_y_px, instance.box_x_px
    return image[y : y + height, x : x + width]
