"""A fixed number of steps, placed by the law of errors, and slopes fitted along the cached run
(`dicache.approximators.multistep`, `dicache.finders.along`).

Coefficients fitted to exact runs do not know what earlier guesses do to later inputs; over long gaps they lose more
than holding does. Fitted one after the other on the run itself, the same two numbers per step pay back what was lost
before them. It costs two runs of the prompts: no gradient, no search.

The first `batch` calibration prompts are drawn at once and fitted on, all of them judge. A schedule so found holds for
one table, so there is no front to be saved: ask with a cost or a budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import dicache
from dicache.errors import ScheduleError
from dicache.finders.along import slopes
from dicache.finders.base import Finder
from dicache.finders.ground import Calibration, Ground
from dicache.finders.law import Law
from dicache.fitted import About, Fitted
from dicache.law import KEPT
from dicache.metrics import relative_error
from dicache.schedule import ParetoSet, Schedule
from dicache.sites import Evaluation, Sites
from dicache.table import Table
from dicache.types import Action

FORGOTTEN = (KEPT, 1.5 * KEPT)
"""Two ways for every number of steps: what pays errors back can leave more of them to later steps."""
SAME = 0.1
"""How far, as a share of its error, the run of a schedule may be from that which its slopes were fitted in."""
TINY = 1e-5


@dataclass(frozen=True)
class Multistep(Finder):
    name: ClassVar[str] = "multistep"
    longest: int = 8
    """Most steps skipped in a row."""
    last: int = 1
    """Steps that compute at the end."""
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        Law(longest=self.longest, last=self.last)
        if not self.ridge > 0:
            raise ScheduleError(f"ridge is {self.ridge!r}. Expected a number above 0.")

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
        """As of any finder. Raises ScheduleError for other sites than the whole evaluation, without a cost or budget,
        or for a pipeline that changes outputs between its denoiser and its scheduler.
        """
        if type(sites) is not Evaluation:
            raise ScheduleError(f"multistep fits whole evaluations, not {sites}. Use sites=Evaluation().")
        if budget is None and cost is None:
            raise ScheduleError("multistep fits one schedule, not a front. Give a cost or a budget.")
        return super().find(pipe, sites, calibration, budget=budget, cost=cost, seed=seed)

    def tables(self, ground: Ground, cost: float | None, seed: int) -> Sequence[Table]:
        laws = [Law(Action.CORRECT, self.longest, self.last, power) for power in FORGOTTEN]
        return [table for law in laws for table in law.tables(ground, cost, seed)]

    def schedules(self, ground: Ground, tables: Sequence[Table], seed: int) -> list[Schedule]:
        found, made = self.found(ground.calibration, seed), []
        for table in tables:
            fitted, along = self._fitted(ground, table)
            errors = ground.errors([table], fitted)[0]
            if abs(errors[: len(along)].mean() - along.mean()) > SAME * along.mean() + TINY:
                raise ScheduleError(
                    f"{type(ground.pipe).__name__} changes outputs between its denoiser and its scheduler: what was "
                    "fitted does not hold. Use another finder, such as law."
                )
            if np.isfinite(errors).all():
                made.append(Schedule(ground.basis, table, found, float(errors.mean()), fitted=fitted))
        if not made:
            raise ScheduleError("no schedule of multistep leaves the latent finite. Ask for more work.")
        return made

    def _fitted(self, ground: Ground, table: Table) -> tuple[Fitted, np.ndarray]:
        """And the errors of the run that it was fitted in, (P,)."""
        prompts = range(min(ground.prompts, ground.calibration.batch))
        fitted, latents = slopes(ground, prompts, ground.taken, table, self.ridge)
        about = About(
            kind=self.name,
            model=ground.basis.model,
            scheduler=ground.basis.scheduler,
            sigmas=ground.basis.sigmas,
            guidance=1.0,
            sites=dict(ground.basis.selector),
            prompts=len(prompts),
            longest=self.longest,
            rank=1,
            ridge=self.ridge,
            version=dicache.__version__,
        )
        coefficients = {cell.path: fitted._asdict() for cell in ground.basis.cells}
        errors = relative_error(latents, ground.reference[: len(prompts)])
        return Fitted(about, coefficients), errors.double().numpy()
