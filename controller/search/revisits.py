"""Going back to the best at higher magnification: centred, focused, measured again."""

from __future__ import annotations

import asyncio
from collections import deque

import numpy as np

from controller.messages import CatalogueEntry, PlannedRevisit, RevisitsPlanned, Skipped
from controller.search.chip_focus import ChipFocus
from controller.search.darkroom import Darkroom
from controller.search.entries import catalogue_of
from controller.search.judging import judged
from controller.search.session import Session
from controller.search.tour import visit_order
from drivers.api import Objective


class Revisits:
    """Plans the tour of the best entries, or takes up an earlier session's, and makes it."""

    def __init__(self, session: Session, darkroom: Darkroom, focus: ChipFocus) -> None:
        self._session = session
        self._darkroom = darkroom
        self._focus = focus
        # How far entries were from their planned places: from lens to lens it is much the same.
        self._offset_um: deque[tuple[float, float]] = deque(maxlen=9)

    async def run(self) -> None:
        """Go back to the best at higher magnification: centred, focused, measured again."""
        session = self._session
        state, settings = session.state, session.settings
        loop = asyncio.get_running_loop()
        entries = await loop.run_in_executor(session.analyst, catalogue_of, state, settings.wanted)
        best = sorted((e for e in entries if e.rank), key=lambda e: e.rank)
        best = best[: settings.revisit.max_flakes]
        if not best:
            return
        objective = session.objectives.get(settings.revisit.objective)
        if objective is None:
            known = ", ".join(session.objectives)
            session.post(
                Skipped("revisits", f"no objective {settings.revisit.objective!r}; {known}")
            )
            return
        if state.revisits is None:
            here = session.motion.where
            order = visit_order(
                [(e.stage_x_um, e.stage_y_um) for e in best],
                (here.x.low_um, here.y.low_um),
                session.move_time,
            ).order
            planned = tuple(
                PlannedRevisit(best[i].entry_id, best[i].stage_x_um, best[i].stage_y_um)
                for i in order
            )
            session.post(RevisitsPlanned(planned, objective.name))
        plan = state.revisits
        if plan is None:
            return
        todo = [r for r in plan.revisits if r.entry_id not in state.revisited]
        if not todo:
            return
        session.enter("revisit", len(plan.revisits), len(plan.revisits) - len(todo))
        await self._focus.first_focus(objective.name)
        by_id = {entry.entry_id: entry for entry in entries}
        for revisit in todo:
            entry = by_id.get(revisit.entry_id)
            if entry is None:
                session.post(
                    Skipped(f"revisit of {revisit.entry_id}", "no longer in the catalogue")
                )
                continue
            await self._revisit_one(entry, revisit, objective)
            session.watcher.step("revisit", len(state.revisited), session.now_s())

    async def _revisit_one(
        self, entry: CatalogueEntry, planned: PlannedRevisit, objective: Objective
    ) -> None:
        session = self._session
        state = session.state
        offset_x_um, offset_y_um = (
            np.median(np.array(self._offset_um), axis=0) if self._offset_um else (0.0, 0.0)
        )
        x_um, y_um = planned.x_um + float(offset_x_um), planned.y_um + float(offset_y_um)
        for attempt in range(2):
            index = state.next_index("revisit")
            await self._focus.go(x_um, y_um, objective)
            if attempt == 0 and session.settings.focus.enabled:
                z_um, sigma_um = self._focus.expected_z_um(x_um, y_um, objective)
                focused = await self._focus.autofocus("revisit", x_um, y_um, z_um, sigma_um)
                if not focused.is_focused:
                    session.post(Skipped(f"focus at revisit of {entry.entry_id}", focused.reason))
            if not await (await self._darkroom.take("revisit", index)):
                continue
            revisited = judged(entry, state.analysed["revisit", index], index, (x_um, y_um))
            if (
                revisited.found
                and attempt == 0
                and revisited.centred_error_um > session.settings.revisit.centre_within_um
            ):
                self._offset_um.append(
                    (revisited.x_um - planned.x_um, revisited.y_um - planned.y_um)
                )
                x_um, y_um = revisited.x_um, revisited.y_um
                continue
            session.post(revisited)
            return
        if planned.entry_id not in state.revisited:
            session.post(Skipped(f"revisit of {entry.entry_id}", "its frame was lost twice"))
