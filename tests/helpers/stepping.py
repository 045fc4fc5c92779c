"""One step of a run without a model: parts that say what they are told to say, and what a session holds around them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.config import Config
from dicache.controllers.base import Controller, decided
from dicache.estimators.base import Estimator
from dicache.planning.budget import Budget, per_sample
from dicache.runtime.run_state import Run, SiteState
from dicache.sites import Spans
from dicache.types import Action, Kind, Quote, Reason, Site, Step

LINE = (Reuse(), Extrapolate())
"""Approximators of one value and of two."""


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows(marks: str) -> Tensor:
    """(B,) bool: # for a row that is computed."""
    return torch.tensor([mark == "#" for mark in marks])


def a_step(index: int = 3, total: int = 10, **facts: Any) -> Step:
    """Of a run that goes evenly from sigma 1 to 0."""
    usual = Step(index, total, 1 - index / total, 1 / total, (index + 1) / total, (1.0, 0.0))
    return usual._replace(**facts)


def a_quote(*costs: float, action: Action = Action.REUSE) -> Quote:
    return Quote(numbers(*costs), numbers(*costs), torch.full((len(costs),), int(action)))


@dataclass(frozen=True)
class Says(Estimator[Any]):
    """Predicts what it is told, (B, A), and remembers all that it is shown."""

    predicted: tuple[tuple[float, ...], ...]

    def init(self, samples, n_approximators):
        return ()

    def predict(self, evidence, state):
        return torch.tensor(self.predicted, dtype=torch.float64)

    def observe(self, realised, evidence, computed, state):
        return (*state, (realised, evidence, computed))


@dataclass(frozen=True)
class Skips(Controller[Any]):
    """Skips the rows that are marked "=", by `action` or as it is quoted; its state is what it was asked and told."""

    marks: str
    action: Action | None = None
    samples: Budget = 0.0
    """As many entries as there must be samples."""

    def init(self, samples):
        per_sample(self.samples, samples)
        return ()

    def decide(self, quote, step, state):
        skip = ~rows(self.marks) & quote.error.isfinite()
        asked = quote if self.action is None else quote._replace(action=torch.full_like(quote.action, self.action))
        return decided(asked, skip, quote.cost.nan_to_num(0.0, 0.0), skipped=Reason.SCHEDULED), (
            *state,
            ("asked", quote),
        )

    def settle(self, ratio, computed, state):
        return (*state, ("told", ratio, computed))


def a_config(marks: str, *predicted: tuple[float, ...], **parts: Any) -> Config:
    """Rows that are marked "=" skip; `predicted` are each row's errors, one per approximator."""
    usual = {"approximators": LINE, "estimator": Says(predicted), "controller": Skips(marks)}
    return Config(**{**usual, **parts})


def inside(marks: str, *predicted: tuple[float, ...], **parts: Any) -> Config:
    """The same with sites inside the denoiser."""
    return a_config(marks, *predicted, **{"sites": Spans(), **parts})


def a_run(config: Config, samples: int = 2, chunks: int = 1, sites: int = 1, **facts: Any) -> Run:
    """In the midst of it: latents of (4,), as many chunks in a call, sites as the configuration has them."""
    within = config.sites.inside_denoiser
    kind = Kind.SPAN if within else Kind.EVALUATION
    states = [SiteState(Site(f"s{i}", kind, (f"b{i}",), i), config.controller, within) for i in range(sites)]
    for state in states:
        state.controller, state.estimator = config.controller.init(samples), config.estimator.init(samples, 2)
    latent = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0)).repeat(chunks, 1)
    usual = {"key": None, "step": a_step(), "time": a_step().sigma, "latent": latent, "before": 0.0, "states": states}
    return Run(**{**usual, "samples": samples, "scale": numbers(*[1.0] * samples), **facts})


class Work(nn.Module):
    """A block with one matrix, which counts the rows it ran for and keeps what it was called with."""

    def __init__(self, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.weight = torch.randn(width, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width)
        self.ran: list[int] = []

    def forward(self, hidden_states: Tensor, shift: Tensor | None = None) -> Tensor:
        self.ran.append(len(hidden_states))
        moved = hidden_states @ self.weight
        return hidden_states + (moved if shift is None else moved + shift)
