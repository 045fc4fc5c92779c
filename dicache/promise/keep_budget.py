"""Spend the internal budget that a profile's tests stand for (`dicache.promise.learn_then_test`) as they spent it: by
`Planned`, whose law prices the rest of the run.

Per sample and online: the amplitude that the estimator learned scales every price; at each computed step the sample
takes the way with the fewest computed steps that what is left allows. So a unit of error goes where it saves most work
(the way's value is the shadow price, at which all its gaps are equally worth their error), not to the first who asks.

Where no profile fits, this is `Planned` on the budget as it was asked for; where one is needed, an error that says how
to make one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from dicache.controllers.base import Controller, ProfileUse
from dicache.controllers.planned import Planned, Way, cautious
from dicache.controllers.with_gains import WithGains
from dicache.errors import BudgetError, ProfileError
from dicache.planning.budget import Budget, per_sample, validate
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.metrics import asked
from dicache.promise.profile import Profile
from dicache.types import LATENT, Decision, Quote, Rows, RunFacts, Site, Step, Wanted

AskedBudget = float | Wanted | Sequence[float | Wanted]
"""What may stand for a budget, or one for each sample."""


class Demand(Protocol):
    """What the user asked for."""

    needed: bool
    """Whether a run without a fitting profile is an error."""
    confidence: float | None
    """None: nothing is promised."""

    @property
    def budget(self) -> Budget | None:
        """In units of the latent; None where another metric was asked for."""

    def fallback(self, rule: int) -> Controller[Way]:
        """What decides without a profile, by the rule of those that there are."""

    def levels(self, profile: Profile, samples: int) -> Rows:
        """The internal budgets, (B,) float64."""

    def smallest(self, profile: Profile) -> str:
        """The smallest budgets that the profile can vouch for, in the metrics that were asked for."""


@dataclass(frozen=True)
class BudgetDemand(Demand):
    """A budget, one for all or one per sample; with a confidence it is a promise."""

    wanted: tuple[Wanted, ...]
    one: bool
    """Whether it is one for all samples."""
    confidence: float | None = None

    @property
    def needed(self) -> bool:  # type: ignore[override]
        return self.confidence is not None or any(wanted.metric != LATENT for wanted in self.wanted)

    @property
    def budget(self) -> Budget | None:
        """In units of the latent; None where another metric was asked for."""
        if any(wanted.metric != LATENT for wanted in self.wanted):
            return None
        return self.wanted[0].bound if self.one else tuple(wanted.bound for wanted in self.wanted)

    def fallback(self, rule: int) -> Controller[Way]:
        return cautious(0.0 if self.budget is None else self.budget, rule)

    def levels(self, profile: Profile, samples: int) -> Rows:
        levels = {wanted: profile.level(wanted, self.confidence) for wanted in self.wanted}
        each = tuple(levels[wanted] for wanted in self.wanted)
        return per_sample(each[0] if self.one else each, samples)

    def smallest(self, profile: Profile) -> str:
        metrics = dict.fromkeys(wanted.metric for wanted in self.wanted)
        return " and ".join(asked(profile.smallest(metric, self.confidence)) for metric in metrics)


@dataclass(frozen=True)
class FixedLevel(Demand):
    """Internal budgets as they are: what calibration tests."""

    level: float
    needed: bool = True
    confidence: float | None = None

    @property
    def budget(self) -> Budget:
        return self.level

    def fallback(self, rule: int) -> Controller[Way]:
        return Planned(self.level, rule=rule)

    def levels(self, profile: Profile, samples: int) -> Rows:
        return per_sample(self.level, samples)

    def smallest(self, profile: Profile) -> str:
        return ""


class PromiseState(NamedTuple):
    facts: RunFacts | None
    """What the run had shown when the profile was chosen."""
    profile: Profile | None
    way: Way


@dataclass(frozen=True)
class Promised(Controller[PromiseState]):
    choice: ProfileChoice
    demand: Demand
    sites: int = 1
    """Among how many it is shared out."""
    inner: Controller[Way] = field(init=False)
    """What decides, by the budget that a profile says or, without one, by the one that was asked for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", self.demand.fallback(self.choice.rule))

    def at(self, site: Site, sites: int) -> "Promised":
        return replace(self, sites=sites)

    @property
    def error_budget(self) -> Budget | None:
        return self.demand.budget

    def describe(self, state: PromiseState) -> ProfileUse | None:
        if state.facts is None or state.profile is None:
            return None
        return ProfileUse(
            name=state.profile.name,
            prompts=state.profile.prompts,
            kind=self.choice.kind,
            confidence=None if self.choice.kind == "nearest" else self.demand.confidence,
            levels=state.way.account.budget * self.sites**0.5,
            saving=state.profile.saving,
            smallest=self.demand.smallest(state.profile),
            same_conditions=bool(state.profile.same_conditions(state.facts.negative_conditions).all()),
            true_error=state.profile.true_error,
        )

    def fewest(self, steps: int) -> int | None:
        return self.inner.fewest(steps)

    def on_other_weights(self, change: str) -> str | None:
        if not self.choice.profiles:
            return None
        if self.demand.needed or self.choice.kind == "named":
            raise ProfileError(
                f"{change}, and the profile was measured without that change. Enable with a profile that was "
                "calibrated with it, after the change; or without profile and confidence."
            )
        return f"{change}: the profile was measured without that change."

    def init(self, samples: int) -> PromiseState:
        way = self.inner.init(samples)
        return PromiseState(None, None, _with_budget(way, way.account.budget * self.sites**-0.5))

    def decide(self, quote: Quote, step: Step, state: PromiseState) -> tuple[Decision, PromiseState]:
        if quote.facts is not state.facts:
            state = self._informed(quote.facts, len(quote.cost), state)
        decision, way = self.inner.decide(quote, step, state.way)
        return decision, state._replace(way=way)

    def _informed(self, facts: RunFacts, samples: int, state: PromiseState) -> PromiseState:
        """By what the run shows. Where guidance is measured anew, the profile stays until that is done."""
        profile = self.choice.fitting(facts, needed=self.demand.needed)
        if profile is None and facts.guidance is None:
            profile = state.profile
        way = state.way
        if profile is not state.profile:  # without one, the budget is again what was asked for
            asked = self.inner.init(samples).account.budget
            budget = asked if profile is None else self.demand.levels(profile, samples)
            way = _with_budget(way, budget * self.sites**-0.5)
        return PromiseState(facts, profile, way)

    def settle(self, ratio: Rows, computed: Rows, state: PromiseState) -> PromiseState:
        return state._replace(way=self.inner.settle(ratio, computed, state.way))


