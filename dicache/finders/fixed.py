"""FORA (arXiv 2407.01425): every n-th step computes, from the first on, everywhere; between them the last values again,
with the current gates.

    step s computes    if and only if    s mod n = 0
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dicache.finders.base import Finder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.schedules.action_table import Table
from dicache.types import Action


@dataclass(frozen=True)
class FixedInterval(Finder):
    name: ClassVar[str] = "fixed"
    fill: Action = Action.REUSE
    """With what: reuse, or a line through the last two computed steps."""

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        return [
            measurements.filled(every(n, *measurements.basis.shape), self.fill)
            for n in range(1, measurements.basis.shape[0] + 1)
        ]


def every(interval: int, steps: int, sites: int) -> np.ndarray:
    """(T, S) bool: what computes."""
    return np.repeat(np.arange(steps)[:, None] % interval == 0, sites, axis=1)
