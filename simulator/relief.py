"""Dirt with a surface: drops of glue, blisters, dust and fibres as small maps of thickness.

A map is a picture in itself, drawn once per speck from the speck's own seed and placed into frames
by an affine transform. Glue and blisters are thicknesses in nm, to be turned into colours by the
interference in them (hence the rings); dust is opaque, stands up from the surface and is out of
focus even where the surface is in focus, so its map holds the light that it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from simulator.chip import Speck

Map = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Relief:
    """A square map around a speck's centre, y up along decreasing rows of the chip's frame."""

    values: Map  # nm of glue; for dust the share of light that is taken away
    pitch_um: float


def relief(speck: Speck) -> Relief:
    """The map of one speck; the same speck gives the same map."""
    rng = np.random.default_rng(speck.seed)
    pitch_um = float(np.clip(speck.radius_um / 40.0, 0.1, 0.4))
    half_px = int(np.ceil(1.3 * speck.radius_um / pitch_um)) + 4
    along = (np.arange(-half_px, half_px + 1) * pitch_um).astype(np.float32)
    x, y = np.meshgrid(along, -along)
    if speck.kind == "bubble":
        values = _bubble(rng, x, y, speck.radius_um)
    elif speck.kind == "residue":
        values = _residue(rng, x, y, speck.radius_um)
    elif rng.random() < 0.3:
        values = _fibre(rng, x, speck.radius_um, pitch_um)
    else:
        values = _dust(rng, x, y, speck.radius_um, pitch_um)
    return Relief(np.ascontiguousarray(values, dtype=np.float32), pitch_um)


def _smooth_noise(rng: np.random.Generator, side_px: int, cells: int) -> Map:
    """Zero mean, unit variance before interpolation, about `cells` bumps across."""
    coarse = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_CUBIC))


def _bubble(rng: np.random.Generator, x: Map, y: Map, radius_um: float) -> Map:
    """A cap of glue, slightly off round, flat at the rim."""
    squeeze = float(np.exp(rng.normal(0.0, 0.12)))
    turn = rng.uniform(0.0, np.pi)
    u = (x * np.cos(turn) + y * np.sin(turn)) * squeeze
    v = (y * np.cos(turn) - x * np.sin(turn)) / squeeze
    share = np.clip(1.0 - (u**2 + v**2) / radius_um**2, 0.0, 1.0)
    height_nm = rng.uniform(0.04, 0.12) * 1e3 * min(radius_um, 12.0)
    return np.asarray(height_nm * share ** rng.uniform(0.8, 1.4), dtype=np.float32)


def _residue(rng: np.random.Generator, x: Map, y: Map, radius_um: float) -> Map:
    """Beads on a torn film: what tape leaves."""
    side = x.shape[0]
    wobble = 1.0 + 0.28 * _smooth_noise(rng, side, 5)
    inside = (x**2 + y**2) < (radius_um * wobble) ** 2
    holes = _smooth_noise(rng, side, 12) > -0.4
    film_nm = rng.uniform(1.0, 8.0) * (inside & holes)
    heights = np.asarray(film_nm, dtype=np.float32)
    pitch_um = float(x[0, 1] - x[0, 0])
    for _ in range(int(rng.poisson(0.16 * np.pi * radius_um**2 / (1.0 + 0.03 * radius_um)))):
        distance = radius_um * np.sqrt(rng.random())
        angle = rng.uniform(0.0, 2.0 * np.pi)
        bead_um = float(np.clip(np.exp(rng.normal(-0.3, 0.55)), 0.2, 0.3 * radius_um + 0.3))
        height_nm = rng.uniform(40.0, 200.0) * bead_um**0.6
        column = int((distance * np.cos(angle) - x[0, 0]) / pitch_um)
        row = int((y[0, 0] - distance * np.sin(angle)) / pitch_um)
        reach = int(np.ceil(bead_um / pitch_um))
        box = (
            slice(max(row - reach, 0), row + reach + 1),
            slice(max(column - reach, 0), column + reach + 1),
        )
        if heights[box].size == 0:
            continue
        middle_x, middle_y = distance * np.cos(angle), distance * np.sin(angle)
        squared = ((x[box] - middle_x) ** 2 + (y[box] - middle_y) ** 2) / bead_um**2
        cap = height_nm * np.sqrt(np.clip(1.0 - squared, 0.0, 1.0))
        heights[box] = np.maximum(heights[box], cap)
    if rng.random() < 0.5:  # a drop that dried: a plateau with a raised rim
        core = 0.45 * radius_um * (1.0 + 0.2 * _smooth_noise(rng, side, 4))
        share = np.clip(1.5 - np.hypot(x, y) / core, 0.0, 0.5) * 2.0
        rim = np.exp(-(((np.hypot(x, y) - core) / (0.12 * radius_um)) ** 2))
        heights = heights + rng.uniform(20.0, 160.0) * (share + 0.5 * rim).astype(np.float32)
    return heights


def _dust(rng: np.random.Generator, x: Map, y: Map, radius_um: float, pitch_um: float) -> Map:
    """A grain: nearly black, with a dark halo of its own defocus and a thin bright fringe."""
    side = x.shape[0]
    shape = 0.75 * radius_um * (1.0 + 0.3 * _smooth_noise(rng, side, 4))
    stretch = float(np.exp(rng.normal(0.0, 0.3)))
    grain = (((x * stretch) ** 2 + (y / stretch) ** 2) < shape**2).astype(np.float32)
    return _out_of_focus(grain, pitch_um, min(0.12 * radius_um + 0.25, 1.6))


def _fibre(rng: np.random.Generator, x: Map, radius_um: float, pitch_um: float) -> Map:
    """A lint fibre, bent, as long as the speck is wide."""
    side = x.shape[0]
    heading = rng.uniform(0.0, 2.0 * np.pi) + np.cumsum(rng.normal(0.0, 0.12, 40))
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
    path = (path - path.mean(axis=0)) * 2.0 * radius_um / 40.0 / pitch_um + side / 2.0
    canvas = np.zeros((side, side), dtype=np.uint8)
    thickness = max(1, round(float(rng.uniform(0.8, 2.2)) / pitch_um))
    points = np.round(path * 16).astype(np.int32)[:, None]
    cv2.polylines(canvas, [points], False, 255, thickness, cv2.LINE_AA, 4)
    return _out_of_focus(canvas.astype(np.float32) / 255.0, pitch_um, 0.5)


def _out_of_focus(grain: Map, pitch_um: float, blur_um: float) -> Map:
    core = cv2.GaussianBlur(grain, (0, 0), 0.6 * blur_um / pitch_um + 0.3)
    wide = cv2.GaussianBlur(grain, (0, 0), 2.2 * blur_um / pitch_um + 0.6)
    return np.asarray(0.9 * core + 0.22 * (wide - core), dtype=np.float32)


HAZE_SIDE_PX = 1024
HAZE_PITCH_UM = 0.5


def haze(seed: int) -> Map:
    """What the air leaves on everything: mottles of 5 to 40 um, unit rms, zero mean, periodic."""
    rng = np.random.default_rng([seed, 0xA12])
    frequency = np.fft.fftfreq(HAZE_SIDE_PX, HAZE_PITCH_UM)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    power = np.exp(-((radius * 5.0) ** 2)) / (1.0 + (radius * 40.0) ** 2)
    white = np.fft.fft2(rng.standard_normal((HAZE_SIDE_PX, HAZE_SIDE_PX)))
    mottled = np.fft.ifft2(white * np.sqrt(power)).real
    mottled -= mottled.mean()
    return np.asarray(mottled / mottled.std(), dtype=np.float32)
