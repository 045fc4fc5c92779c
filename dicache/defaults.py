"""What `enable` uses where it is given a number: the parts that did best on the bench (bench/README.md). Nothing else
says it, and nothing that runs a configuration imports it.

    error_budget             the law's prices (`dicache.planning.error_law`), a margin below the budget, and a way
                             between the law's and an even one; a line along half log SNR, or the newest noise and data
                             as an exception
    error_budget, profile    the same, with the internal budget of a profile where one fits the run; where the profiles
                             are of an earlier rule, what that rule decided and filled in by
    speedup, evaluations     a plan of so many computed steps, with the same parts
"""

import math
from collections.abc import Sequence

from dicache.approximators.hold import Reuse
from dicache.approximators.noise import ExtrapolateNoise, HoldNoise
from dicache.config import Config
from dicache.controllers.counted import Counted, Evaluations
from dicache.controllers.planned import cautious
from dicache.planning.budget import Budget, validate
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.keep_budget import Demand, Promised

FILLS = (ExtrapolateNoise(math.inf, evenly=True), ExtrapolateNoise(evenly=True), HoldNoise())
EARLIER = {2: (ExtrapolateNoise(), ExtrapolateNoise(math.inf), Reuse())}
"""What filled in by earlier rules (`dicache.planning.error_law.RULES`)."""


def for_budget(error_budget: float | Sequence[float]) -> Config:
    """Raises BudgetError unless it is a finite number of 0 or more, or several."""
    return Config(cautious(validate(error_budget)), approximators=FILLS)


def for_profile(choice: ProfileChoice, demand: Demand) -> Config:
    """Where none of the profiles fits a run, as `for_budget` by their rule."""
    return Config(Promised(choice, demand), approximators=EARLIER.get(choice.rule, FILLS))


def for_speedup(speedup: Budget) -> Config:
    return Config(Counted(speedup), approximators=FILLS)


def for_evaluations(evaluations: Budget) -> Config:
    return Config(Evaluations(evaluations), approximators=FILLS)
