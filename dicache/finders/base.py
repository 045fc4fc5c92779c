"""The protocol of a finder. It proposes tables; which of them is the answer is decided here, by work known to the MAC
and errors measured from end to end on the calibration prompts.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np

from dicache._version import __version__
from dicache.approximators.fitted.coefficients import Fitted
from dicache.errors import ScheduleError
from dicache.measuring.schedule_measurements import Calibration, ScheduleMeasurements
from dicache.schedules.action_table import Table, repaired
from dicache.schedules.pareto import ParetoSet
from dicache.schedules.schedule import Origin, Schedule
from dicache.schedules.setting import Basis
from dicache.sites import Sites
from dicache.types import Action

MOST = 32
"""Tables that are measured only to choose from them; more are thinned, evenly by their work."""


class Finder(ABC):
    name: ClassVar[str]
    measures: ClassVar[bool] = False
    """Whether the tables it proposes were measured on the way, so that all of them are chosen from."""

    @abstractmethod
    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        """Candidates, (T, S) each. `cost` is the share of the work that is wanted; None for the whole range."""

    @property
    def coefficients(self) -> Fitted | None:
        """What cells that are corrected are corrected with."""
        return None

    def check(self, sites: Sites, budget: float | None, cost: float | None) -> None:
        """Raises ScheduleError for what it cannot be asked for, before anything is measured."""
        if budget is not None and cost is not None:
            raise ScheduleError("budget and cost were both given. Give one of them, or none for the whole front.")
        if cost is not None and not 0 < cost <= 1:
            raise ScheduleError(f"cost is {cost!r}. Expected a share of the uncached work above 0 and at most 1.")
        if budget is not None and not 0 <= budget < math.inf:
            raise ScheduleError(f"budget is {budget!r}. Expected a relative error of the final latent from 0 on.")

    def find(
        self,
        pipe: Any,  # noqa: ANN401
        sites: Sites,
        calibration: Calibration,
        *,
        budget: float | None = None,
        cost: float | None = None,
        seed: int = 0,
    ) -> Schedule | ParetoSet:
        """With `cost`, the schedule that executes as much as it may and no more than this share of the uncached MACs.
        With `budget`, the cheapest one whose relative L2 error of the final latent, the mean over the calibration
        prompts, is no more. With neither, those of the whole range that no other beats in both.

        Raises ScheduleError where both are given or none can be had.
        """
        self.check(sites, budget, cost)
        measurements = calibration.on(pipe, sites)
        tables = _different(self.tables(measurements, cost, seed))
        if cost is not None:
            return self._at(measurements, tables, cost, seed)
        tables = tables if self.measures else _thinned(measurements.priced(self.coefficients), tables)
        found = ParetoSet(tuple(self.schedules(measurements, tables, seed))).front()
        return found if budget is None else found.within(budget)

    def _at(self, measurements: ScheduleMeasurements, tables: Sequence[Table], cost: float, seed: int) -> Schedule:
        work = measurements.priced(self.coefficients).work(np.stack(tables))
        fitting = work <= cost + 1e-9
        if not fitting.any():
            raise ScheduleError(
                f"{self.name} found nothing that executes {cost:g} of the work: {work.min():.3f} is least."
            )
        best = work[fitting].max()
        dearest = [table for table, w in zip(tables, work, strict=True) if math.isclose(w, best, rel_tol=1e-12)]
        return min(self.schedules(measurements, dearest, seed), key=lambda s: s.error or 0.0)

    def schedules(self, measurements: ScheduleMeasurements, tables: Sequence[Table], seed: int) -> list[Schedule]:
        """Tables with all that a file needs, and what they lose; without those that lose everything. Raises
        ScheduleError where that is all of them.
        """
        errors = measurements.errors(tables, self.coefficients).mean(1)
        if not np.isfinite(errors).any():
            raise ScheduleError(f"no schedule of {self.name} leaves the latent finite. Ask for more work.")
        origin, basis = self.origin(measurements.calibration, seed), measurements.priced(self.coefficients)
        return [
            Schedule(basis, table, origin, float(error), fitted=self.coefficients)
            for table, error in zip(tables, errors, strict=True)
            if np.isfinite(error)
        ]

    def origin(self, calibration: Calibration, seed: int) -> Origin:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # finders are dataclasses
        told = {
            name: value.name.lower() if isinstance(value, Action) else value
            for name, value in values.items()
            if isinstance(value, str | int | float)
        }
        return Origin(self.name, told, seed, len(calibration.prompts), calibration.digest, __version__)


def _different(tables: Sequence[Table]) -> list[Table]:
    """Without those that do the same."""
    return list({repaired(table).tobytes(): table for table in tables}.values())


def _thinned(basis: Basis, tables: Sequence[Table]) -> list[Table]:
    """At most MOST, evenly by their work."""
    work = basis.work(np.stack(tables))
    chosen = {int(np.abs(work - w).argmin()) for w in np.linspace(work.min(), work.max(), MOST)}
    return list(tables) if len(tables) <= MOST else [tables[i] for i in sorted(chosen)]
