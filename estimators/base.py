"""The contract of an estimator: predict before, observe after, state in and out."""

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, TypeVar

from dicache.types import Grid, Rows

S = TypeVar("S")


class Evidence(NamedTuple):
    """What is known about a step before it is computed."""

    growth: Grid
    """(B, A): each approximator's error law at this step, nan where its history is too short."""
    innovation: Rows
    """(B,): relative error of extrapolating the probe's feature to this step, nan without a probe."""
    innovation_growth: Rows
    """(B,): the error law of that extrapolation."""


class Estimator(ABC, Generic[S]):
    @abstractmethod
    def init(self, samples: int, forms: int) -> S:
        """State that knows nothing about B samples and A approximators."""

    @abstractmethod
    def predict(self, evidence: Evidence, state: S) -> Grid:
        """Relative error of each approximator's output, (B, A); inf where unknown."""

    @abstractmethod
    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: S) -> S:
        """Learn from the steps that were `computed`, (B,) bool: `realised`, (B, A), is what each approximator would
        have been wrong by.
        """
