"""What skipping is priced at, for the rows of one run, or of several that are at steps of their own, upon each other.

Nothing here depends on which run a row is of: where runs are priced together, what a run has one of is handed over as
one number for each row, (B,). Users' laws are asked run by run, since they are promised one time for all rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.approximators.base import Approximator
from dicache.tensors.contract import check_tensor, is_users
from dicache.types import Grid, Rows

UNKNOWN = 1e300
"""Stands for errors of which nothing is known, of approximators that could fill in: behind every known one, and before
those that cannot.
"""


class Standing(NamedTuple):
    """What prices depend on beside errors: one number for all rows, or (B,)."""

    coefficient: float | Rows
    scale: float | Rows
    """||v|| / ||x_N||; nan where it was never measured."""
    share: float | Rows
    """||value|| / ||output||; nan where it was never measured."""
    survives: float | Rows
    """Of an error of the latent, at the end."""


class Priced(NamedTuple):
    predicted: Grid
    weighed: Grid
    """The same as errors count where approximators are compared, (B, A)."""
    error: Rows
    """Of the approximator that errs least."""
    cost: Rows
    action: Rows
    """What it counts as."""
    fills: Rows
    """Whether something can fill in, (B,) bool."""

    def of(self, rows: slice) -> "Priced":
        return Priced(*(each[rows] for each in self))

    def apart(self, samples: int) -> list["Priced"]:
        """Of each that lies upon the others, with so many samples."""
        if len(self.error) == samples:
            return [self]
        return [Priced(*each) for each in zip(*(rows.split(samples) for rows in self), strict=True)]


def upon_each_other(standings: Sequence[Standing], samples: Sequence[int]) -> Standing:
    """Of so many samples each."""
    return Standing(*(per_row(values, samples) for values in zip(*standings, strict=True)))


def per_row(values: Sequence[float | Rows], samples: Sequence[int]) -> Rows:
    """One number of each run, or its rows, to (B,) of all."""
    if all(isinstance(value, Tensor) for value in values):
        return torch.cat([value for value in values if isinstance(value, Tensor)])
    rows = (v.tolist() if isinstance(v, Tensor) else [v] * n for v, n in zip(values, samples, strict=True))
    return torch.tensor([number for own in rows for number in own], dtype=torch.float64)


def growths(approximators: Sequence[Approximator], times: Tensor, time: float | Rows, *, random: bool) -> Grid:
    """Each one's error law, (B, A), from the times of what is remembered, (K, B). Errors grow evenly in half log SNR
    and not in sigma, so laws are asked in that time wherever it is known.
    """
    growth = torch.stack([_growth(a, times, time) for a in approximators], dim=1)
    if random:  # whatever fills in, outputs walk at random under new noise
        growth = torch.where(growth.isnan(), growth, (time - times[0]).abs().sqrt()[:, None])
    return growth


def _growth(approximator: Approximator, times: Tensor, time: float | Rows) -> Rows:
    """nan where the history is too short, or was made short to save memory."""
    if len(times) < approximator.needs:
        return torch.full(times.shape[1:], torch.nan, dtype=torch.float64)
    growth = approximator.growth(times, time)  # type: ignore[arg-type]  # ours are arithmetic, also of rows
    if is_users(type(approximator)):
        check_tensor(growth, times.shape[1:], f"{type(approximator).__name__}.growth", "one number a row, on the host")
    return growth


def weights(approximators: Sequence[Approximator], times: Tensor, time: float | Rows, guidance: Rows) -> Grid | None:
    """By how much each one's error counts, (B, A); None for evenly."""
    if all(type(a).weigh is Approximator.weigh for a in approximators):
        return None
    return torch.stack([_weight(a, times, time, guidance) for a in approximators], dim=1)


def _weight(approximator: Approximator, times: Tensor, time: float | Rows, guidance: Rows) -> Rows:
    weight = approximator.weigh(times, time, guidance)  # type: ignore[arg-type]  # as growth
    if is_users(type(approximator)):
        check_tensor(weight, guidance.shape, f"{type(approximator).__name__}.weigh", "one number a row, on the host")
    return weight


def priced(actions: Tensor, standing: Standing, growth: Grid, weights: Grid | None, predicted: Grid) -> Priced:
    """By what errors are predicted, (B, A); `actions` are those of the approximators, (A,)."""
    fillable = growth.isfinite() & (growth > 0)
    weighed = predicted if weights is None else predicted * weights
    weighed = torch.where(weighed.isinf() & fillable, UNKNOWN, weighed)
    error, cost, action = cost_of_best(actions, standing, predicted, weighed)
    return Priced(predicted, weighed, error, cost, action, fillable.any(1))


def cost_of_best(actions: Tensor, standing: Standing, predicted: Grid, weighed: Grid) -> tuple[Rows, Rows, Rows]:
    """Error, cost and action of the approximator that is predicted to err least, as their errors are `weighed`."""
    best = weighed.min(1).indices
    error = predicted.gather(1, best[:, None])[:, 0]
    cost = error * standing.share * standing.coefficient * standing.scale * standing.survives
    cost = cost.nan_to_num(torch.inf, torch.inf)
    cost = torch.where(cost > 0, cost, torch.inf)  # what seems to cost nothing is not known
    return error, cost, actions[best]
