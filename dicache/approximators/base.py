"""An approximator guesses a value from its exact past, and knows how its error grows with distance.

The value v(sigma) of one row is known at sigma_0 (newest), sigma_1, ...; the guess at sigma has an error of about k *
growth(sigma), where k depends on the sample and its phase and is learned while it runs
(`dicache.estimators.closed_loop`), and growth is a fact of interpolation: |tau| for holding the newest value, |tau (tau
+ D)| for a line through the last two, with tau = sigma - sigma_0 and D = sigma_0 - sigma_1.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dicache.errors import PartError
from dicache.ranks.sums import ALONE, Pair, SharedSums
from dicache.tensors.history import History
from dicache.types import Action, Rows, Site, Timetable


class Histories(NamedTuple):
    """All that one branch remembers."""

    outputs: History
    features: History
    """What the probe measured at the computed steps; empty without a probe."""
    noises: History
    """The noise that the outputs stand for; empty unless an approximator asks for it."""

    @property
    def rows(self) -> int:
        return self.outputs.sigmas.shape[1]


class Target(NamedTuple):
    """The step to guess."""

    sigma: float
    feature: Tensor | None
    """(R, ...), or None without a probe."""
    latent: Tensor | None = None
    """(R, ...), the denoiser's input."""
    noise: tuple[float, float] = (0.0, 1.0)
    """(a, b) such that a * latent + b * output is the noise."""
    timetable: Timetable | None = None
    time: float | None = None
    """Of the step on the axis of `History.times`, along which outputs turn evenly; None for sigma itself."""
    site: str = ""
    """Path of the site whose value is guessed; empty for the whole evaluation."""
    difference: bool = False
    """Whether it is by how much a guidance branch differs from the strongest one that is guessed."""

    sums: SharedSums = ALONE
    """Sums of two tensors of the model: over all ranks, where each of them has a part."""

    @property
    def passed(self) -> float:
        """Share of the run's steps that lie behind; nan where its timetable is unknown."""
        if self.timetable is None:
            return math.nan
        sigmas = self.timetable.sigmas
        return min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - self.sigma)) / len(sigmas)


class Approximator(ABC):
    action: ClassVar[Action]
    needs: ClassVar[int]
    """How many exact values it needs."""
    reads_noise: ClassVar[bool] = False
    """Whether `Histories.noises` must be stored."""
    reads_feature: ClassVar[bool] = False
    """Whether it reads what the probe measured."""
    over_ranks: ClassVar[bool] = False
    """Whether parts of a value give parts of its guess: every element by itself, or through `target.sums`."""
    multiplies: ClassVar[bool] = False
    """Whether a guess takes matrix products, which count as work."""

    @property
    def history_depth(self) -> int:
        """How many it makes use of where there are more."""
        return self.needs

    @abstractmethod
    def guess(self, histories: Histories, target: Target) -> Tensor:
        """(R, ...), a new tensor. Undefined for rows with fewer than `needs` values."""

    def pairs(self, histories: Histories, target: Target) -> Sequence[Pair]:
        """What `guess` will hold against each other; asked for only where that lies on several ranks."""
        return ()

    @abstractmethod
    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        """How the error grows, (K, R) times of the values and the time to guess -> (R,). nan for rows with fewer than
        `needs` values.
        """

    def weigh(self, times: Tensor, time: float, guidance: Rows) -> Rows:
        """By how much its predicted error counts where approximators are compared, (B,): (K, B) times of the values,
        the time to guess, and the guidance scale, (B,), 1 without. Errors of different approximators add up in
        different ways from gap to gap.
        """
        return torch.ones_like(guidance)

    @property
    def own_bytes(self) -> int:
        """Bytes that it has of its own, beside the history."""
        return 0

    def on_other_weights(self, change: str) -> str | None:
        """What to say of a run on weights that were changed since `enable`; None where it does not matter."""
        return None

    def check(self, denoiser: nn.Module, sites: Sequence[Site]) -> None:  # noqa: B027  # most fit every model
        """Raise FittedError if it was made for another model, or for other sites of it."""


FILLS_IN = {Action.REUSE, Action.EXTRAPOLATE, Action.ALIGN, Action.CORRECT, Action.ZERO}


def check_attributes(approximator: Approximator) -> None:
    """Raises PartError where `action` or `needs` is not said, or makes no sense."""
    name = type(approximator).__name__
    try:
        action, needs = approximator.action, approximator.needs
    except AttributeError as error:
        raise PartError(
            f"{name} does not say its {error.name}. Expected action, a dicache.types.Action, and needs, how many exact "
            "values a guess takes."
        ) from error
    if action not in FILLS_IN:
        names = ", ".join(f"Action.{fills.name}" for fills in sorted(FILLS_IN))
        raise PartError(f"{name}.action is {action!r}. Expected what a guess counts as: one of {names}.")
    if isinstance(needs, bool) or not isinstance(needs, int) or needs < 1:
        raise PartError(f"{name}.needs is {needs!r}. Expected how many exact values a guess takes, 1 or more.")


def per_row(coefficient: Rows, like: Tensor) -> Tensor:
    """(R,) on the host to (R, 1, ...) beside `like`, (R, ...)."""
    return coefficient.to(like.device, like.dtype, non_blocking=True).view(-1, *[1] * (like.ndim - 1))
