"""Follow a table of actions that was found before the run (`dicache.schedules.schedule`), whatever skipping is quoted
at.

Where the table leaves a cell open, an online controller decides it, per sample: the schedule is then a prior that
samples deviate from, and the online controller sees the cells that the schedule computes as ones it had to compute.

A table belongs to the steps it was found on. A run with another step count, scheduler or time grid is refused, or, if
asked for, takes at every step the row whose time is nearest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from dicache.controllers.base import Controller, FinishedRun, refused
from dicache.errors import ScheduleError
from dicache.schedules.action_table import Table, repaired
from dicache.schedules.provenance import UNKNOWN, Provenance
from dicache.solvers.same_steps import differs
from dicache.types import Action, Decision, Grid, Quote, Reason, Rows, Site, Step, Timetable


class Followed(NamedTuple):
    """What one site remembers of a run."""

    samples: int
    spent: Rows
    gap: Rows
    """Steps skipped in a row so far, (B,)."""
    online: Any
    plan: Grid | None = None
    """(B, T) actions along the run's own steps, from its first decision on."""


@dataclass(frozen=True, eq=False)
class Scheduled(Controller[Followed]):
    tables: Table
    """(B, T, S), or (1, T, S) for all samples."""
    paths: tuple[str, ...]
    """Of the sites, (S,)."""
    sigmas: tuple[float, ...]
    """Of the steps, (T,)."""
    solver: str
    resample: bool = False
    """Whether a run with other steps takes the nearest row; refused otherwise."""
    online: Controller[Any] | None = None
    """Decides where the table does not."""
    longest: int | None = None
    """Most steps in a row that may be skipped where a cell was left open."""
    provenance: Provenance = UNKNOWN

    def at(self, site: Site, sites: int) -> "Scheduled":
        if site.path not in self.paths:
            raise ScheduleError(f"the schedule has no site {site.path!r}. Use it with the sites it was found for.")
        position = self.paths.index(site.path)
        online = None if self.online is None else self.online.at(site, sites)
        return replace(self, tables=self.tables[:, :, position : position + 1], paths=(site.path,), online=online)

    def init(self, samples: int) -> Followed:
        if len(self.tables) not in (1, samples):
            raise ScheduleError(f"there are {len(self.tables)} tables for {samples} samples. Expected one each.")
        zero = torch.zeros(samples, dtype=torch.float64)
        return Followed(samples, zero, zero.clone(), None if self.online is None else self.online.init(samples))

    def decide(self, quote: Quote, step: Step, state: Followed) -> tuple[Decision, Followed]:
        plan = self._plan(step, state.samples) if state.plan is None else state.plan
        action = plan[:, step.index]
        reason = torch.full_like(action, int(Reason.SCHEDULED))
        online = state.online
        if self.online is not None:
            too_long = state.gap >= (self.longest or step.total)
            shut = (action == Action.COMPUTE) | (action == Action.UNSTORED) | too_long
            decision, online = self.online.decide(refused(quote, shut), step, online)
            open_ = action == Action.DYNAMIC
            reason = torch.where(open_, decision.reason[:, 0], reason)
            action = torch.where(open_, decision.action[:, 0], action)
        skip = (action != Action.COMPUTE) & (action != Action.UNSTORED)
        spent = state.spent + torch.where(skip & quote.cost.isfinite(), quote.cost, 0.0)
        gap = torch.where(skip, state.gap + 1, 0.0)
        return Decision(action[:, None], reason[:, None], spent), Followed(state.samples, spent, gap, online, plan)

    def settle(self, ratio: Rows, computed: Rows, state: Followed) -> Followed:
        if self.online is None:
            return state
        return state._replace(online=self.online.settle(ratio, computed, state.online))

    def check(self, step: Step) -> None:
        """Raises ScheduleError where the run is not the schedule's."""
        timetable = step.timetable
        if timetable is None:
            raise ScheduleError(
                "the steps of this run are not known, so no schedule can be followed. Enable it on the "
                "pipeline, not on its denoiser, and with a scheduler that tells its sigmas."
            )
        reason = differs(timetable, self.sigmas, self.solver)
        if reason is not None and not self.resample:
            resampling = "" if self.provenance.bound else ", or ask for resampling: Schedule.load(path).resampled()"
            raise ScheduleError(f"the schedule does not fit this run: {reason}. Find one for it{resampling}.")

    def notes(self, run: FinishedRun) -> list[str]:
        timetable = run.facts.timetable
        moved = None if timetable is None else differs(timetable, self.sigmas, self.solver)
        return self.provenance.notes(moved, run.facts.guidance)

    def _plan(self, step: Step, samples: int) -> Grid:
        """The run's own table, (B, T)."""
        timetable = step.timetable
        assert timetable is not None, "checked when the run began"
        same = differs(timetable, self.sigmas, self.solver) is None
        table = self.tables[:, list(range(len(self.sigmas)) if same else nearest(timetable, self.sigmas))]
        table[:, timetable.begin :] = repaired(table[:, timetable.begin :])
        return torch.from_numpy(table[:, :, 0].astype(np.int64)).expand(samples, -1)


def nearest(timetable: Timetable, sigmas: Sequence[float]) -> list[int]:
    """For every step of a run the step of these whose time is nearest; of two the earlier."""
    there = np.array(sigmas)
    return [int(np.abs(there - sigma).argmin()) for sigma in timetable.sigmas]
