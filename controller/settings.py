"""The settings of a run: one frozen model per TOML section, checked before anything moves.

An unknown key, a wrong type or a number out of range ends the start with an error that names the
file, the key and what is allowed. Defaults live here and nowhere else. The sections `[instrument]`
(all keys but `driver`) and `[detector]` belong to the driver and the detector chosen; `app.py`
checks them against their own models with the same error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from controller.errors import BadSettings
from controller.focusing.policy import FocusSweepSettings
from controller.focusing.surface import FocusSurfaceSettings

Model = TypeVar("Model", bound=BaseModel)
Annotation: TypeAlias = Any  # a type, or one of typing's forms

_SHOWN_CHARACTERS = 120  # of a wrong value, in an error


class Section(BaseModel):
    """A TOML table: frozen, closed, finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunSettings(Section):
    """Where the run is kept and how it is paced."""

    name: str = Field(default="search", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    output_dir: str = "runs"
    # virtual and ideal: simulated instruments and replays only. Moves, settling and exposures cost
    # the instrument's time; computing costs its measured time (virtual) or nothing (ideal: then
    # the same seed gives the same run, to the bit).
    clock: Literal["real", "virtual", "ideal"] = "real"
    min_free_gib: float = Field(default=1.0, ge=0.0, le=10_000.0)


class InstrumentSettings(Section):
    """Which driver; every other key of the section is the driver's own."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    driver: Literal["simulated_optical", "simulated_sem", "simulated_tem", "replay"]

    def options(self) -> dict[str, Any]:
        """The driver's own keys."""
        return dict(self.model_extra or {})


class SafetySettings(Section):
    """What no path may exceed. `None` for a limit means: the device's own."""

    x_min_um: float | None = None
    x_max_um: float | None = None
    y_min_um: float | None = None
    y_max_um: float | None = None
    z_min_um: float | None = None
    z_max_um: float | None = None
    max_step_down_um: float = Field(default=120.0, gt=0.0, le=5_000.0)
    safe_lift_um: float = Field(default=150.0, ge=0.0, le=20_000.0)  # before the turret turns
    max_exposure_s: float = Field(default=30.0, gt=0.0, le=3_600.0)


class MotionSettings(Section):
    """How arrival is judged."""

    poll_s: float = Field(default=0.002, gt=0.0, le=1.0)
    margin_s: float = Field(default=1.0, gt=0.0, le=60.0)  # added to distance/speed: the deadline
    stage_tolerance_um: float = Field(default=2.0, gt=0.0, le=1_000.0)
    focus_tolerance_um: float = Field(default=0.3, gt=0.0, le=100.0)
    focus_overshoot_um: float = Field(default=4.0, ge=0.0, le=100.0)  # one-sided final approach
    halt_deadline_s: float = Field(default=0.5, gt=0.0, le=10.0)


class CameraSettings(Section):
    """How frames are taken and how the camera is mounted."""

    exposure_s: float = Field(default=0.01, gt=0.0, le=30.0)
    frame_timeout_s: float = Field(default=3.0, gt=0.0, le=120.0)  # beyond the exposure itself
    rotation_deg: Literal[0, 90, 180, 270] = 0
    flip_x: bool = False
    flip_y: bool = False
    keep_focus_frames: bool = False  # raw frames of autofocus too; their sharpness is always kept


class FocusSettings(Section):
    """Autofocus and the surface it feeds."""

    # False: the axis already stands in focus everywhere (a replay, a hardware autofocus).
    enabled: bool = True
    # few_frames: the networks, and the sweep where they do not know; sweep: the classical one only.
    method: Literal["few_frames", "sweep"] = "few_frames"
    start_z_um: float | None = None  # None: focus is looked for from where the axis stands
    start_sigma_um: float = Field(default=25.0, gt=0.0, le=5_000.0)  # how far off it may stand
    range_dof: float = Field(default=25.0, gt=0.0, le=200.0)  # few-frame focus: how far it may be
    seed_points: int = Field(default=4, ge=1, le=100)  # before the scan
    most_seed_points: int = Field(default=10, ge=1, le=100)  # where the chip is not as expected
    # During the scan: when the surface is less sure than this, or after so many tiles anyway ...
    refresh_sigma_dof: float = Field(default=0.35, gt=0.0, le=10.0)
    most_tiles_between: int = Field(default=200, ge=25, le=100_000)
    # ... but never more often than this.
    least_tiles_between: int = Field(default=25, ge=25, le=100_000)
    sweep: FocusSweepSettings = FocusSweepSettings()
    surface: FocusSurfaceSettings = FocusSurfaceSettings()


class InferenceSettings(Section):
    """Which networks look, and what runs them."""

    # auto: TensorRT where a GPU and a package for it are there; OpenVINO for a model that bears
    # coarser arithmetic; else onnxruntime.
    engine: Literal["auto", "tensorrt", "openvino", "onnx"] = "auto"
    # network: FlakeNet with the physics; physics: thin-film contrast alone; auto: the physics where
    # its calibration holds, else FlakeNet.
    flakes: Literal["auto", "network", "physics"] = "auto"


class RestoreSettings(Section):
    """Frames without their noise: in the live view, and on request before focus and detection."""

    # off: raw frames only. auto: the live network where its weights are, else the classical filter
    # of least estimated error on each frame. Networks pass a guard, or the best filter stands in.
    method: Literal[
        "off",
        "auto",
        "live",
        "quality",
        "two_step_wiener",
        "radial_wiener",
        "local_wiener",
        "nlm",
        "gaussian",
    ] = "auto"
    recursive: bool = True  # what stands still is averaged over frames, drift followed
    # What a network adds is asked of half of the counts every so many frames: it costs two more.
    twin_test_every_frames: int = Field(default=16, ge=1, le=100_000)
    # The frames of sweeps; the network of the few-frame focus knows noise, and is shown it.
    before_focus: bool = False
    # Worth it where a pixel has few electrons: see `scopeloop bench restore_uses`.
    before_detection: bool = False

    @model_validator(mode="after")
    def _somebody_restores(self) -> RestoreSettings:
        if self.method == "off" and (self.before_focus or self.before_detection):
            msg = 'method must not be "off" where before_focus or before_detection is true'
            raise ValueError(msg)
        return self


class OverviewSettings(Section):
    """The look at low magnification that finds the chip."""

    objective: str = "5x"
    overlap_ratio: float = Field(default=0.08, ge=0.0, le=0.5)
    # The rectangle looked at; its centre is where the stage stands at the start unless given.
    width_um: float = Field(default=9_000.0, gt=0.0, le=500_000.0)
    height_um: float = Field(default=9_000.0, gt=0.0, le=500_000.0)
    centre_x_um: float | None = None
    centre_y_um: float | None = None


class ScanSettings(Section):
    """The scan at working magnification."""

    objective: str = "20x"
    area: Literal["chip", "limits"] = "chip"  # limits: all that `[safety]` and the stage allow
    overlap_ratio: float = Field(default=0.06, ge=0.0, le=0.5)
    edge_margin_um: float = Field(default=30.0, ge=0.0, le=5_000.0)
    max_tiles: int | None = Field(default=None, ge=1)  # None: the whole chip


class WantedSettings(Section):
    """What the user is looking for; it ranks the catalogue and chooses the revisits."""

    materials: tuple[str, ...] = ("graphene",)
    layers: tuple[int, ...] = (1, 2, 3, 4)
    min_area_um2: float = Field(default=100.0, ge=0.0, le=1e8)
    max_area_um2: float | None = Field(default=None, gt=0.0)  # None: no upper bound
    max_aspect_ratio: float | None = Field(default=None, ge=1.0)  # None: any
    min_score: float = Field(default=0.1, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _layers_are_counts(self) -> WantedSettings:
        if not self.layers or min(self.layers) < 1:
            msg = "layers must be whole numbers from 1 up, at least one"
            raise ValueError(msg)
        if not self.materials:
            msg = "materials must name at least one"
            raise ValueError(msg)
        return self


class RevisitSettings(Section):
    """Going back to the best at higher magnification."""

    objective: str = "50x"
    max_flakes: int = Field(default=12, ge=0, le=10_000)
    centre_within_um: float = Field(default=5.0, gt=0.0, le=100.0)


class ReportSettings(Section):
    """What is written when the search is over."""

    map_um_per_px: float = Field(default=3.0, gt=0.05, le=100.0)
    max_cards: int = Field(default=60, ge=0, le=2_000)


class Settings(Section):
    """A whole configuration file."""

    run: RunSettings = RunSettings()
    instrument: InstrumentSettings
    safety: SafetySettings = SafetySettings()
    motion: MotionSettings = MotionSettings()
    camera: CameraSettings = CameraSettings()
    focus: FocusSettings = FocusSettings()
    inference: InferenceSettings = InferenceSettings()
    restore: RestoreSettings = RestoreSettings()
    overview: OverviewSettings = OverviewSettings()
    scan: ScanSettings = ScanSettings()
    detector: dict[str, Any] = Field(default_factory=dict)
    wanted: WantedSettings = WantedSettings()
    revisit: RevisitSettings = RevisitSettings()
    report: ReportSettings = ReportSettings()


def load_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The tables of a TOML file and its text. Raises BadSettings, naming the file."""
    wanted = "a readable TOML file in UTF-8"
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin a file with a mark
    except FileNotFoundError:
        raise BadSettings(str(path), "", "missing", wanted) from None
    except OSError as error:
        raise BadSettings(str(path), "", f"not readable ({error.strerror})", wanted) from error
    except UnicodeDecodeError as error:
        raise BadSettings(str(path), "", f"not UTF-8 (byte {error.start})", wanted) from error
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(str(path), "", f"not TOML ({error})", wanted) from error


def validated(model: type[Model], table: dict[str, Any], file: str, prefix: str = "") -> Model:
    """`table` as a `model`. Raises BadSettings with file, dotted key, value and what is allowed."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([*([prefix] if prefix else []), *(str(part) for part in first["loc"])])
        value = "missing" if first["type"] == "missing" else repr(first["input"])
        if len(value) > _SHOWN_CHARACTERS:
            value = value[:_SHOWN_CHARACTERS] + " ..."
        raise BadSettings(file, key, value, _allowed(model, first)) from None


def _allowed(model: type[BaseModel], error: ErrorDetails) -> str:
    """What would be accepted in the place of an error, range included."""
    place = tuple(error["loc"])
    match error["type"]:
        case "extra_forbidden":
            known = sorted(_fields_of(_annotation_at(model, place[:-1])))
            near = get_close_matches(str(place[-1]), known, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            return f"no such key{meant}; known here: {', '.join(known)}"
        case "missing":
            wanted = _annotation_at(model, place)
            if _origin(wanted) is Literal:
                return f"one of {', '.join(map(repr, get_args(wanted)))}"
            inside = _fields_of(wanted)
            return f"a table with {', '.join(inside)}" if inside else "a value; it has no default"
        case "model_type" | "model_attributes_type":
            return f"a table with {', '.join(_fields_of(_annotation_at(model, place)))}"
        case "value_error":
            return str(error["msg"]).removeprefix("Value error, ")
        case "string_pattern_mismatch":
            return f"text of the pattern {error['ctx']['pattern']}"
    said = str(error["msg"]).removeprefix("Input should be ")
    if error["type"].endswith("_parsing"):
        said = said.partition(",")[0]
    bounds = _bounds(_annotation_at(model, place))
    if not bounds:
        return said
    is_range = error["type"] in {"greater_than", "greater_than_equal", "less_than"}
    if is_range or error["type"] == "less_than_equal":
        said = "a number"
    return f"{said} {' and '.join(bounds)}"


def _annotation_at(model: type[BaseModel], place: Sequence[int | str]) -> Annotation:
    """The type, bounds included, of what stands at `place`; None where there is no such place."""
    here: Annotation = model
    for part in place:
        here = _step(here, part)
    return here


def _step(here: Annotation, part: int | str) -> Annotation:
    """One key or index further in."""
    for arm in _arms(here):
        if isinstance(arm, type) and issubclass(arm, BaseModel):
            field = arm.model_fields.get(str(part))
            if field is not None:
                bounds = tuple(field.metadata)
                return Annotated[(field.annotation, *bounds)] if bounds else field.annotation
        elif _origin(arm) in (tuple, list) and isinstance(part, int):
            inner = [each for each in get_args(arm) if each is not Ellipsis]
            return inner[min(part, len(inner) - 1)]
    return None


def _origin(annotation: Annotation) -> object:
    return get_origin(annotation)


def _arms(annotation: Annotation) -> list[Annotation]:
    """The alternatives of a union, without their annotations."""
    if _origin(annotation) is Annotated:
        return _arms(get_args(annotation)[0])
    if _origin(annotation) in (Union, UnionType):
        return [arm for each in get_args(annotation) for arm in _arms(each)]
    return [annotation]


def _fields_of(annotation: Annotation) -> list[str]:
    """The keys of a table, in the order of the model."""
    for arm in _arms(annotation):
        if isinstance(arm, type) and issubclass(arm, BaseModel):
            return list(arm.model_fields)
    return []


def _bounds(annotation: Annotation) -> list[str]:
    """The range of a number in words: [">= 0", "<= 30"]."""
    if _origin(annotation) in (Union, UnionType):
        return [bound for arm in get_args(annotation) for bound in _bounds(arm)]
    if _origin(annotation) is not Annotated:
        return []
    flat: list[object] = []
    for each in get_args(annotation)[1:]:
        flat += each.metadata if isinstance(each, FieldInfo) else [each]
    return [
        f"{sign} {bound:.12g}"
        for sign, name in ((">", "gt"), (">=", "ge"), ("<", "lt"), ("<=", "le"))
        for each in flat
        if (bound := getattr(each, name, None)) is not None
    ]


def load_settings(path: Path) -> tuple[Settings, str]:
    """A configuration file and its text."""
    tables, text = load_toml(path)
    return validated(Settings, tables, str(path)), text
