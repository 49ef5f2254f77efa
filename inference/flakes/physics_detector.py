"""Which flakes are in this photograph? Answered by thin-film physics, without any training.

Background, candidates, terraces, ladder: every step lies in its own file, and this one joins them
and turns terraces into detections with probabilities. What a user knows beforehand (materials, the
wafer's oxide, the objective) stands in `DetectorSettings`; what the photographs themselves tell
(effective oxide, channel gains, the substrate's colour) comes from `calibrate` and is handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from inference.api import BadImage, BadModel, Calibration, Detection, FlakeAnswer, ImageRGB
from inference.flakes.background import (
    Background,
    coarse_flat_field,
    largest_channel,
)
from inference.flakes.belief import believed, physics_beliefs
from inference.flakes.calibration import (
    Level,
    SubstrateCalibration,
    drift,
    fit_calibration,
    grouped_by_substrate,
    nominal_calibration,
)
from inference.flakes.frame import PreparedFrame, prepared_frame
from inference.flakes.ladder import (
    THICKEST_NM,
    ColourTable,
    Ladder,
    Optics,
    colour_cell_centres,
    colour_table,
)
from inference.flakes.material_cards import MaterialCard, load_cards
from inference.flakes.materials import MATERIALS, curves, curves_of
from inference.flakes.microscope import Microscope, load_microscope, oxide_from_substrate
from inference.flakes.segmentation import (
    DARK,
    PLAUSIBLE,
    Cuts,
    Sheet,
    Terraces,
    candidate_boxes,
    find_terraces,
    merged_boxes,
    packed_sheet,
)
from inference.flakes.thickness import estimate_thickness

FloatArray = npt.NDArray[np.float32]

OTHER_LIGHT = "substrate colour is not the calibration's"
"""So begins the reason of an answer whose colours were read under another light."""

UNKNOWN_RGB = (0.0, 0.0, 0.0)  # of a calibration that came without its substrate's colour
_UNCALIBRATED_SLACK = 0.75
_SURE = 0.9  # a calibration's confidence: no need to look for another
_WORTH_MORE = 0.15  # confidence by which terraces of unexpected colours must explain better
_OXIDE_STEPS = (-0.12, -0.06, 0.06, 0.12)  # of ln(oxide), around the nominal
_CORRELATED_PX = 8.0  # neighbouring px that the median filter makes say the same
_THICK_RUNGS = 3.0
_FULL_SHARE = 0.97  # of full scale: a channel there may have been cut off
_FAINT = 0.06  # contrast of a monolayer, over the three channels
_HALF_LAYERS = 0.28  # beyond half a layer, that a region must have to be one of a faint crystal
_CEILING_STEP = 0.1  # of the contrasts at which a camera's channels end
_CEILINGS_KEPT = 16
_COLOURS_END = 1.5  # brighter colours are cut off by the colour table itself
_GRAIN = 0.04  # share of its contrast by which a terrace may vary, one sigma
_GRAIN_FLOOR = 0.06  # contrast units, added to the contrast: haze lies on faint crystals too
_NOISE_SLACK = 1.2
_NAMED_LAYERS = 6  # layer numbers that an answer names at most
_DARK_CONTRAST = -0.65  # in every channel: no light comes back, as beyond the chip's edge


class DetectorSettings(BaseModel):
    """What is looked for, and under which microscope."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    material_cards: tuple[str, ...] = Field((), max_length=64)
    """Files, or folders of them, that describe crystals not built in (see `material_cards`)."""
    materials: tuple[str, ...] = Field(("graphene",), min_length=1, max_length=8)
    oxide_nm: float = Field(90.0, ge=10.0, le=1000.0)
    numerical_aperture: float = Field(0.45, gt=0.0, lt=1.0)
    lamp_k: float = Field(3200.0, ge=1500.0, le=20000.0)
    calibration: str | None = None
    """A microscope's file (see `microscope`): its correction, its white, its wafers."""
    index_curves: Mapping[str, str] = Field(default_factory=dict)
    """Measurement of a material's index to use; `calibrate` chooses where none is named."""
    max_layers: int = Field(12, ge=1, le=40)
    max_thickness_nm: float | None = Field(None, ge=0.3, le=THICKEST_NM - 5.0)
    """Crystals thicker than `max_layers` are reported up to here; None: they are not."""
    min_area_um2: float = Field(25.0, gt=0.0, le=1e6)
    off_ladder_max: float = Field(0.035, gt=0.0, le=0.5)
    """Distance from the ladder, in contrast units, beyond which a region is something else."""
    off_ladder_relative: float = Field(0.10, ge=0.0, le=1.0)
    """The same as a share of the contrast, added to it."""
    spread_max: float = Field(0.03, gt=0.0, le=0.5)
    """A region whose colour varies more (one sigma, contrast units) is not one terrace."""
    half_width_min_px: float = Field(2.0, ge=0.0, le=100.0)
    score_min: float = Field(0.02, ge=0.0, le=1.0)

    def most_layers(self, layer_nm: float) -> int:
        """The thickest crystals that are reported, of layers that thick."""
        if self.max_thickness_nm is None:
            return self.max_layers
        return max(self.max_layers, round(self.max_thickness_nm / layer_nm))

    @field_validator("material_cards")
    @classmethod
    def _are_readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            load_cards(value)
        except BadModel as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("calibration")
    @classmethod
    def _is_a_microscope(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                load_microscope(Path(value))
        except BadModel as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("materials")
    @classmethod
    def _are_known(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        cards = load_cards(info.data.get("material_cards", ()))
        known = [*MATERIALS, *(card.key for card in cards)]
        unknown = [key for key in value if key not in known]
        if unknown:
            raise ValueError(f"no material {unknown[0]!r}; there are {', '.join(sorted(known))}")
        if len(set(value)) != len(value):
            raise ValueError("a material is named twice")
        return value

    @field_validator("index_curves")
    @classmethod
    def _exist(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for material, measurement in value.items():
            if f"{material}/{measurement}" not in curves():
                known = ", ".join(curves_of(material)) or "none"
                raise ValueError(f"no index {measurement!r} of {material!r}; there are {known}")
        return dict(value)

    @property
    def optics(self) -> Optics:
        """The part that the ladder's physics needs."""
        return Optics(
            self.numerical_aperture,
            self.lamp_k,
            tuple(sorted(self.index_curves.items())),
            _cards(self.material_cards),
            self.microscope.correction,
        )

    @property
    def microscope(self) -> Microscope:
        """What its file says; nominal without one."""
        return Microscope() if self.calibration is None else _microscope(self.calibration)


@lru_cache(maxsize=16)
def _cards(material_cards: tuple[str, ...]) -> tuple[MaterialCard, ...]:
    """Read once: a card that changes under a running search must not change its layers."""
    return load_cards(material_cards)


@lru_cache(maxsize=16)
def _microscope(calibration: str) -> Microscope:
    """Read once, likewise."""
    return load_microscope(Path(calibration))


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """Everything derived from settings and calibration once, not per photograph."""

    settings: DetectorSettings
    optics: Optics  # with what the wafer's calibration knows
    is_curve_known: frozenset[str]  # materials whose index curve was chosen, not taken by default
    tables: tuple[ColourTable, ...]
    kind_of_colour: npt.NDArray[np.uint8]
    cuts: Cuts
    _clipped: dict[tuple[float, ...], npt.NDArray[np.uint8]] = field(
        default_factory=dict, init=False, repr=False
    )

    def kinds_below(self, ceiling_rgb: FloatArray) -> npt.NDArray[np.uint8]:
        """Kinds of colour as a camera sees them whose channels end at these contrasts.

        A colour at an end may be any brighter one: it is compared with the ladder from below.
        """
        # In coarse steps downwards: vignetting moves the end within a photograph anyway.
        ceiling = np.floor((ceiling_rgb - _CEILING_STEP) / _CEILING_STEP) * _CEILING_STEP
        ends = np.array([t.ladder.contrast_rgb.max(axis=0) for t in self.tables]).max(axis=0)
        ceiling = np.where(ceiling < np.minimum(ends, _COLOURS_END), ceiling, np.inf)
        if not np.isfinite(ceiling).any():
            return self.kind_of_colour
        key = tuple(ceiling.tolist())
        if key not in self._clipped:
            while len(self._clipped) >= _CEILINGS_KEPT:
                del self._clipped[next(iter(self._clipped))]
            self._clipped[key] = self._kinds_with(ceiling.astype(np.float32))
        return self._clipped[key]

    def _kinds_with(self, ceiling_rgb: FloatArray) -> npt.NDArray[np.uint8]:
        centres = colour_cell_centres()
        at_end = np.flatnonzero((centres > ceiling_rgb).any(axis=1))
        points = centres[at_end]
        ends = points > ceiling_rgb
        size = np.linalg.norm(points, axis=1)
        limit = 0.08 + 1.5 * self.settings.off_ladder_relative * size
        kinds = self.kind_of_colour.copy()
        for table in self.tables:
            most = self.settings.most_layers(table.ladder.layer_nm) + 2.0
            wanted = table.ladder.thickness_layers < most
            for rung in table.ladder.contrast_rgb[wanted][1:]:
                off = points - rung
                off[ends & (off < 0.0)] = 0.0
                near = np.einsum("ij,ij->i", off, off) < limit * limit
                kinds[at_end[near]] = PLAUSIBLE
        return kinds


def wafers_of(
    calibration: Calibration | SubstrateCalibration | Sequence[SubstrateCalibration] | None,
    settings: DetectorSettings,
) -> tuple[SubstrateCalibration, ...]:
    """Every wafer that a detector was told of; the nominal one where it was told of none."""
    if isinstance(calibration, SubstrateCalibration):
        return (calibration,)
    if isinstance(calibration, Sequence) and calibration:
        return tuple(calibration)
    # Made on a substrate that nobody recorded: no drift can be noticed.
    fit = calibration if isinstance(calibration, Calibration) else None
    return (SubstrateCalibration(UNKNOWN_RGB, fit or nominal_calibration(settings.oxide_nm)),)


@dataclass(frozen=True, slots=True, eq=False)
class ChosenWafer:
    """What a photograph's colours are read by."""

    wafer: SubstrateCalibration
    ladders: tuple[Ladder, ...]  # of the materials that are looked for
    reason: str  # why its colours do not hold for the photograph, "" where they do


class PhysicsDetector:
    """The `FlakeDetector` that counts layers by interference colours."""

    def __init__(
        self,
        settings: DetectorSettings,
        calibration: Calibration
        | SubstrateCalibration
        | Sequence[SubstrateCalibration]
        | None = None,
        flat_field: ImageRGB | None = None,
    ) -> None:
        """Calibration: None for the nominal one; of several, each photograph takes its own wafer's.

        flat_field: a photograph of nothing, same size as those to come; None for none.
        """
        self._settings = settings
        # What was calibrated elsewhere or long ago holds for substrates of the very same look; what
        # looks otherwise is met with the nominal oxide, and with a confidence that says so.
        self._fallback = None
        if calibration is None and settings.microscope.wafers:
            (nominal,) = wafers_of(None, settings)
            self._fallback = nominal, _prepared(settings, nominal)
            calibration = settings.microscope.wafers
        wafers = wafers_of(calibration, settings)
        self._wafers = tuple((wafer, _prepared(settings, wafer)) for wafer in wafers)
        self._flat_field = None if flat_field is None else coarse_flat_field(flat_field)

    @property
    def name(self) -> str:
        """Detector and materials."""
        return f"physics({'+'.join(self._settings.materials)})"

    @property
    def budget_s(self) -> float:
        """Declared time for one full frame on two cores."""
        return 0.020

    @property
    def settings(self) -> DetectorSettings:
        """As given."""
        return self._settings

    @property
    def calibration(self) -> Calibration:
        """In use unless a photograph's substrate asks for another of those given."""
        return self._wafers[0][0].calibration

    def detect(self, pixels: ImageRGB, pixel_size_nm: float, bit_depth: int = 8) -> FlakeAnswer:
        """Find flakes; raises BadImage for anything but (h, w, 3) uint8 or uint16."""
        frame = self.prepared(pixels, pixel_size_nm, bit_depth)
        ladders = self.wafer_of(frame).ladders
        return believed(self.detect_prepared(frame), physics_beliefs(), ladders)

    def prepared(self, pixels: ImageRGB, pixel_size_nm: float, bit_depth: int = 8) -> PreparedFrame:
        """A photograph with its substrate, as this detector expects it. Raises BadImage."""
        checked_image(pixels, pixel_size_nm, bit_depth)
        # Only where all photographs shall look alike is there a colour to expect.
        first = self._wafers[0][0].substrate_rgb
        expected_rgb = first if len(self._wafers) == 1 and first != UNKNOWN_RGB else None
        return prepared_frame(pixels, pixel_size_nm, bit_depth, expected_rgb, self._flat_field)

    def wafer_of(self, frame: PreparedFrame) -> ChosenWafer:
        """Which of the wafers a photograph is read by, and whether their colours hold there."""
        wafer, ready, reason = self._chosen(frame.background)
        return ChosenWafer(wafer, tuple(table.ladder for table in ready.tables), reason)

    def detect_prepared(self, frame: PreparedFrame) -> FlakeAnswer:
        """Find flakes on a photograph from `prepared`, layers as likely as the ladder says."""
        background = frame.background
        wafer, ready, moved = self._chosen(background)
        reason = background.reason or moved
        found: list[Detection] = []
        if not background.reason:
            seen = _looked_at(frame, ready)
            if seen is not None:
                sheet, terraces = seen
                found = _detections(
                    sheet,
                    terraces,
                    background,
                    frame.full_scale,
                    frame.pixel_size_nm,
                    wafer.calibration,
                    ready,
                )
        return FlakeAnswer(
            detections=tuple(sorted(found, key=lambda d: -d.score)),
            substrate_rgb=background.rgb,
            calibration=wafer.calibration,
            in_distribution=not reason,
            reason=reason,
        )

    def _chosen(self, background: Background) -> tuple[SubstrateCalibration, _Prepared, str]:
        """The wafer of a substrate's colour; why it does not hold there, "" where it does."""
        wafer, ready = min(
            self._wafers, key=lambda pair: substrate_distance(pair[0], background.rgb)
        )
        if background.reason or wafer.substrate_rgb == UNKNOWN_RGB:
            return wafer, ready, ""
        moved = drift(background.rgb, wafer.substrate_rgb)
        if not moved.is_deviant:
            return wafer, ready, ""
        if self._fallback is not None:
            return *self._fallback, ""
        reason = (
            f"{OTHER_LIGHT}: "
            f"ln(R/G) moved by {moved.red_over_green:+.2f}, "
            f"ln(B/G) by {moved.blue_over_green:+.2f}, ln(G) by {moved.brightness:+.2f}"
        )
        return wafer, ready, reason


def calibrate(
    images: Iterable[ImageRGB],
    settings: DetectorSettings,
    pixel_size_nm: float,
    bit_depth: int = 8,
    flat_field: ImageRGB | None = None,
) -> tuple[SubstrateCalibration, ...]:
    """Fit one calibration per substrate colour seen in the images, the commonest first.

    Photographs are read one after the other and not kept. Where terraces do not tell and the
    microscope's white is known, the oxide is read from the substrate's tint.
    """
    microscope, optics = settings.microscope, settings.optics
    expected, searched = _searching(settings)
    flat = None if flat_field is None else coarse_flat_field(flat_field)
    colours: list[tuple[float, float, float]] = []
    levels: list[list[Level]] = []
    more: list[list[Level]] = []  # that other oxides would explain
    for pixels in images:
        checked_image(pixels, pixel_size_nm, bit_depth)
        frame = prepared_frame(pixels, pixel_size_nm, bit_depth, None, flat)
        background = frame.background
        if background.reason:
            continue
        colours.append(background.rgb)
        for found_levels, ready in ((levels, expected), (more, searched)):
            seen = _looked_at(frame, ready)
            found_levels.append([] if seen is None else clean_levels(seen[1]))
    found = []
    for group in sorted(grouped_by_substrate(colours), key=len, reverse=True):
        typical = np.median(np.array([colours[k] for k in group]), axis=0)
        rgb = (float(typical[0]), float(typical[1]), float(typical[2]))
        read = oxide_from_substrate(rgb, microscope.white_rgb, settings.oxide_nm, optics)
        oxide_nm = settings.oxide_nm if read is None else read.oxide_nm
        fitted = SubstrateCalibration(rgb, nominal_calibration(oxide_nm))
        for source in (levels, more):
            pooled = [level for k in group for level in source[k]]
            other = fit_calibration(pooled, settings.materials, oxide_nm, optics, rgb)
            if source is levels or (
                other.calibration.confidence > fitted.calibration.confidence + _WORTH_MORE
            ):
                fitted = other
            if fitted.calibration.confidence > _SURE:
                break
        if read is not None and fitted.calibration.confidence < read.confidence:
            fitted = SubstrateCalibration(rgb, read)
        found.append(fitted)
    return tuple(found)


def substrate_distance(
    wafer: SubstrateCalibration, substrate_rgb: tuple[float, float, float]
) -> float:
    """How unlike a photograph's substrate is to a calibration's: tint first, then brightness."""
    moved = drift(substrate_rgb, wafer.substrate_rgb)
    tint = abs(moved.red_over_green) + abs(moved.blue_over_green)
    return tint + 0.3 * abs(moved.brightness)


def clean_levels(terraces: Terraces) -> list[Level]:
    """Terraces fit to calibrate with: large, even, and mostly flat."""
    levels = []
    for k in range(terraces.area_px.size):
        flat_share = terraces.flat_px[k] / max(int(terraces.area_px[k]), 1)
        if (
            terraces.inner_px[k] >= 80
            and terraces.spread[k] < 0.02
            and flat_share > 0.35
            and terraces.saturated_px[k] < 0.5 * terraces.area_px[k]
        ):
            c = terraces.contrast_rgb[k]
            levels.append(Level((float(c[0]), float(c[1]), float(c[2])), int(terraces.area_px[k])))
    return levels


def checked_image(pixels: ImageRGB, pixel_size_nm: float, bit_depth: int) -> None:
    """Raise BadImage unless this can be analysed at all."""
    if not isinstance(pixels, np.ndarray):
        raise BadImage(f"need an array, got {type(pixels).__name__}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype not in (np.uint8, np.uint16):
        raise BadImage(f"need (h, w, 3) uint8 or uint16, got {pixels.shape} {pixels.dtype}")
    if min(pixels.shape[:2]) < 64:
        raise BadImage(f"need at least 64 x 64 px, got {pixels.shape[1]} x {pixels.shape[0]}")
    if not 1.0 <= pixel_size_nm <= 1e5:
        raise BadImage(f"pixel_size_nm must be in 1..100000, got {pixel_size_nm}")
    if not 1 <= bit_depth <= 8 * pixels.dtype.itemsize:
        raise BadImage(f"bit_depth {bit_depth} does not go with {pixels.dtype}")


def _searching(settings: DetectorSettings) -> tuple[_Prepared, _Prepared]:
    """To look for terraces under the nominal oxide, and under any of a range around it."""
    ready = _prepared(
        settings, SubstrateCalibration(UNKNOWN_RGB, nominal_calibration(settings.oxide_nm))
    )
    kinds = ready.kind_of_colour.copy()
    for oxide_nm in settings.oxide_nm * np.exp(_OXIDE_STEPS):
        other = SubstrateCalibration(UNKNOWN_RGB, nominal_calibration(round(float(oxide_nm), 1)))
        kinds[_prepared(settings, other).kind_of_colour == PLAUSIBLE] = PLAUSIBLE
    return ready, replace(ready, kind_of_colour=kinds)


def _prepared(settings: DetectorSettings, wafer: SubstrateCalibration) -> _Prepared:
    calibration = wafer.calibration
    optics = settings.optics
    optics = replace(optics, index_curves=(*optics.index_curves, *wafer.index_curves))
    if wafer.lamp_k is not None:
        optics = replace(optics, lamp_k=wafer.lamp_k)
    tables = tuple(colour_table(key, calibration, optics) for key in settings.materials)
    centres = colour_cell_centres()
    size = np.linalg.norm(centres, axis=1)
    plausible = np.zeros(len(centres), dtype=np.bool_)
    thinnest = 1.0
    for table in tables:
        thickness, distance = table.read(centres)
        near = distance < 0.08 + 1.5 * settings.off_ladder_relative * size
        plausible |= near & (thickness < settings.most_layers(table.ladder.layer_nm) + 2.0)
        thinnest = min(thinnest, float(np.linalg.norm(table.ladder.at(1.0))))
    off = float(np.clip(0.5 * thinnest, 0.012, 0.07))
    kinds = np.where(largest_channel(centres) < _DARK_CONTRAST, DARK, 0)
    kinds[plausible] = PLAUSIBLE
    chosen = frozenset(material for material, _ in optics.index_curves)
    return _Prepared(settings, optics, chosen, tables, kinds.astype(np.uint8), Cuts(off=off))


def _looked_at(frame: PreparedFrame, prepared: _Prepared) -> tuple[Sheet, Terraces] | None:
    """Terraces of a photograph; None where there are no candidates."""
    height, width = frame.pixels.shape[:2]
    background, full_scale = frame.background, frame.full_scale
    min_area_px = prepared.settings.min_area_um2 / (frame.pixel_size_nm * 1e-3) ** 2
    least_half_px = max(int(0.02 * min_area_px), 2)
    ceiling_rgb = _FULL_SHARE * full_scale / np.asarray(background.rgb, dtype=np.float32) - 1.0
    kinds = prepared.kinds_below(ceiling_rgb)
    boxes = candidate_boxes(
        frame.half,
        background,
        prepared.cuts.off,
        kinds,
        least_half_px,
        inverse_half=frame.inverse_half,
    )
    boxes = merged_boxes(boxes, width, height)
    if not boxes:
        return None
    sheet = packed_sheet(frame.pixels, background, boxes, full_scale)
    return sheet, find_terraces(sheet, prepared.tables, prepared.cuts)


def _detections(
    sheet: Sheet,
    terraces: Terraces,
    background: Background,
    full_scale: float,
    pixel_size_nm: float,
    calibration: Calibration,
    prepared: _Prepared,
) -> list[Detection]:
    """Those terraces that are wanted flakes."""
    count = terraces.area_px.size
    if count == 0:
        return []
    settings = prepared.settings
    min_area_px = settings.min_area_um2 / (pixel_size_nm * 1e-3) ** 2
    contrast = terraces.contrast_rgb
    thickness = np.zeros((len(prepared.tables), count), dtype=np.float32)
    distance = np.zeros_like(thickness)
    ladders = [[table.ladder] * count for table in prepared.tables]
    most = np.array([settings.most_layers(table.ladder.layer_nm) for table in prepared.tables])
    ceilings: dict[int, FloatArray] = {}
    for k, table in enumerate(prepared.tables):
        thickness[k], distance[k] = table.ladder.nearest(contrast)
    for j in np.flatnonzero(terraces.saturated_px > 0.3 * terraces.area_px).tolist():
        # A channel at its end says only "at least so much": the ladder is cut off there too.
        full = (1.0 + contrast[j]) * _background_at(background, sheet, terraces.boxes[j])
        ceiling = np.where(full >= _FULL_SHARE * full_scale, contrast[j], np.inf)
        if not np.isfinite(ceiling).any():
            continue
        ceilings[j] = ceiling.astype(np.float32)
        for k in range(len(ladders)):
            ladders[k][j] = ladders[k][j].cut_off(ceilings[j])
            thickness[k, j], distance[k, j] = (
                float(v[0]) for v in ladders[k][j].nearest(contrast[j])
            )
    # An uncalibrated ladder may be off by a fifth: what is off it by that much is not thrown away.
    doubt = 1.0 - calibration.confidence
    slack = 1.0 + _UNCALIBRATED_SLACK * doubt
    size = np.linalg.norm(contrast, axis=1)
    tolerance = slack * (settings.off_ladder_max + settings.off_ladder_relative * size)
    # A film of glue is half a layer of a crystal as faint as hBN; of others it is nothing.
    faint = np.array([np.linalg.norm(t.ladder.at(1.0)) < _FAINT for t in prepared.tables])
    least = 0.5 + _HALF_LAYERS * calibration.confidence * faint
    is_near = (distance < tolerance) & (thickness > least[:, None])
    fits = is_near & (thickness < most[:, None] + 0.5)
    keep = (
        (terraces.area_px >= min_area_px)
        & fits.any(axis=0)
        & (terraces.spread < settings.spread_max)
    )
    found = []
    for k in np.flatnonzero(keep).tolist():
        shape = _shape(sheet, terraces, k)
        if shape.area_px < min_area_px or shape.half_width_px < settings.half_width_min_px:
            continue
        # What noise leaves open in the median, and what the calibration does not know.
        systematic = 0.012 + 0.008 * doubt + (0.04 + 0.14 * doubt) * np.abs(contrast[k])
        independent = max(float(terraces.inner_px[k]) / _CORRELATED_PX, 1.0)
        noise = 1.25 * float(terraces.spread[k]) / np.sqrt(independent)
        sigma = np.hypot(systematic, noise).astype(np.float32)
        near = np.flatnonzero(is_near[:, k]).tolist()
        best, ranked = identified(
            contrast[k], sigma, [ladders[n][k] for n in near], int(most[near].max())
        )
        number = near[best]
        ladder = ladders[number][k]
        thickness_nm = float(thickness[number, k]) * ladder.layer_nm
        read = estimate_thickness(
            contrast[k],
            sigma,
            ladder.material,
            calibration,
            prepared.optics,
            is_curve_known=ladder.material in prepared.is_curve_known,
            ceiling_rgb=ceilings.get(k),
        )
        if thickness[number, k] > settings.max_layers + 0.5:
            thickness_nm = read.nm  # too thick to count: what all laboratories' curves say
        off_ladder = float(distance[number, k])
        score = _score(
            off_ladder=off_ladder / slack,
            layers_share=float(thickness[number, k]) / float(most[number]),
            solidity=shape.solidity,
            is_faint=bool(faint[number]),
            spread=float(terraces.spread[k]),
            grain=_grain(float(terraces.spread[k]), terraces.noise, float(size[k])),
            area_px=shape.area_px,
            flat_share=min(float(terraces.flat_px[k]) / shape.area_px, 1.0),
            evenness=float(terraces.evenness[k]),
        )
        if score < settings.score_min:
            continue
        height, width = shape.mask.shape
        is_first = shape.left == 0 or shape.top == 0
        is_last = (
            shape.left + width >= background.shape_px[1]
            or shape.top + height >= background.shape_px[0]
        )
        red, green, blue = (float(c) for c in contrast[k])
        found.append(
            Detection(
                mask=shape.mask,
                box_x_px=shape.left,
                box_y_px=shape.top,
                area_px=shape.area_px,
                centroid_x_px=shape.centroid_x_px,
                centroid_y_px=shape.centroid_y_px,
                outline_px=shape.outline_px,
                material=ladder.material,
                layers=ranked[0][0],
                layer_probabilities=ranked,
                thickness_nm=thickness_nm,
                contrast_rgb=(red, green, blue),
                off_ladder=off_ladder,
                score=score,
                touches_border=is_first or is_last,
                thickness_interval_nm=(
                    min(read.low_nm, thickness_nm),
                    max(read.high_nm, thickness_nm),
                ),
            )
        )
    return found


def _background_at(
    background: Background, sheet: Sheet, box: npt.NDArray[np.int32]
) -> npt.NDArray[np.float32]:
    """Digital numbers of the substrate in the middle of a box on the sheet, (3,)."""
    x, y, w, h = box.tolist()
    slot = sheet.slot_of(x, y)
    middle_x = x + int(sheet.offset_x[slot]) + w // 2
    middle_y = y + int(sheet.offset_y[slot]) + h // 2
    return np.asarray(background.window(middle_x, middle_y, 1, 1)[0, 0], dtype=np.float32)


def identified(
    contrast_rgb: FloatArray, sigma_rgb: FloatArray, ladders: Sequence[Ladder], max_layers: int
) -> tuple[int, tuple[tuple[int, float], ...]]:
    """Which ladder has the likeliest rung, and its layer numbers with probabilities, falling.

    All materials and layer numbers up to `max_layers` are equally likely beforehand, and a thicker
    crystal as likely as three of them together. What the probabilities lack to 1 belongs to the
    other materials and to thick crystals that happen to have this colour.
    """
    thin, thick = [], 0.0
    for ladder in ladders:
        every = int(ladder.thickness_layers[-1])
        logs = ladder.log_likelihoods(contrast_rgb, sigma_rgb, max(every, max_layers))
        # Relative to a perfect fit, but never all zero.
        likelihood = np.exp(np.maximum(logs, -80.0))
        thin.append(likelihood[:max_layers])
        if every > max_layers:
            thick += _THICK_RUNGS * float(likelihood[max_layers:].mean())
    shares = np.stack(thin)
    best = int(np.argmax(shares.max(axis=1)))
    shares = shares / (shares.sum() + thick)
    order = np.argsort(-shares[best], kind="stable")[:_NAMED_LAYERS]
    ranked = [(int(n) + 1, float(shares[best, n])) for n in order]
    return best, tuple(pair for pair in ranked if pair[1] > 1e-4 or pair == ranked[0])


def _grain(spread: float, noise: float, size: float) -> float:
    """What varies within a region beyond the substrate's noise, as a share of its contrast."""
    excess = np.sqrt(max(spread**2 - (_NOISE_SLACK * noise) ** 2, 0.0))
    return float(excess) / (size + _GRAIN_FLOOR)


def _score(
    *,
    off_ladder: float,
    layers_share: float,
    solidity: float,
    is_faint: bool,
    spread: float,
    grain: float,
    area_px: int,
    flat_share: float,
    evenness: float,
) -> float:
    """How surely a terrace is a flake, 0..1: on the ladder, calm, large, thin, compact.

    A terrace is flat away from its border, and its colour varies as the noise does; a field of
    specks averages to a thin flake's colour, and varies by a share of it. Films of glue and air's
    haze look like a faint crystal, and are ragged.
    """
    fit = np.exp(-0.5 * (off_ladder / 0.04) ** 2)
    calm = np.exp(-spread / 0.04) * np.sqrt(flat_share) * evenness**2
    calm *= np.exp(-0.5 * (grain / _GRAIN) ** 2)
    largeness = 1.0 - np.exp(-area_px / 500.0)
    thinness = 1.0 / (1.0 + np.exp((layers_share - 0.75) / 0.125))
    compact = min(1.0, solidity / 0.8) ** (3.0 if is_faint else 1.0)
    return float(fit * calm * largeness * thinness * compact)


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """One terrace's region in px of the photograph."""

    mask: npt.NDArray[np.bool_]
    left: int
    top: int
    area_px: int
    centroid_x_px: float
    centroid_y_px: float
    half_width_px: float
    solidity: float  # area over that of the convex hull
    outline_px: FloatArray


def _shape(sheet: Sheet, terraces: Terraces, k: int) -> _Shape:
    """The largest connected piece of a terrace."""
    x, y, w, h = terraces.boxes[k].tolist()
    padded = np.zeros((h + 2, w + 2), dtype=np.uint8)
    padded[1:-1, 1:-1] = terraces.labels[y : y + h, x : x + w] == k + 1
    contours, _ = cv2.findContours(padded, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if len(contours) > 1:
        _, pieces, stats, _ = cv2.connectedComponentsWithStats(padded, connectivity=8)
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        dx, dy, w, h = stats[largest, :4].tolist()
        padded = np.ascontiguousarray(
            (pieces == largest)[dy - 1 : dy + h + 1, dx - 1 : dx + w + 1].astype(np.uint8)
        )
        x, y = x + dx - 1, y + dy - 1
        contours, _ = cv2.findContours(padded, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(contours, key=len)
    hull_px = float(cv2.contourArea(cv2.convexHull(outline))) + 0.5 * len(outline)
    slot = sheet.slot_of(x, y)
    left, top = x + int(sheet.offset_x[slot]), y + int(sheet.offset_y[slot])
    mask = padded[1:-1, 1:-1] > 0
    moments = cv2.moments(padded, binaryImage=True)
    area_px = int(np.count_nonzero(mask))
    return _Shape(
        mask=mask,
        left=left,
        top=top,
        area_px=area_px,
        centroid_x_px=left - 1 + moments["m10"] / moments["m00"],
        centroid_y_px=top - 1 + moments["m01"] / moments["m00"],
        half_width_px=float(cv2.distanceTransform(padded, cv2.DIST_L2, 3).max()),
        solidity=min(area_px / max(hull_px, 1.0), 1.0),
        outline_px=(outline[:, 0, :] + np.array([left - 1, top - 1])).astype(np.float32),
    )