def _with_budget(way: Way, budget: Rows) -> Way:
    return way._replace(account=way.account._replace(budget=budget))


def rule_of(profile: Profile, error_budget: AskedBudget, confidence: float | None) -> Controller[Any]:
    """What keeps a budget as this profile says; a run that it does not fit is an error. Raises as `parse_budget`."""
    return within(profile, parse_budget(error_budget, confidence))


def within(profile: Profile, demand: Demand) -> Controller[Any]:
    promised = Promised(ProfileChoice((profile,), "named"), demand)
    return promised if profile.gains is None else WithGains(promised, profile.gains)


def parse_budget(error_budget: Any, confidence: float | None = None) -> BudgetDemand:  # noqa: ANN401
    """The demand of a budget: a number, a `Wanted` (such as `dicache.Psnr(30)`), or one of them per sample.

    Raises BudgetError for anything else.
    """
    if isinstance(error_budget, Wanted):
        return BudgetDemand((error_budget,), True, confidence)
    if isinstance(error_budget, list | tuple) and any(isinstance(entry, Wanted) for entry in error_budget):
        each = [parse_budget(entry) for entry in error_budget]
        if not all(demand.one for demand in each):
            raise BudgetError(f"error_budget is {error_budget!r:.60}. Expected one number or metric per sample.")
        return BudgetDemand(tuple(demand.wanted[0] for demand in each), False, confidence)
    budget = validate(error_budget)
    one = isinstance(budget, float)
    bounds = (budget,) if isinstance(budget, float) else budget
    return BudgetDemand(tuple(Wanted(LATENT, bound) for bound in bounds), one, confidence)
