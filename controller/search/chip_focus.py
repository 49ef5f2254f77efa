"""Where the chip is in focus: measured here and there, believed everywhere between.

Every confident focus bends one surface over the chip (`controller.focusing.surface`), and that
surface says where focus is expected at any point, with any lens, and how sure that is; the safety
supervisor gets it as well. `go` is how the search reaches a point of the sample: in expected focus.

A focus far from where the chip is expected is not believed: it is dust.
"""

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import replace
from typing import Final

from controller.errors import SearchFailed
from controller.focusing.carried import KnownBlur
from controller.focusing.either import Classical, EitherResult, focus_either
from controller.focusing.few_frames import FewFrames
from controller.focusing.optics import FocusOptics, focus_optics
from controller.focusing.policy import FocusTask
from controller.focusing.surface import FocusPoint, FocusSurface
from controller.geometry import axis_point_um, pixel_to_stage_um, stage_for_point_um
from controller.messages import FocusMeasured, FocusPurpose
from controller.search.ports import Eyes
from controller.search.session import Session
from drivers.api import Frame, Objective
from inference.focus.acnet import ACNet, Limits
from inference.focus.likelihood import Prior
from inference.focus.spectrum import SIDE_PX

FOCUS_TRIES: Final = 5  # places tried when the field is empty
_DOUBT_SIGMAS: Final = 5.0  # of the surface's own, beyond which a focus is not believed
_DOUBT_DOF: Final = 0.75
_BELOW_RATIO: Final = 4.0
_FIELD_DOF: Final = 0.06  # one sigma of what one square of a field says about a point of the chip
# Of the few-frame focus, in its own units: see controller.focusing.optics.
_MOST_FRAMES: Final = 8  # then the sweep: it needs no more than that where focus is expected
_NEAR_PROBE, _FAR_PROBE = 4.0, 10.0
_LEAST_RANGE: Final = 40.0  # a wider one costs no frame; a bent chip surprises its surface
_WINDOW_PX, _FAR_WINDOW_PX = 512, 1_024
_FAR_UNITS: Final = 40.0
_LEAST_PRESENCE: Final = 25.0  # below, shading and haze are all there is: see bench search


