"""SmoothCache (arXiv 2411.10510): one threshold on error curves that are averaged over all sites of a kind.

    i = 0;  while i < T:  the largest k <= K with E_kind(i, k) <= alpha:  i computes, the next k reuse, i += k + 1

with E(i, k) = |o_i - o_{i+k}|_1 / |o_{i+k}|_1 of uncached runs (`dicache.measuring.error_curves`). The first and the
last step compute. All sites of a kind follow one schedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dicache.errors import ScheduleError
from dicache.finders.base import Finder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.schedules.action_table import Table
from dicache.types import Action

THRESHOLDS = 200
"""Most that are tried."""


@dataclass(frozen=True)
class SmoothCache(Finder):
    name: ClassVar[str] = "smoothcache"
    longest: int = 3
    """K, most steps that reuse in a row."""
    fill: Action = Action.REUSE

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise ScheduleError(f"longest is {self.longest}. Expected 1 step or more.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        reach = measurements.curves.l1.shape[1]
        if self.longest > reach and reach < measurements.basis.shape[0] - 1:
            raise ScheduleError(f"longest is {self.longest}, curves reach {reach} steps. Use Calibration(longest=..).")
        curves = measurements.curves.l1[:, : self.longest]
        kinds = np.array([str(cell.kind) for cell in measurements.basis.cells])
        grouped = {kind: curves[:, :, kinds == kind].mean(2) for kind in np.unique(kinds)}
        masks = []
        for alpha in thresholds(np.stack(list(grouped.values()))):
            mask = np.ones(measurements.basis.shape, dtype=bool)
            for kind, curve in grouped.items():
                mask[:, kinds == kind] = scan(curve, alpha)[:, None]
            masks.append(mask)
        return [measurements.filled(mask, self.fill) for mask in masks]


def thresholds(values: np.ndarray) -> np.ndarray:
    """Those at which something changes: 0, what occurs, and beyond; thinned evenly."""
    finite = np.unique(values[np.isfinite(values)])
    if len(finite) > THRESHOLDS:
        finite = finite[np.linspace(0, len(finite) - 1, THRESHOLDS).round().astype(int)]
    return np.concatenate([[0.0], finite, [np.inf]])


def scan(curve: np.ndarray, alpha: float) -> np.ndarray:
    """Which steps compute, (T,) bool, from the curve of one kind, (T, K), nan beyond the run's end."""
    steps, longest = curve.shape
    mask, i = np.zeros(steps, dtype=bool), 0
    while i < steps:
        mask[i] = True
        fitting = [k for k in range(1, longest + 1) if i + k < steps and curve[i, k - 1] <= alpha]
        i += max(fitting, default=0) + 1
    mask[-1] = True
    return mask
