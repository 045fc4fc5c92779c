"""A fixed number of steps, placed by a race, and slopes fitted along the cached run
(`dicache.approximators.fitted.run_slopes`, `dicache.measuring.slopes_along_run`).

Coefficients fitted to exact runs do not know what earlier guesses do to later inputs; over long gaps they lose more
than holding does. Fitted one after the other on the run itself, the same two numbers per step pay back what was lost
before them. It costs two runs of the prompts: no gradient, no search.

Where to compute is raced for, by successive halving: all of a portfolio (`dicache.planning.placements`) are fitted on
the first RACED_ON prompts, and the FINALISTS that err least there on the first `batch` prompts, which are drawn at
once; all prompts judge. For the whole range of costs the race is run at RACES numbers of steps, and a number in between
takes the placement that won at the nearest.

A schedule so found holds for one table, so there is no front to be saved: ask with a cost or a budget.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dicache._version import __version__
from dicache.approximators.fitted.about import About
from dicache.approximators.fitted.coefficients import Fitted
from dicache.errors import ScheduleError
from dicache.finders.base import MOST, Finder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.planning.law_plan import plan_of
from dicache.planning.placements import placements
from dicache.promise.metrics import relative_error
from dicache.schedules.action_table import Table, affordable
from dicache.types import Action

RACED_ON, FINALISTS, RACES = 8, 3, 4
WORSE = 1.5
"""How many times its error in the run that its slopes were fitted in a schedule may have."""
ROUNDING = 1e-3
"""What may part the two however small they are, in half precision."""


@dataclass(frozen=True)
class Multistep(Finder):
    name: ClassVar[str] = "multistep"
    fits: ClassVar[bool] = True
    longest: int = 8
    """Most steps skipped in a row."""
    last: int = 1
    """Steps that compute at the end."""
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        if self.longest < 1 or self.last < 0:
            raise ScheduleError(f"{self}: expected longest from 1 and last from 0 on.")
        if not 0 < self.ridge < math.inf:
            raise ScheduleError(f"ridge is {self.ridge!r}. Expected a finite number above 0.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        self.check(measurements)
        if cost is not None:
            ranked = self.race(measurements, self.affords(measurements, cost))
            return [table for _, _, table in ranked[:FINALISTS]]
        every = self.counts(measurements)
        counts = sorted({round(n) for n in np.linspace(every[0], every[-1], MOST // 2)})
        raced = {counts[round((k + 0.5) / RACES * (len(counts) - 1))] for k in range(RACES)}
        order = {n: [name for _, name, _ in self.race(measurements, n)] for n in raced}
        return [table for n in counts for table in self._as_near(measurements, n, order)]

    def check(self, measurements: ScheduleMeasurements) -> None:
        """Raises ScheduleError for sites that it does not fit."""
        if measurements.inside_denoiser:
            raise ScheduleError(f"multistep fits whole evaluations, not {measurements.sites}. Use sites=Evaluation().")

    def counts(self, measurements: ScheduleMeasurements) -> range:
        """Numbers of computed steps that there are, from the fewest to all."""
        fewest = plan_of(measurements.timetable, self.longest, self.last).fewest()
        return range(fewest, len(measurements.basis.sigmas) + 1)

    def affords(self, measurements: ScheduleMeasurements, cost: float) -> int:
        """The most computed steps that this share of the work allows; the fewest that there are, where none does."""
        counts = self.counts(measurements)
        return max((n for n in counts if affordable(self.work(measurements, n), cost)), default=counts[0])

    def work(self, measurements: ScheduleMeasurements, computed: int) -> float:
        """The share of so many computed steps."""
        mask = np.arange(len(measurements.basis.sigmas)) < computed
        return float(measurements.basis.work(measurements.filled(mask[:, None], Action.CORRECT)))

    def placed(self, measurements: ScheduleMeasurements, computed: int) -> dict[str, Table]:
        """All different ways to compute so many steps, by name."""
        tables: dict[bytes, tuple[str, Table]] = {}
        for name, way in placements(measurements.timetable, computed, self.longest, self.last).items():
            mask = np.zeros(measurements.basis.shape, dtype=bool)
            mask[list(way)] = True
            table = measurements.filled(mask, Action.CORRECT)
            tables.setdefault(table.tobytes(), (name, table))
        return dict(tables.values())

    def race(self, measurements: ScheduleMeasurements, computed: int) -> list[tuple[float, str, Table]]:
        """The same with the mean error of the run that slopes were fitted in, on the first prompts; the least first."""
        tables = self.placed(measurements, computed)
        prompts = min(RACED_ON, measurements.prompts, measurements.calibration.batch)
        runs = measurements.fit(list(tables.values()), self.ridge, prompts)
        errors = [relative_error(run.latents, measurements.reference[:prompts]).mean() for run in runs]
        means = [float(error) if error.isfinite() else math.inf for error in errors]
        ranked = [(mean, name, table) for mean, (name, table) in zip(means, tables.items(), strict=True)]
        return sorted(ranked, key=lambda each: each[0])

    def _as_near(
        self, measurements: ScheduleMeasurements, computed: int, order: Mapping[int, Sequence[str]]
    ) -> list[Table]:
        """The two placements that did best in the race nearest to so many steps."""
        tables = self.placed(measurements, computed)
        names = order[min(order, key=lambda n: abs(n - computed))]
        return [tables[name] for name in names if name in tables][:2] or list(tables.values())[:2]

    def prepare(self, measurements: ScheduleMeasurements, tables: Sequence[Table]) -> None:
        if measurements.workers.alone:
            return  # one after the other, so that a table that cannot be drawn ends the search at once
        measurements.fit(tables, self.ridge)
        measurements.prepare([([table], self._fitted(measurements, table)[0]) for table in tables])

    def coefficients(self, measurements: ScheduleMeasurements, table: Table) -> Fitted:
        """Raises ScheduleError where a run that follows them loses much more than the run that they were fitted in."""
        fitted, seen = self._fitted(measurements, table)
        errors = measurements.errors([table], fitted)[0]
        if np.isfinite(errors).all() and errors[: len(seen)].mean() > WORSE * seen.mean() + ROUNDING:
            raise ScheduleError(
                f"{type(measurements.pipe).__name__} does not draw what was fitted: {errors.mean():.3g} for "
                f"{seen.mean():.3g}. Use another finder, such as law."
            )
        return fitted

    def _fitted(self, measurements: ScheduleMeasurements, table: Table) -> tuple[Fitted, np.ndarray]:
        """And the errors of the run that it was fitted in, (P,)."""
        key = (self, table.tobytes())
        if key not in measurements.coefficients:
            measurements.coefficients[key] = self._fit(measurements, table)
        return measurements.coefficients[key]

    def _fit(self, measurements: ScheduleMeasurements, table: Table) -> tuple[Fitted, np.ndarray]:
        prompts = range(min(measurements.prompts, measurements.calibration.batch))
        (run,) = measurements.fit([table], self.ridge)
        about = About(
            kind=self.name,
            model=measurements.basis.model,
            scheduler=measurements.basis.scheduler,
            sigmas=measurements.basis.sigmas,
            guidance=run.guidance,
            sites=dict(measurements.basis.selector),
            prompts=len(prompts),
            longest=self.longest,
            rank=1,
            ridge=float(self.ridge),
            version=__version__,
        )
        coefficients = {cell.path: run.slopes._asdict() for cell in measurements.basis.cells}
        errors = relative_error(run.latents, measurements.reference[: len(prompts)])
        return Fitted(about, coefficients), errors.double().numpy()
