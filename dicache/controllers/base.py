"""The contract of a controller: a cost in, a decision out, state beside it; and the account that those with a budget
keep.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from dicache.planning.budget import Budget
from dicache.planning.gains import Gains, is_positive
from dicache.types import Action, Decision, Quote, Reason, Rows, RunFacts, Site, Step

S = TypeVar("S")


class ProfileUse(NamedTuple):
    """The profile that a run went by (`dicache.promise`), as its report needs it."""

    name: str
    prompts: int
    """How many it was tested on."""
    kind: str
    """How it was chosen (`dicache.promise.choose_profile`)."""
    confidence: float | None
    """None: nothing was promised."""
    levels: Rows
    """The internal budgets, (B,)."""
    saving: float
    """The smallest of them that saved any work when it was tested."""
    smallest: str
    """The smallest budgets that it can vouch for, as they are asked for; with this confidence, where there is one."""
    same_conditions: bool
    """Whether every sample's negative prompt is one that it was tested with."""
    true_error: Callable[[float], float]
    """From the error that was estimated to the one that it means."""


class FinishedRun(NamedTuple):
    """What a rule may say something about once it is over."""

    work: Rows
    """Shares of the uncached work that its samples executed, (B,)."""
    steps: int
    facts: RunFacts
    """What it showed of itself."""
    computed: Rows
    """At how many steps each sample computed anything, (B,)."""


class Account(NamedTuple):
    """What samples may spend and have spent, (B,) float64 each, in units of the final relative error. Errors within one
    gap point the same way and add; those of different gaps add in squares.
    """

    budget: Rows
    settled: Rows
    """Sum of squares of the errors of the gaps that are over."""
    pending: Rows
    """Error of the gap that is open."""

    @property
    def spent(self) -> Rows:
        return (self.settled + self.pending**2).sqrt()

    def closed(self, ratio: Rows, computed: Rows) -> "Account":
        """Where the step computed, the gap before it is over, and was `ratio` times as wrong as predicted."""
        if not bool(computed.any()):
            return self
        real = self.pending * torch.where(ratio.isfinite(), ratio, 1.0)
        settled = torch.where(computed, self.settled + real**2, self.settled)
        return Account(self.budget, settled, torch.where(computed, 0.0, self.pending))


class Controller(ABC, Generic[S]):
    def at(self, site: Site, sites: int) -> "Controller[Any]":
        """The rule for one of so many sites. Budgets are shared out; thresholds and counts stay."""
        return self

    @property
    def reads_error(self) -> bool:
        """Whether it decides by what skipping is predicted to cost; else it counts steps, or goes by the noise."""
        return True

    def check(self, step: Step) -> None:  # most rules take any run
        """Raise where a run that begins with this step is not one that this rule can decide."""

    @property
    def error_budget(self) -> Budget | None:
        """What a sample may spend in all, as it was asked for; None where the rule goes by something else."""
        return None

    @property
    def known_gains(self) -> Gains | None:
        """How far errors of sites below the whole evaluation reach the final latent; None where nobody measured it."""
        return None

    @property
    def spends_unpriced(self) -> bool:
        """Whether it spends an error budget without that."""
        return is_positive(self.error_budget)

    def describe(self, state: S) -> ProfileUse | None:
        """By which profile a run in this state goes; None without one."""
        return None

    def notes(self, run: FinishedRun) -> list[str]:
        """What the report must say: that samples executed more than was asked for, what the rule is worth here."""
        return []

    def fewest(self, steps: int) -> int | None:
        """How many steps of a run of so many compute however large the budget is; None where that is not known."""
        return None

    def on_other_weights(self, change: str) -> str | None:
        """What to say of a run on weights that were changed since `enable`; raises where it means nothing there."""
        return None

    @abstractmethod
    def init(self, samples: int) -> S:
        """State at the start of a run of B samples."""

    @abstractmethod
    def decide(self, quote: Quote, step: Step, state: S) -> tuple[Decision, S]:
        """Skip where it is worth what it is quoted at; an infinite error computes."""

    def settle(self, ratio: Rows, computed: Rows, state: S) -> S:
        """Where `computed`, (B,) bool: the gap before this step cost `ratio` times what was predicted; nan where that
        is not known. Most rules make nothing of it.
        """
        return state


@dataclass(frozen=True)
class Around(Controller[Any]):
    """A rule around another one: what it does not say anew is the inner rule's, whose state it shares unless it keeps
    one of its own.
    """

    inner: Controller[Any]

    def at(self, site: Site, sites: int) -> Controller[Any]:
        return replace(self, inner=self.inner.at(site, sites))

    @property
    def reads_error(self) -> bool:
        return self.inner.reads_error

    def check(self, step: Step) -> None:
        self.inner.check(step)

    @property
    def error_budget(self) -> Budget | None:
        return self.inner.error_budget

    @property
    def known_gains(self) -> Gains | None:
        return self.inner.known_gains

    @property
    def spends_unpriced(self) -> bool:
        return self.inner.spends_unpriced

    def describe(self, state: Any) -> ProfileUse | None:  # noqa: ANN401
        return self.inner.describe(state)

    def notes(self, run: FinishedRun) -> list[str]:
        return self.inner.notes(run)

    def fewest(self, steps: int) -> int | None:
        return self.inner.fewest(steps)

    def on_other_weights(self, change: str) -> str | None:
        return self.inner.on_other_weights(change)

    def init(self, samples: int) -> Any:  # noqa: ANN401
        return self.inner.init(samples)

    def decide(self, quote: Quote, step: Step, state: Any) -> tuple[Decision, Any]:  # noqa: ANN401
        return self.inner.decide(quote, step, state)

    def settle(self, ratio: Rows, computed: Rows, state: Any) -> Any:  # noqa: ANN401
        return self.inner.settle(ratio, computed, state)


def decided(
    quote: Quote,
    skip: Rows,
    spent: Rows,
    *reasons: tuple[Rows, Reason],
    skipped: Reason = Reason.WITHIN_BUDGET,
) -> Decision:
    """Skip where `skip`, (B,) bool, and compute elsewhere. `reasons` are pairs of rows and why they compute; the last
    one that is true counts, and a row without any computes because its error is not known.
    """
    reason = torch.full_like(skip, int(Reason.UNKNOWN), dtype=torch.int64)
    for rows, why in (*reasons, (skip, skipped)):
        reason = torch.where(rows, int(why), reason)
    action = torch.where(skip, quote.action, int(Action.COMPUTE))
    return Decision(action[:, None], reason[:, None], spent)


def cost_of(quote: Quote, skip: Rows) -> Rows:
    """What the rows that skip are quoted, (B,); 0 elsewhere, and where no cost is known."""
    return torch.where(skip & quote.cost.isfinite(), quote.cost, 0.0)


def refused(quote: Quote, rows: Rows) -> Quote:
    """The same quote, unknown for `rows`, (B,) bool: those compute, and the controller's state says so."""
    error, cost = (each.masked_fill(rows, torch.inf) for each in (quote.error, quote.cost))
    return quote._replace(error=error, cost=cost, fills=None if quote.fills is None else quote.fills & ~rows)


def overruled(decision: Decision, rows: Rows, why: Reason) -> Decision:
    """The same decision where an inner rule had to compute `rows`, (B,) bool, and this is why; a budget of zero says
    more than any other reason.
    """
    reason = torch.where(rows[:, None] & (decision.reason != Reason.NO_BUDGET), int(why), decision.reason)
    return decision._replace(reason=reason)
