"""The settings of a run: one frozen model per TOML section, checked before anything moves.

An unknown key, a wrong type or a number out of range ends the start with an error that names the
file, the key and what is allowed. Defaults live here and nowhere else. The sections `[instrument]`
(all keys but `driver`) and `[detector]` belong to the driver and the detector chosen; `app.py`
checks them against their own models with the same error.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from controller.errors import BadSettings
from controller.focusing.policy import FocusSweepSettings
from controller.focusing.surface import FocusSurfaceSettings

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A TOML table: frozen, closed, finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunSettings(Section):
    """Where the run is kept and how it is paced."""

    name: str = Field(default="search", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    output_dir: str = "runs"
    clock: Literal["real", "virtual"] = "real"  # virtual: simulated instruments only
    min_free_gib: float = Field(default=1.0, ge=0.0, le=10_000.0)


class InstrumentSettings(Section):
    """Which driver; every other key of the section is the driver's own."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    driver: Literal["simulated_optical", "replay"]

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
    start_z_um: float | None = None  # None: focus is looked for from where the axis stands
    start_sigma_um: float = Field(default=25.0, gt=0.0, le=5_000.0)  # how far off it may stand
    seed_points: int = Field(default=4, ge=1, le=100)  # before the scan
    # During the scan: when the surface is less sure than this, or after so many tiles anyway ...
    refresh_sigma_dof: float = Field(default=0.35, gt=0.0, le=10.0)
    most_tiles_between: int = Field(default=200, ge=25, le=100_000)
    # ... but never more often than this.
    least_tiles_between: int = Field(default=25, ge=25, le=100_000)
    sweep: FocusSweepSettings = FocusSweepSettings()
    surface: FocusSurfaceSettings = FocusSurfaceSettings()


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
    min_score: float = Field(default=0.2, ge=0.0, le=1.0)

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
    overview: OverviewSettings = OverviewSettings()
    scan: ScanSettings = ScanSettings()
    detector: dict[str, Any] = Field(default_factory=dict)
    wanted: WantedSettings = WantedSettings()
    revisit: RevisitSettings = RevisitSettings()
    report: ReportSettings = ReportSettings()


def load_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The tables of a TOML file and its text. Raises BadSettings, naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadSettings(str(path), "", "", "a readable TOML file; there is none here") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(str(path), "", str(error), "a readable UTF-8 TOML file") from error
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(str(path), "", str(error), "valid TOML") from error


def validated(model: type[Model], table: dict[str, Any], file: str, prefix: str = "") -> Model:
    """`table` as a `model`. Raises BadSettings with file, dotted key, value and what is allowed."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([*([prefix] if prefix else []), *(str(part) for part in first["loc"])])
        allowed = first["msg"]
        if first["type"] == "extra_forbidden":
            known = sorted(_fields_at(model, tuple(first["loc"][:-1])))
            allowed = f"no such key; known here: {', '.join(known)}"
        value = "" if first["type"] == "missing" else repr(first["input"])
        raise BadSettings(file, key, value, allowed) from None


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """The keys known in the table at `location`, for the error message."""
    here: Any = model
    for part in location:
        if not (isinstance(here, type) and issubclass(here, BaseModel)):
            return set()
        found = here.model_fields.get(str(part))
        here = None if found is None else found.annotation
        arms = [a for a in getattr(here, "__args__", ()) if isinstance(a, type)]
        here = next((a for a in arms if issubclass(a, BaseModel)), here)
    if isinstance(here, type) and issubclass(here, BaseModel):
        return set(here.model_fields)
    return set()


def load_settings(path: Path) -> tuple[Settings, str]:
    """A configuration file and its text."""
    tables, text = load_toml(path)
    return validated(Settings, tables, str(path)), text
