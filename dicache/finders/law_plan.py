"""What the law of errors plans before anything was measured: no search, only a choice of how many steps compute.

In half the logarithm of signal over noise models turn nearly evenly (`dicache.planning.error_law`), so every gap has a
price before the first run. For every number of computed steps the best way through the timetable is the one that loses
least of what survives of the gaps' errors (V of `dicache.controllers.planned`); all sites follow it. It costs one
uncached run per prompt to know the timetable and what sites cost, and as many more as there are ways to say what they
lose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dicache.errors import ScheduleError
from dicache.finders.base import Finder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.planning.error_law import DECAY
from dicache.planning.law_plan import plan_of
from dicache.schedules.action_table import Table
from dicache.types import Action


@dataclass(frozen=True)
class Law(Finder):
    name: ClassVar[str] = "law"
    fill: Action = Action.EXTRAPOLATE
    longest: int = 8
    """Most steps skipped in a row."""
    last: int = 1
    """Steps that compute at the end."""
    decay: float = DECAY
    """Power of the signal's share with which errors count where ways are compared."""

    def __post_init__(self) -> None:
        if self.longest < 1 or self.last < 0 or not self.decay >= 0:
            raise ScheduleError(f"{self}: expected longest from 1, last and forgotten from 0 on.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        """From all computed to the fewest."""
        steps, sites = measurements.basis.shape
        plan = plan_of(measurements.timetable, self.longest, self.last, self.decay)
        masks = np.zeros((steps - plan.fewest() + 1, steps, sites), dtype=bool)
        for mask, computed in zip(masks, range(steps, plan.fewest() - 1, -1), strict=True):
            mask[plan.way(computed)] = True
        return [measurements.filled(mask, self.fill) for mask in masks]
