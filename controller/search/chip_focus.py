"""Where the chip is in focus: measured here and there, believed everywhere between.

Every confident focus bends one surface over the chip (`controller.focusing.surface`), and that
surface says where focus is expected at any point, with any lens, and how sure that is; the safety
supervisor gets it as well. `go` is how the search reaches a point of the sample: in expected focus.

A focus far from where the chip is expected is not believed: it is dust.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from controller.errors import SearchFailed
from controller.focusing.loop import FocusResult, autofocus
from controller.focusing.policy import FocusTask
from controller.focusing.surface import FocusPoint, FocusSurface
from controller.geometry import axis_point_um, stage_for_point_um
from controller.messages import FocusMeasured, FocusPurpose
from controller.search.ports import Eyes
from controller.search.session import Session
from drivers.api import Frame, Objective

FOCUS_TRIES: Final = 5  # places tried when the field is empty
_DOUBT_SIGMAS: Final = 5.0  # of the surface's own, beyond which a focus is not believed
_DOUBT_DOF: Final = 0.75


class ChipFocus:
    """The focus surface of one chip, and the ways of measuring and using it."""

    def __init__(self, session: Session, eyes: Eyes) -> None:
        self._session = session
        self._eyes = eyes
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
    ) -> FocusResult:
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

        result = await autofocus(
            task,
            session.motion,
            observe,
            self._eyes.sharpness,
            self._eyes.estimator,
            source="focus",
        )
        estimate = result.estimate
        if result.is_focused and purpose in {"track", "revisit"}:
            # Dust and tape stand high above the chip, and where nothing else shows any structure
            # they are what a sweep finds.
            off_um = result.focus_z_um - expected_z_um
            if abs(off_um) > _DOUBT_SIGMAS * sigma_um + _DOUBT_DOF * task.depth_of_field_um:
                doubt = f"{off_um:+.2f} um from where the chip is expected: dust?"
                await session.motion.move_focus_um(expected_z_um, "focus", "from_above")
                result = replace(result, is_focused=False, focus_z_um=expected_z_um, reason=doubt)
        session.post(
            FocusMeasured(
                stage_x_um=x_um,
                stage_y_um=y_um,
                focus_z_um=result.focus_z_um,
                sigma_um=0.0 if estimate is None else estimate.sigma_um,
                is_confident=result.is_focused,
                reason=result.reason,
                objective=objective.name,
                frames=result.frames,
                at_s=session.now_s(),
                purpose=purpose,
                samples=tuple((r.focus_z_um, r.sharpness.value) for r in result.records),
            )
        )
        if result.is_focused:
            self._believe(session.state.focus_points[-1])
        return result

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
