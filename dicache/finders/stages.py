"""Delta-DiT (arXiv 2406.01125): what a share of the blocks adds is held between full steps, of the rear ones while the
outline forms and of the front ones after that.

    step s before the gate reuses the last share of the sites, after it the first, unless s mod n = 0
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dicache.errors import ScheduleError
from dicache.finders.base import Finder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.schedules.action_table import Table


@dataclass(frozen=True)
class Stages(Finder):
    name: ClassVar[str] = "stages"
    share: float = 0.75
    """Of the sites, that is held."""
    gate: float = 0.5
    """Share of the steps before the change from rear to front."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0 <= self.gate <= 1:
            raise ScheduleError(f"{self}: expected a share above 0 and at most 1, and a gate from 0 to 1.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        steps, sites = measurements.basis.shape
        return [measurements.filled(self.mask(n, steps, sites)) for n in range(1, steps + 1)]

    def mask(self, interval: int, steps: int, sites: int) -> np.ndarray:
        """(T, S) bool: what computes. Sites are in the order of execution."""
        count, site, at = round(self.share * sites), np.arange(sites), np.arange(steps)[:, None]
        resting = np.where(at < round(self.gate * steps), site >= sites - count, site < count)
        return np.array(~resting | (at % interval == 0))
