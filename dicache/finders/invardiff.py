"""InvarDiff (arXiv 2512.05134): what changed little compared with the change before is reused.

    rate of step i = |F_i - F_{i-1}|_1 / |F_{i-1} - F_{i-2}|_1          reuse    if and only if    rate < its quantile q

First for whole steps, by the denoiser's output; then, on runs that follow the steps' plan, for every module among the
steps that are left, with a quantile of its own per kind of site. A step that is reused reuses all its modules.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from dicache.api import enable
from dicache.errors import ScheduleError
from dicache.extension import residual_sums
from dicache.finders.base import Finder
from dicache.measuring.recording import CallRecord, LongHistory, Recorder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.schedules.action_table import Table
from dicache.schedules.setting import config_of
from dicache.sites import Evaluation


@dataclass(frozen=True)
class InvarDiff(Finder):
    name: ClassVar[str] = "invardiff"
    modules: float = 0.33
    """Quantile of modules over that of steps."""
    plans: int = 12
    """How many quantiles of steps are tried; each takes a run of all prompts where sites lie inside the denoiser."""

    def __post_init__(self) -> None:
        if not 0 <= self.modules <= 1 or self.plans < 1:
            raise ScheduleError(f"{self}: expected modules from 0 to 1 and plans of 1 or more.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        evaluations = measurements.calibration.on(measurements.pipe, Evaluation())
        change = evaluations.curves.l1[:-1, 0, 0] * evaluations.curves.size[1:, 0]
        tables = []
        for q in np.linspace(0.0, 0.95, self.plans):
            due = ~low(rates(change), q)
            mask = np.repeat(due[:, None], measurements.basis.shape[1], axis=1)
            mask = self._within(measurements, mask, q) if measurements.inside_denoiser and q else mask
            tables.append(measurements.filled(mask))
        return tables

    def _within(self, measurements: ScheduleMeasurements, mask: np.ndarray, q: float) -> np.ndarray:
        """The same with modules reused too at the steps that compute."""
        due, kinds = np.flatnonzero(mask[:, 0]), np.array([str(cell.kind) for cell in measurements.basis.cells])
        change = changes(measurements, measurements.filled(mask))[due]
        rate = np.full(change.shape, np.inf)
        rate[2:] = change[2:] / np.maximum(change[1:-1], np.finfo(float).tiny)
        inside = mask.copy()
        for kind in np.unique(kinds):
            of_kind = rate[:, kinds == kind]
            finite = of_kind[np.isfinite(of_kind)]
            if len(finite):
                inside[np.ix_(due, kinds == kind)] = ~(of_kind < np.quantile(finite, self.modules * q))
        return inside


def rates(change: np.ndarray) -> np.ndarray:
    """(T,) from the changes between neighbouring steps, (T - 1,); inf where none is known."""
    rate = np.full(len(change) + 1, np.inf)
    rate[2:] = change[1:] / np.maximum(change[:-1], np.finfo(float).tiny)
    return rate


def low(rate: np.ndarray, quantile: float) -> np.ndarray:
    """Which are below their quantile, bool."""
    finite = rate[np.isfinite(rate)]
    return np.asarray(rate < np.quantile(finite, quantile)) if len(finite) else np.zeros(len(rate), dtype=bool)


def changes(measurements: ScheduleMeasurements, table: Table) -> np.ndarray:
    """|F - F'|_1 of every site between a computed step and the computed one before, on runs that follow the table,
    (T, S); the mean over rows, branches and prompts, 0 where there is none.
    """
    total, count = np.zeros(measurements.basis.shape), np.zeros(measurements.basis.shape)
    config = replace(config_of(measurements.basis, table[None]), approximators=(LongHistory(2),))

    def read(call: CallRecord) -> None:
        for site, values in call.sites:
            if len(values) > 1 and values[0].steps_ago == 0:
                sums = residual_sums(values[0].output, values[1].output)[:, 0].double().cpu().numpy()
                total[call.step.index, site.index] += sums.sum()
                count[call.step.index, site.index] += len(sums)

    with enable(measurements.pipe, config=config) as cache, torch.no_grad():
        with Recorder(cache).calls(measurements.denoiser, read):
            for start in range(0, measurements.prompts, measurements.calibration.batch):
                measurements.drawer.draw(range(measurements.prompts)[start : start + measurements.calibration.batch])
    return total / np.maximum(count, 1)
