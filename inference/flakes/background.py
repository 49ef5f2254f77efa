"""The bare substrate of a photograph: its colour everywhere, and how sure we are that it is there.

A flake's contrast is relative to the substrate beside it, so everything rests on this. Nothing is
assumed about which pixels are substrate, because on a crowded chip most of them are not. Two steps:

1. The SHAPE of the light (vignette, tilted lamp) multiplies flakes and substrate alike, so it can
   be read from small local differences of the log image wherever there is no edge, before anyone
   knows what is substrate. A polynomial whose gradient explains those differences is fitted, the
   edges being outliers.
2. On the flattened image the substrate is the dominant colour: the largest peak that is neither
   black (beyond the chip's edge) nor saturated (bulk crystals), or, where a microscope's substrate
   colour is already known, the peak nearest to it. Pixels of that colour refine the polynomial.

A measured flat field, where given, divides the image first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import ImageRGB

FloatImage = npt.NDArray[np.float32]

COARSE_PX = 16
"""Side of one cell of the grid on which the background lives; vignettes are far smoother."""

_LAG_CELLS = 3  # distance over which local differences are taken
_BLACK_SHARE = 0.08  # of full scale: darker in all channels is the ground beside the chip
_UNEVEN_MAX = 3.0  # brightest over darkest place of the background: more is no microscope's light
_NOISE_MAX = 0.10  # relative, of single px: contrasts of a monolayer drown in more
_SATURATED_SHARE = 0.98
_LEAST_SHARE = 0.03  # of the cells: a smaller peak is not a substrate
_BIN = 0.01  # of the histogram of log intensity


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """What the photograph would look like without anything on the substrate."""

    coarse: FloatImage  # (rows, columns, 3) digital numbers, one node per 16 x 16 px cell
    shape_px: tuple[int, int]  # (h, w) of the photograph
    rgb: tuple[float, float, float]  # the substrate's typical digital numbers
    share: float  # of the photograph's cells that look like substrate
    roughness: (
        float  # relative spread of those cells: what the smooth background leaves unexplained
    )
    reason: str  # why it is not to be trusted, "" when it is

    def window(self, x_px: int, y_px: int, width_px: int, height_px: int) -> FloatImage:
        """Digital numbers within a box, which may overhang, (height_px, width_px, 3)."""
        return _interpolated(self.coarse, COARSE_PX, x_px, y_px, width_px, height_px)

    def inverse_half(self) -> FloatImage:
        """1 / background for the photograph at half size, (h // 2, w // 2, 3)."""
        height, width = self.shape_px
        inverse = np.reciprocal(np.maximum(self.coarse, np.float32(1e-3)))
        return _interpolated(inverse, COARSE_PX // 2, 0, 0, width // 2, height // 2)


def _interpolated(
    nodes: FloatImage, step_px: int, x_px: int, y_px: int, width_px: int, height_px: int
) -> FloatImage:
    """Bilinear values between nodes that lie in the middle of cells of step_px."""
    rows, columns = nodes.shape[:2]
    first_column, first_row = x_px // step_px - 1, y_px // step_px - 1
    last_column = (x_px + width_px - 1) // step_px + 2
    last_row = (y_px + height_px - 1) // step_px + 2
    across = np.clip(np.arange(first_column, last_column), 0, columns - 1)
    down = np.clip(np.arange(first_row, last_row), 0, rows - 1)
    block = nodes[down[:, None], across]
    size = (block.shape[1] * step_px, block.shape[0] * step_px)
    fine = cv2.resize(block, size, interpolation=cv2.INTER_LINEAR)
    top, left = y_px - first_row * step_px, x_px - first_column * step_px
    return np.asarray(fine[top : top + height_px, left : left + width_px], dtype=np.float32)


@lru_cache(maxsize=8)
def _terms(rows: int, columns: int) -> FloatImage:
    """Polynomials of the position without the constant, (rows, columns, n): r^4 for vignettes."""
    scale = max(rows, columns) / 2.0
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    x = (x - (columns - 1) / 2.0) / scale
    y = (y - (rows - 1) / 2.0) / scale
    r2 = x * x + y * y
    terms = np.stack([x, y, x * x, x * y, y * y, x * r2, y * r2, r2 * r2], axis=-1)
    terms = terms.astype(np.float32)
    terms.setflags(write=False)
    return terms


@lru_cache(maxsize=8)
def _term_differences(rows: int, columns: int, lag: int) -> FloatImage:
    differences = _differences(_terms(rows, columns), lag)
    differences.setflags(write=False)
    return differences


@lru_cache(maxsize=8)
def _spread_cells(rows: int, columns: int) -> npt.NDArray[np.int64]:
    """Indices of every second cell both ways (all of them in a small frame)."""
    step = 2 if rows * columns > 2000 else 1
    return np.arange(rows * columns).reshape(rows, columns)[::step, ::step].ravel()


def _differences(grid: FloatImage, lag: int) -> FloatImage:
    """Differences over `lag` cells across and down, every second cell, (n, channels)."""
    across = grid[::2, lag::2] - grid[::2, :-lag:2]
    down = grid[lag::2, ::2] - grid[:-lag:2, ::2]
    channels = grid.shape[-1]
    return np.concatenate([across.reshape(-1, channels), down.reshape(-1, channels)])


def _solve(
    design: FloatImage, target: FloatImage, keep: npt.NDArray[np.bool_], ridge: float
) -> FloatImage:
    """Least squares over the kept rows, (n_terms, 3); a little ridge where they say nothing."""
    a, b = design[keep], target[keep]
    normal = a.T @ a
    normal[np.diag_indices_from(normal)] += ridge * max(len(a), 1)
    return np.asarray(np.linalg.solve(normal, a.T @ b), dtype=np.float32)


def _light_shape(log_image: FloatImage, usable: npt.NDArray[np.bool_]) -> FloatImage:
    """Coefficients (n_terms, 3) of the light's shape, read from differences alone."""
    rows, columns, _ = log_image.shape
    lag = min(_LAG_CELLS, rows - 1, columns - 1)
    design = _term_differences(rows, columns, lag)
    target = _differences(log_image, lag)
    spoilt = (~usable)[..., None].astype(np.float32)
    both = np.concatenate(
        [
            (spoilt[::2, lag::2] + spoilt[::2, :-lag:2]).ravel() == 0,
            (spoilt[lag::2, ::2] + spoilt[:-lag:2, ::2]).ravel() == 0,
        ]
    )
    coefficients = np.zeros((design.shape[1], 3), dtype=np.float32)
    # The widest band admits the steepest vignette (30 % in the corners is 0.04 per lag), the last
    # one only what the polynomial explains.
    for band in (0.06, 0.02, 0.01):
        residual = largest_channel(np.abs(target - design @ coefficients))
        keep = both & (residual < band)
        if int(keep.sum()) < 40:
            break
        coefficients = _solve(design, target, keep, 1e-6)
    return coefficients


def _peaks(values: FloatImage, weights_min: float) -> list[tuple[float, float]]:
    """Peaks of a one-dimensional distribution as (share, centre), the largest first."""
    low = float(values.min()) - 5 * _BIN
    bins = max(int((float(values.max()) - low) / _BIN) + 6, 12)
    index = ((values - low) / _BIN).astype(np.int64)
    histogram = np.bincount(index, minlength=bins).astype(np.float64)
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    smooth = np.convolve(histogram, kernel / kernel.sum(), mode="same")
    is_peak = (smooth[1:-1] >= smooth[:-2]) & (smooth[1:-1] > smooth[2:])
    found = []
    for k in np.flatnonzero(is_peak) + 1:
        around = slice(max(k - 3, 0), k + 4)
        share = float(histogram[around].sum()) / values.size
        if share >= weights_min:
            found.append((share, low + (float(k) + 0.5) * _BIN))
    return sorted(found, reverse=True)


def _substrate_log(
    flat: FloatImage, expected_rgb: tuple[float, float, float] | None
) -> tuple[FloatImage, float] | None:
    """Log colour of the dominant (or expected) peak among (n, 3) cells, and its share of them."""
    if flat.shape[0] == 0:
        return None
    flat = np.ascontiguousarray(flat[:: max(flat.shape[0] // 4000, 1)])
    candidates: list[tuple[float, FloatImage]] = []
    for _, green in _peaks(flat[:, 1], _LEAST_SHARE)[:6]:
        near = flat[np.abs(flat[:, 1] - green) < 0.04]
        for _, blue in _peaks(near[:, 2], _LEAST_SHARE)[:2]:
            nearer = near[np.abs(near[:, 2] - blue) < 0.04]
            for _, red in _peaks(nearer[:, 0], _LEAST_SHARE)[:2]:
                centre = np.array([red, green, blue], dtype=np.float32)
                inside = largest_channel(np.abs(flat - centre)) < 0.04
                share = float(inside.mean())
                if share >= _LEAST_SHARE:
                    candidates.append((share, np.median(flat[inside], axis=0)))
    if not candidates:
        return None
    if expected_rgb is not None:
        wanted = np.log(np.maximum(np.asarray(expected_rgb, dtype=np.float32), 1e-3))

        def likeness(candidate: tuple[float, FloatImage]) -> float:
            off = candidate[1] - wanted
            tint = off - off.mean()  # exposure may change, tint should not
            return float(np.hypot(np.linalg.norm(tint) / 0.06, off.mean() / 0.5)) - 2 * candidate[0]

        share, centre = min(candidates, key=likeness)
    else:
        share, centre = max(candidates, key=lambda candidate: candidate[0])
    return centre, share


def largest_channel(values: FloatImage) -> FloatImage:
    """Largest of three channels; many times faster than a maximum over a short last axis."""
    return np.maximum(np.maximum(values[..., 0], values[..., 1]), values[..., 2])


def shrunk_half(pixels: ImageRGB) -> ImageRGB:
    """Average 2 x 2 pixels; an odd last row or column is dropped."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    even = pixels[: 2 * height, : 2 * width]
    return cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def coarse_flat_field(flat_field: ImageRGB | FloatImage) -> FloatImage:
    """A measured flat field on the background's grid, divided by its own mean per channel."""
    cells = _cells(np.asarray(flat_field, dtype=np.float32), COARSE_PX)
    cells = np.asarray(cv2.blur(cells, (3, 3)), dtype=np.float32)
    return np.asarray(cells / np.maximum(cells.mean(axis=(0, 1)), 1e-6), dtype=np.float32)


def _cells(
    image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | FloatImage, cell_px: int
) -> FloatImage:
    """Means over square cells; a cell cut by the frame's edge repeats the last pixels."""
    height, width = image.shape[:2]
    rows, columns = -(-height // cell_px), -(-width // cell_px)
    pad_y, pad_x = rows * cell_px - height, columns * cell_px - width
    if pad_y or pad_x:
        image = cv2.copyMakeBorder(image, 0, pad_y, 0, pad_x, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.float32)


def estimate_background(
    pixels: ImageRGB,
    full_scale: float,
    expected_rgb: tuple[float, float, float] | None = None,
    flat_field: FloatImage | None = None,
    half: ImageRGB | None = None,
) -> Background:
    """Find the substrate of one photograph.

    full_scale: the largest digital number the camera gives. expected_rgb: the substrate's colour in
    earlier photographs of the same microscope, None when unknown. flat_field: from
    `coarse_flat_field`, None for none. half: `shrunk_half(pixels)`, where it is at hand.
    Never raises: an untrustworthy answer says so in `reason`.
    """
    height, width = pixels.shape[:2]
    cells = _cells(pixels, COARSE_PX) if half is None else _cells(half, COARSE_PX // 2)
    if flat_field is not None:
        cells /= np.maximum(flat_field, 1e-3)
    rows, columns, _ = cells.shape
    brightest = largest_channel(cells)
    is_black = brightest < _BLACK_SHARE * full_scale
    is_saturated = brightest > _SATURATED_SHARE * full_scale
    usable = ~is_black & ~is_saturated
    log_image = np.log(np.maximum(cells, 1e-3 * full_scale))

    def failed(reason: str) -> Background:
        typical = np.maximum(np.median(cells.reshape(-1, 3), axis=0), 1.0).astype(np.float32)
        coarse = np.broadcast_to(typical, cells.shape).astype(np.float32)
        return Background(coarse, (height, width), _triple(typical), 0.0, 0.0, reason)

    if float(usable.mean()) < _LEAST_SHARE or int(usable.sum()) < 12:
        if float(is_black.mean()) >= 0.5:
            return failed("black: no light reached the camera, or the frame lies beyond the chip")
        if float(is_saturated.mean()) >= 0.5:
            return failed("saturated: the substrate is brighter than the camera can tell")
        return failed("no substrate: nearly all of the frame is black or saturated")

    terms = _terms(rows, columns)
    coefficients = _light_shape(log_image, usable)
    flattened = log_image - terms @ coefficients
    substrate = _substrate_log(flattened[usable], expected_rgb)
    if substrate is None:
        return failed("no substrate: no colour covers enough of the frame")
    constant, _ = substrate

    flat_terms = terms.reshape(-1, terms.shape[-1])
    target = log_image.reshape(-1, 3)
    flat_usable = usable.ravel()
    some = _spread_cells(rows, columns)
    design = np.concatenate([flat_terms[some], np.ones((some.size, 1), np.float32)], axis=1)
    fitted = np.concatenate([coefficients, constant[None]]).astype(np.float32)
    for band in (0.05, 0.025, 0.02):
        residual = target[some] - design @ fitted
        keep = flat_usable[some] & (largest_channel(np.abs(residual)) < band)
        count = int(keep.sum())
        if count < 12:
            break
        # With little substrate in view the free polynomial would follow flakes: hold it to the
        # shape read from differences, only the constant moves.
        if count < 0.1 * keep.size:
            fitted = fitted.copy()
            fitted[-1] += np.median(residual[keep], axis=0)
        else:
            fitted = fitted + _solve(design, residual, keep, 1e-5)
    log_background = flat_terms @ fitted[:-1] + fitted[-1]
    residual = np.abs(target - log_background)
    keep = flat_usable & (largest_channel(residual) < 0.02)
    share = float(keep.mean())
    if share < _LEAST_SHARE / 2:
        return failed("no substrate: no colour covers enough of the frame")
    roughness = 1.25 * float(residual[keep].mean())
    coarse = np.exp(log_background).reshape(rows, columns, 3)
    seen = log_background[keep]  # elsewhere the polynomial is a guess
    uneven = float(np.exp(seen.max(axis=0) - seen.min(axis=0)).max())
    typical = np.exp(seen.mean(axis=0))
    if uneven > _UNEVEN_MAX:
        return failed(f"uneven light: {uneven:.1f} times brighter in one place than in another")
    noise = _pixel_noise(pixels) / float(typical[1])
    if noise > _NOISE_MAX:
        return failed(f"noise: single pixels scatter by {100 * noise:.0f} % of the substrate")
    if flat_field is not None:
        coarse = coarse * flat_field
    return Background(coarse, (height, width), _triple(typical), share, roughness, "")


def _pixel_noise(pixels: ImageRGB) -> float:
    """One sigma of single px of the green channel, from neighbours in every 16th row."""
    rows = pixels[::16, :, 1].astype(np.int32)
    return float(1.05 * np.median(np.abs(rows[:, 1:] - rows[:, :-1])))


def _triple(values: npt.NDArray[np.floating]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
