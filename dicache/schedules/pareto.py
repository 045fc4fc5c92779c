"""Schedules of one search, from expensive and exact to cheap and coarse, and which of them to take.

at(cost)         the most exact one that executes at most this share of the work, or the best by its score
within(budget)   the cheapest one that lost at most this much on the calibration prompts
scoring(least)   the cheapest one that scored at least this much there, of those that were found by an objective
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dicache.errors import ScheduleError
from dicache.files.card import sharing, write_card
from dicache.schedules import schedule_file
from dicache.schedules.action_table import affordable
from dicache.schedules.schedule import SCHEDULES, Schedule, load_schedules
from dicache.schedules.schedule_card import set_card


@dataclass(frozen=True, eq=False)
class ParetoSet:
    """Schedules of one search, from much work to little. Raises ScheduleError if there are none."""

    members: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise ScheduleError("a set of schedules is empty. Expected one or more.")
        object.__setattr__(self, "members", tuple(sorted(self.members, key=lambda s: -s.work)))

    def at(self, cost: float) -> Schedule:
        """The most exact one that executes at most this share of the uncached MACs. Raises ScheduleError if none
        does.
        """
        fitting = [s for s in self.members if affordable(s.work, cost)]
        if not fitting:
            least = self.members[-1].work
            raise ScheduleError(f"no schedule executes {cost:g} of the work or less. The least is {least:.3f}.")
        return min(fitting, key=lambda s: (s.loss, -s.work))

    def within(self, budget: float) -> Schedule:
        """The cheapest one whose error on the calibration prompts was at most `budget`. Raises ScheduleError if none
        is.
        """
        fitting = [s for s in self.members if s.error is not None and s.error <= budget]
        if not fitting:
            raise ScheduleError(f"no schedule kept to {budget:g} on the calibration prompts. Search at more work.")
        return min(fitting, key=lambda s: s.work)

    def scoring(self, least: float) -> Schedule:
        """The cheapest one that scored at least this much on the calibration prompts. Raises ScheduleError if none did,
        or they were not found by an objective.
        """
        fitting = [s for s in self.members if s.score is not None and s.score >= least]
        if not fitting:
            best = max((s.score for s in self.members if s.score is not None), default=None)
            said = "they have no scores" if best is None else f"the best is {best:g}"
            raise ScheduleError(f"no schedule scored {least:g} on the calibration prompts: {said}.")
        return min(fitting, key=lambda s: s.work)

    def front(self) -> "ParetoSet":
        """Without those that another one beats in both work and error, or score where they were found by one."""
        comparable = [s for s in self.members if math.isfinite(s.loss)]
        work, loss = np.array([(s.work, s.loss) for s in comparable], dtype=float).reshape(-1, 2).T
        no_worse = (work[:, None] <= work) & (loss[:, None] <= loss)
        beaten = np.asarray((no_worse & ~no_worse.T).any(0))
        return ParetoSet(tuple(s for s, worse in zip(comparable, beaten, strict=True) if not worse))

    def __repr__(self) -> str:
        """The front as a table, a line per schedule."""
        return "\n".join([f"ParetoSet of {len(self.members)}: work, error, letters", *map(_row, self.members)])

    def save(self, path: str | Path) -> None:
        """Write one JSON file. Raises ScheduleError where that is impossible."""
        schedule_file.save([schedule.content for schedule in self.members], Path(path), several=True)

    def share(self, folder: str | Path, *, base_model: str | None = None, prompts: str | None = None) -> None:
        """Write the schedules into a folder, as schedules.json with their coefficients, and a model card, README.md,
        with a row for each. `base_model` and `prompts` as for `Schedule.share`. Raises ScheduleError where that is
        impossible, or a README.md lies there that dicache did not write.
        """
        with sharing(ScheduleError, "set of schedules", Path(folder)):
            self.save(Path(folder) / SCHEDULES)
            card = set_card([schedule.content for schedule in self.members], prompts)
            write_card(Path(folder), card.text(["diffusion", "schedule"], base_model))

    @staticmethod
    def load(path: str | Path) -> "ParetoSet":
        """Read what `save` or `share` wrote: a file, a folder, or "user/repository" of the Hugging Face hub (with
        @revision behind it for another than its newest). Raises ScheduleError, whatever is wrong with the file.
        """
        return ParetoSet(tuple(load_schedules(Path(path), several=True)))


def _row(schedule: Schedule) -> str:
    error = "not measured" if schedule.error is None else f"{schedule.error:.4f}"
    shown = schedule.letters if schedule.table.shape[1] == 1 else f"{schedule.table.shape[1]} sites"
    score = "" if schedule.score is None else f"  scores {schedule.score:.4f}"
    return f"  {schedule.work:.3f}  {error}{score}  {shown}"
