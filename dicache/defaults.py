"""What `enable` uses where it is given a number: the parts that did best on the bench (bench/README.md). Nothing else
says it, and nothing that runs a configuration imports it.

    error_budget             the law's prices (`dicache.planning.error_law`), a margin below the budget
    error_budget, profile    the same parts, with the internal budget of a profile where one fits the run
    speedup                  a plan of so many computed steps, between the law's and an even one; a line along half log
                             SNR, or the newest output as an exception
    evaluations              the same, of a number in place of a ratio
"""

import math
from collections.abc import Sequence

from dicache.approximators.noise import ExtrapolateNoise, HoldNoise
from dicache.config import Config
from dicache.controllers.counted import Counted, Evaluations
from dicache.controllers.planned import cautious
from dicache.planning.budget import Budget, validate
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.keep_budget import Demand, Promised

EVEN = (ExtrapolateNoise(math.inf, evenly=True), ExtrapolateNoise(evenly=True), HoldNoise())
"""What fills in where the number of steps is given."""


def for_budget(error_budget: float | Sequence[float]) -> Config:
    """Raises BudgetError unless it is a finite number of 0 or more, or several."""
    return Config(cautious(validate(error_budget)))


def for_profile(choice: ProfileChoice, demand: Demand) -> Config:
    """Where none of the profiles fits a run, as `for_budget`."""
    return Config(Promised(choice, demand))


def for_speedup(speedup: Budget) -> Config:
    return Config(Counted(speedup), approximators=EVEN)


def for_evaluations(evaluations: Budget) -> Config:
    return Config(Evaluations(evaluations), approximators=EVEN)