class ChipFocus:
    """The focus surface of one chip, and the ways of measuring and using it."""

    def __init__(self, session: Session, eyes: Eyes, thread: Executor | None = None) -> None:
        """thread: where the networks look at frames; None: the loop's default executor."""
        self._session = session
        self._eyes = eyes
        self._thread = thread
        self._known_blur: dict[str, KnownBlur] = {}  # by objective
        self._surface: FocusSurface | None = None

    @property
    def surface(self) -> FocusSurface | None:
        """None: nothing was measured yet."""
        return self._surface

    async def first_focus(self, objective_name: str) -> None:
        """Select the lens and find focus from scratch, or take up the surface of earlier facts."""
        session = self._session
        settings = session.settings.focus
        if self._surface is None:
            for point in session.state.focus_points:
                if point.is_confident:
                    self._believe(point)
        if self._surface is None and not settings.enabled:
            self._trust_start()
        await session.motion.select_objective(objective_name, "search")
        if self._surface is not None:
            return
        here = session.motion.where
        objective = session.objective()
        start_z_um = here.z.low_um if settings.start_z_um is None else settings.start_z_um
        width_um, _ = session.field_um(objective)
        tries: list[tuple[float, float]] = [(0.0, 0.0)]
        tries += [(0.7, 0.0), (-0.7, 0.0), (0.0, 0.7), (0.0, -0.7)]
        reasons = []
        for right, up in tries[:FOCUS_TRIES]:
            x_um, y_um = here.x.low_um + right * width_um, here.y.low_um + up * width_um
            await session.motion.move_stage_um(x_um, y_um, "search")
            at_x_um, at_y_um = axis_point_um(x_um, y_um, objective)
            result = await self.autofocus(
                "overview", at_x_um, at_y_um, start_z_um, settings.start_sigma_um
            )
            if result.is_focused:
                return
            reasons.append(result.reason)
        raise SearchFailed(f"no focus at {len(reasons)} places; the last: {reasons[-1]}")

    async def go(self, x_um: float, y_um: float, objective: Objective) -> None:
        """Bring a sample point onto the axis, in expected focus, coming down on it last."""
        z_um, _ = self.expected_z_um(x_um, y_um, objective)
        stage_x_um, stage_y_um = stage_for_point_um(x_um, y_um, objective)
        await self._session.motion.move_to_um(
            stage_x_um, stage_y_um, z_um, "search", focus_approach="from_above"
        )

    def expected_z_um(self, x_um: float, y_um: float, objective: Objective) -> tuple[float, float]:
        """Best focus there with `objective`, and one sigma."""
        if self._surface is None:
            raise SearchFailed("no focus was found anywhere on the chip")
        expected = self._surface.at(x_um, y_um, self._session.now_s())
        return expected.z_um + objective.parfocal_z_um, expected.sigma_um

    async def autofocus(
        self,
        purpose: FocusPurpose,
        x_um: float,
        y_um: float,
        expected_z_um: float,
        sigma_um: float,
    ) -> EitherResult:
        """Focus where the stage stands; (x, y) is the sample point on the axis."""
        session = self._session
        objective = session.objective()
        envelope = session.supervisor.envelope
        floor_um = session.supervisor.floor_z_um(session.motion.where)
        task = FocusTask(
            start_z_um=session.motion.where.z.low_um,
            expected_z_um=expected_z_um,
            sigma_um=sigma_um,
            depth_of_field_um=objective.depth_of_field_um(),
            min_z_um=max(envelope.z.min_um, floor_um),
            max_z_um=envelope.z.max_um,
            settings=session.settings.focus.sweep,
        )

        async def observe() -> Frame:
            return await session.stream.snap(
                session.motion, session.light("focus"), session.settings.camera.frame_timeout_s
            )

        optics = focus_optics(session.instrument, objective)
        result = await focus_either(
            task,
            session.motion,
            observe,
            self._few_frames(task, optics, objective),
            Classical(self._eyes.sharpness, self._eyes.estimator),
            thread=self._thread,
        )
        z_um = result.focus_z_um
        if result.is_focused:
            self._learn(result, optics, objective)
            x_um, y_um = self._looked_at_um(result, x_um, y_um, objective)
        if result.is_focused and purpose in {"track", "revisit"}:
            # Dust and tape stand high above the chip, and where nothing else shows any structure
            # they are what a focus finds.
            expected_z_um, sigma_um = self.expected_z_um(x_um, y_um, objective)
            off_um = z_um - expected_z_um
            most_um = _DOUBT_SIGMAS * sigma_um + _DOUBT_DOF * task.depth_of_field_um
            # Nothing lies under the chip: below, it is the chip that is bent more than expected.
            if not -_BELOW_RATIO * most_um <= off_um <= most_um:
                doubt = f"{off_um:+.2f} um from where the chip is expected: dust?"
                await session.motion.move_focus_um(task.expected_z_um, "focus", "from_above")
                result = replace(
                    result, is_focused=False, focus_z_um=task.expected_z_um, reason=doubt
                )
        sigma_um = result.sigma_um if math.isfinite(result.sigma_um) else 0.0
        if result.method == "few_frames" and sigma_um > 0.0:
            sigma_um = math.hypot(sigma_um, _FIELD_DOF * task.depth_of_field_um)
        session.post(
            FocusMeasured(
                stage_x_um=x_um,
                stage_y_um=y_um,
                focus_z_um=result.focus_z_um,
                sigma_um=sigma_um,
                is_confident=result.is_focused,
                reason=result.reason,
                objective=objective.name,
                frames=result.frames,
                at_s=session.now_s(),
                purpose=purpose,
                samples=result.samples,
                method=result.method,
                doubt=result.doubt,
            )
        )
        if result.is_focused:
            self._believe(session.state.focus_points[-1])
        return result

    # --- the networks ----------------------------------------------------------------------

    def _few_frames(
        self, task: FocusTask, optics: FocusOptics, objective: Objective
    ) -> FewFrames | None:
        """The few-frame focus of this task; None: not asked for, or the frames are too small."""
        settings, aenet = self._session.settings.focus, self._eyes.aenet
        is_large = min(self._session.shape_px) >= SIDE_PX
        if settings.method != "few_frames" or aenet is None or not is_large:
            return None
        # As far as a sweep would look, and from where the lens stands.
        sweep, unit_um = task.settings, optics.unit_um
        least_um = sweep.least_half_range_dof * task.depth_of_field_um
        most_um = sweep.most_half_range_dof * task.depth_of_field_um
        half_um = min(max(sweep.range_sigmas * task.sigma_um, least_um), most_um)
        reach_um = half_um + abs(task.expected_z_um - task.start_z_um)
        range_units = max(reach_um / unit_um, _LEAST_RANGE)
        prior = Prior(range_dof=range_units, blur_px_per_dof=optics.blur_px_per_unit)
        known = self._known_blur.get(objective.name, KnownBlur())
        limits = Limits(
            most_frames=_MOST_FRAMES,
            most_frames_low_dose=_MOST_FRAMES,
            lowest_z_dof=(task.min_z_um - task.start_z_um) / unit_um,
            highest_z_dof=(task.max_z_um - task.start_z_um) / unit_um,
            probe_step_dof=min(_FAR_PROBE, _NEAR_PROBE + 0.1 * reach_um / unit_um),
            wide_ratio=1.0,
            least_presence=_LEAST_PRESENCE,
        )
        return FewFrames(
            aenet,
            ACNet(limits, known.carried_into(prior)),
            unit_um,
            window_px=_FAR_WINDOW_PX if range_units > _FAR_UNITS else _WINDOW_PX,
        )

    def _learn(self, result: EitherResult, optics: FocusOptics, objective: Objective) -> None:
        """Carry over what a verified few-frame focus says of this lens's blur."""
        few = result.few
        if few is not None and few.is_focused and few.belief is not None:
            known = self._known_blur.get(objective.name, KnownBlur())
            learnt = known.with_belief(few.belief, optics.blur_px_per_unit)
            self._known_blur[objective.name] = learnt

    def _looked_at_um(
        self, result: EitherResult, x_um: float, y_um: float, objective: Objective
    ) -> tuple[float, float]:
        """The sample point that was focused on: the middle of the window, where there was one."""
        few = result.few
        if few is None or not few.is_focused or few.window is None:
            return x_um, y_um
        session, window = self._session, few.window
        half = (window.side_px - 1) / 2.0
        xs_um, ys_um = pixel_to_stage_um(
            window.col + half,
            window.row + half,
            few.steps[-1].frame.pose,
            objective,
            session.shape_px,
            session.geometry,
        )
        return float(xs_um), float(ys_um)

    def _believe(self, point: FocusMeasured) -> None:
        """Let a confident focus shape the surface and the safety floor."""
        session = self._session
        objective = session.objectives[point.objective]
        session.supervisor.confirm_focus(
            point.stage_x_um, point.stage_y_um, point.focus_z_um, point.objective
        )
        reference_z_um = point.focus_z_um - objective.parfocal_z_um
        if self._surface is None:
            self._surface = self._flat_surface(reference_z_um)
        self._surface = self._surface.with_point(
            FocusPoint(
                point.stage_x_um, point.stage_y_um, reference_z_um, point.sigma_um, point.at_s
            )
        )
        surface, at_s = self._surface, point.at_s
        session.supervisor.set_surface(lambda x_um, y_um: surface.at(x_um, y_um, at_s).z_um)

    def _trust_start(self) -> None:
        """Without autofocus the user's word is that the lens stands in focus now."""
        session = self._session
        here, objective = session.motion.where, session.objective()
        z_um = here.z.low_um
        session.supervisor.confirm_focus(here.x.low_um, here.y.low_um, z_um, objective.name)
        self._surface = self._flat_surface(z_um - objective.parfocal_z_um)

    def _flat_surface(self, reference_z_um: float) -> FocusSurface:
        """What is expected before anything was measured."""
        session = self._session
        chip = session.chip_polygon()
        x_min, y_min, x_max, y_max = chip.bounds
        return FocusSurface(
            session.settings.focus.surface,
            chip.centroid.x,
            chip.centroid.y,
            max(x_max - x_min, y_max - y_min) / 2,
            reference_z_um,
            max(session.settings.focus.start_sigma_um, 1.0),
        )
