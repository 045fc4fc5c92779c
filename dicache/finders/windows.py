"""PAB (arXiv 2408.12588): inside a window of the run attention is computed every n-th step only, cross-attention every
third n-th; outside the window, and in every other module, everything computes.

    site c of step s reuses    if and only if    s mod range_c != 0  and  begin <= s / T < end

Blocks and whole evaluations, of which PAB has none, follow the range of attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dicache.errors import ScheduleError
from dicache.finders.base import Finder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.schedules.action_table import Table
from dicache.types import Kind


@dataclass(frozen=True)
class Windows(Finder):
    name: ClassVar[str] = "windows"
    begin: float = 0.1
    end: float = 0.85
    cross: int = 3
    """How many times the range of attention cross-attention has."""

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= 1 or self.cross < 1:
            raise ScheduleError(f"{self}: expected 0 <= begin < end <= 1 and cross of 1 or more.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        steps, _ = measurements.basis.shape
        return [
            measurements.filled(self.mask(n, steps, [c.kind for c in measurements.basis.cells]))
            for n in range(1, steps + 1)
        ]

    def mask(self, interval: int, steps: int, kinds: Sequence[Kind]) -> np.ndarray:
        """(T, S) bool: what computes."""
        at = np.arange(steps)
        ranges = [{Kind.CROSS_ATTENTION: self.cross * interval, Kind.FEED_FORWARD: 1}.get(k, interval) for k in kinds]
        outside = (at < self.begin * steps) | (at >= self.end * steps)
        return np.array(outside[:, None] | (at[:, None] % np.array(ranges) == 0))
