"""A fixed number of steps, placed by the law of errors, and slopes fitted along the cached run
(`dicache.approximators.fitted.run_slopes`, `dicache.measuring.slopes_along_run`).

Coefficients fitted to exact runs do not know what earlier guesses do to later inputs; over long gaps they lose more
than holding does. Fitted one after the other on the run itself, the same two numbers per step pay back what was lost
before them. It costs two runs of the prompts: no gradient, no search.

The first `batch` calibration prompts are drawn at once and fitted on, all of them judge. A schedule so found holds for
one table, so there is no front to be saved: ask with a cost or a budget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dicache._version import __version__
from dicache.approximators.fitted.about import About
from dicache.approximators.fitted.coefficients import Fitted
from dicache.errors import ScheduleError
from dicache.finders.base import MOST, Finder
from dicache.finders.law_plan import Law
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.planning.error_law import DECAY
from dicache.promise.metrics import relative_error
from dicache.schedules.action_table import Table
from dicache.types import Action

DECAYS = (DECAY, 1.5 * DECAY)
"""Two ways for every number of steps: what pays errors back can leave more of them to later steps."""
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
        Law(longest=self.longest, last=self.last)
        if not 0 < self.ridge < math.inf:
            raise ScheduleError(f"ridge is {self.ridge!r}. Expected a finite number above 0.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        if measurements.inside_denoiser:
            raise ScheduleError(f"multistep fits whole evaluations, not {measurements.sites}. Use sites=Evaluation().")
        laws = [Law(Action.CORRECT, self.longest, self.last, power) for power in DECAYS]
        families = [law.tables(measurements, cost, seed) for law in laws]
        counts = list(range(len(families[0])))
        if cost is None:
            counts = sorted({round(i) for i in np.linspace(0, len(counts) - 1, MOST // len(laws))})
        return [family[i] for family in families for i in counts]

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
