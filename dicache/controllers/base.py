"""The contract of a controller: a cost in, a decision out, state beside it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from dicache.planning.budget import Budget
from dicache.types import Decision, Quote, Rows, Site, Step

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
    same_conditions: bool
    """Whether every sample's negative prompt is one that it was tested with."""
    true_error: Callable[[float], float]
    """From the error that was estimated to the one that it means."""


class Controller(ABC, Generic[S]):
    def at(self, site: Site, sites: int) -> "Controller[Any]":
        """The rule for one of so many sites. Budgets are shared out; thresholds and counts stay."""
        return self

    def check(self, step: Step) -> None:  # most rules take any run
        """Raise where a run that begins with this step is not one that this rule can decide."""

    @property
    def error_budget(self) -> Budget | None:
        """What a sample may spend in all, as it was asked for; None where the rule goes by something else."""
        return None

    def describe(self, state: S) -> ProfileUse | None:
        """By which profile a run in this state goes; None without one."""
        return None

    def missed(self, work: Rows, steps: int) -> str | None:
        """What to say of a finished run of so many steps where its samples executed more than was asked for; `work` are
        their shares of the uncached work, (B,).
        """
        return None

    def on_other_weights(self) -> str | None:
        """What to say of a run on weights that were changed since `enable`; raises where it means nothing there."""
        return None

    @abstractmethod
    def init(self, samples: int) -> S:
        """State at the start of a run of B samples."""

    @abstractmethod
    def decide(self, quote: Quote, step: Step, state: S) -> tuple[Decision, S]:
        """Skip where it is worth what it is quoted at; an infinite error computes."""

    @abstractmethod
    def settle(self, ratio: Rows, computed: Rows, state: S) -> S:
        """Where `computed`, (B,) bool: the gap before this step cost `ratio` times what was predicted; nan where that
        is not known.
        """


def refused(quote: Quote, rows: Rows) -> Quote:
    """The same quote, unknown for `rows`, (B,) bool: those compute, and the controller's state says so."""
    return quote._replace(error=quote.error.masked_fill(rows, torch.inf), cost=quote.cost.masked_fill(rows, torch.inf))
