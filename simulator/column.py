"""A scanning electron microscope without an event loop: a beam, a specimen, and `observe`.

The headless door of the simulated instrument, for training and benchmarks that look at thousands of
frames. `simulator.sem` puts lenses, stage and clock in front of the same column. Frame `n` of a
column is the same to the last bit whenever it is asked for, from the seed and `n` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from drivers.api import Pixels
from simulator.probe import BeamSettings, Probe
from simulator.scan import DetectorSettings, Scan, ScanSettings, dose_e_per_px, frame_of
from simulator.specimen import Specimen, SpecimenField, SpecimenSettings

_SPARE_PX = 8  # the field is drawn anew when the beam is further than this from its middle


class ColumnSettings(BaseModel):
    """A beam, what it scans, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(default=1, ge=0, le=2**31)
    height_px: int = Field(default=256, ge=16, le=8_192)
    width_px: int = Field(default=256, ge=16, le=8_192)
    pixel_size_nm: float = Field(default=5.0, gt=0.0, le=1e6)
    dwell_ns: float = Field(default=640.0, gt=0.0, le=1e9)  # 200 electrons a pixel at 50 pA
    most_blur_px: int = Field(default=112, ge=8, le=2_048)  # what lies further off is left out
    beam: BeamSettings = BeamSettings()
    scan: ScanSettings = ScanSettings()
    detector: DetectorSettings = DetectorSettings()
    specimen: SpecimenSettings = SpecimenSettings()

    @property
    def shape_px(self) -> tuple[int, int]:
        """(h, w)."""
        return self.height_px, self.width_px

    @property
    def depth_of_field_um(self) -> float:
        """Total: max(pixel, probe) / alpha."""
        return self.beam.depth_of_field_um(self.pixel_size_nm)

    @property
    def dose_e_per_px(self) -> float:
        """Electrons that one frame puts into a pixel."""
        return dose_e_per_px(self.beam.current_pa, self.dwell_ns)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a frame is taken and how long it dwells; `None`: as the settings say."""

    x_um: float = 0.0
    y_um: float = 0.0
    pixel_size_nm: float | None = None
    dwell_ns: float | None = None
    started_s: float | None = None  # None: frames follow one another without a pause
    drift_nm_per_s: tuple[float, float] = (0.0, 0.0)  # of the sample while the frame is taken


@dataclass(frozen=True, slots=True)
class Dose:
    """What one frame put into the sample: a rectangle of it, evenly."""

    x_um: float  # its middle
    y_um: float
    width_um: float
    height_um: float
    electrons_per_px: float
    electrons_per_um2: float


class DoseLedger:
    """Every frame's dose, and what any point of the sample has had by now."""

    def __init__(self) -> None:
        self._entries: list[Dose] = []

    def add(self, dose: Dose) -> None:
        """Count one frame."""
        self._entries.append(dose)

    @property
    def entries(self) -> tuple[Dose, ...]:
        """Frame by frame, in order."""
        return tuple(self._entries)

    @property
    def electrons_per_px(self) -> float:
        """Sum over all frames of what each put into its pixels."""
        return sum(each.electrons_per_px for each in self._entries)

    @property
    def electrons(self) -> float:
        """All that has reached the sample."""
        return sum(
            each.electrons_per_um2 * each.width_um * each.height_um for each in self._entries
        )

    def electrons_per_um2_at(self, x_um: float, y_um: float) -> float:
        """What one point of the sample has had."""
        return sum(
            each.electrons_per_um2
            for each in self._entries
            if abs(x_um - each.x_um) <= each.width_um / 2
            and abs(y_um - each.y_um) <= each.height_um / 2
        )


class Column:
    """Beam and specimen; `observe` is all that anybody needs."""

    def __init__(self, settings: ColumnSettings, specimen: Specimen | None = None) -> None:
        self.settings = settings
        self.specimen = Specimen(settings.specimen) if specimen is None else specimen
        self.frames_taken = 0
        self.ledger = DoseLedger()
        self._fields: dict[tuple[float, tuple[int, int]], SpecimenField] = {}

    def observe(
        self,
        defocus_um: float,
        stig_um: tuple[float, float] = (0.0, 0.0),
        *,
        number: int | None = None,
        place: Place | None = None,
    ) -> Pixels:
        """One frame, (h, w), read-only; counted in `frames_taken` and `ledger`.

        defocus_um: > 0 where the sample is further from the lens than best focus.
        stig_um: (x, y) of the astigmatism left in the beam, as in `simulator.probe`.
        number: decides the noise; None: one more than the last.
        """
        place = Place() if place is None else place
        number = self.frames_taken if number is None else number
        self.count(place)
        return self.picture(defocus_um, stig_um, number, place)

    def count(self, place: Place) -> None:
        """Enter one frame's dose into the ledger."""
        settings = self.settings
        dose_e = dose_e_per_px(settings.beam.current_pa, place.dwell_ns or settings.dwell_ns)
        pixel_um = (place.pixel_size_nm or settings.pixel_size_nm) * 1e-3
        self.frames_taken += 1
        self.ledger.add(
            Dose(
                x_um=place.x_um,
                y_um=place.y_um,
                width_um=settings.width_px * pixel_um,
                height_um=settings.height_px * pixel_um,
                electrons_per_px=dose_e,
                electrons_per_um2=dose_e / pixel_um**2,
            )
        )

    def picture(
        self, defocus_um: float, stig_um: tuple[float, float], number: int, place: Place
    ) -> Pixels:
        """What frame `number` looks like; counts nothing."""
        settings = self.settings
        pixel_nm = place.pixel_size_nm or settings.pixel_size_nm
        dwell_ns = place.dwell_ns or settings.dwell_ns
        field = self.field(place.x_um, place.y_um, pixel_nm)
        started_s = place.started_s
        if started_s is None:
            frame_s = Scan(settings.scan, settings.detector, dwell_ns).frame_s(settings.shape_px)
            started_s = number * frame_s
        shift_px = (
            (place.x_um - field.centre_x_um) * 1e3 / pixel_nm,
            (place.y_um - field.centre_y_um) * 1e3 / pixel_nm,
        )
        scan = Scan(
            settings.scan, settings.detector, dwell_ns, started_s, shift_px, place.drift_nm_per_s
        )
        probe = Probe(settings.beam, defocus_um, stig_um[0], stig_um[1])
        return frame_of(field, probe, scan, np.random.default_rng([settings.seed, number]))

    def field(self, x_um: float, y_um: float, pixel_size_nm: float) -> SpecimenField:
        """The field that holds (x, y), drawn when the beam has moved away from the last one."""
        settings = self.settings
        key = pixel_size_nm, settings.shape_px
        found = self._fields.get(key)
        spare_um = _SPARE_PX * pixel_size_nm * 1e-3
        if (
            found is None
            or max(abs(x_um - found.centre_x_um), abs(y_um - found.centre_y_um)) > spare_um
        ):
            margin_px = settings.most_blur_px + _SPARE_PX
            found = self.specimen.field(x_um, y_um, pixel_size_nm, settings.shape_px, margin_px)
            self._fields[key] = found
        return found
