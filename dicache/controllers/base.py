"""The contract of a controller: a cost in, a decision out, state beside it."""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch

from dicache.types import Decision, Quote, Rows, Site, Step

S = TypeVar("S")


class Controller(ABC, Generic[S]):
    def at(self, site: Site, sites: int) -> "Controller[Any]":
        """The rule for one of so many sites. Budgets are shared out; thresholds and counts stay."""
        return self

    def check(self, step: Step) -> None:  # most rules take any run
        """Raise where a run that begins with this step is not one that this rule can decide."""

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
