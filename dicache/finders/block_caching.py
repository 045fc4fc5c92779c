"""Block Caching (arXiv 2312.03209): every site has a schedule of its own and holds a value for as long as the changes
since then add up to no more than delta.

    sum over s = a .. b - 1 of  |o_{s+1} - o_s|_1 / |o_{s+1}|_1  <=  delta

With coefficients of `dicache.fit` for these sites what is held is corrected; with kind="scale_shift", as published, it
is scaled and shifted as values of the step usually have to be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dicache.approximators.fitted.coefficients import Fitted
from dicache.controllers.fixed import accumulated
from dicache.finders.base import Finder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.schedules.action_table import Table
from dicache.types import Action

THRESHOLDS = 200
"""How many are tried."""


@dataclass(frozen=True)
class BlockCaching(Finder):
    name: ClassVar[str] = "block_caching"
    fitted: Fitted | None = None

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        change = measurements.curves.l1[:-1, 0]
        fill = Action.REUSE if self.fitted is None else Action.CORRECT
        lowest, highest = max(float(change.min()), 1e-9), float(change.sum(0).max())
        deltas = [0.0, *np.geomspace(lowest, max(highest, lowest) * 1.01, THRESHOLDS)]
        return [measurements.filled(self.mask(change, delta), fill) for delta in deltas]

    @staticmethod
    def mask(change: np.ndarray, delta: float) -> np.ndarray:
        """(T, S) bool, from the changes between neighbouring steps, (T - 1, S)."""
        mask = np.zeros((len(change) + 1, change.shape[1]), dtype=bool)
        for site, column in enumerate(change.T):
            mask[sorted(accumulated([0.0, *column.tolist()], delta)), site] = True
        return mask
