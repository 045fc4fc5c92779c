"""RACER (arXiv 2608.01740): two forecasts, and steps that compute out of turn where they part.

The base is a ridge fit of Chebyshev polynomials over a window of exact values, along true time (Spectrum, arXiv
2603.01623):

    v(t) ~ sum_{k<=M} c_k T_k(t),    c = argmin sum_j |v_j - sum_k c_k T_k(t_j)|^2 + ridge |c|^2,    t in [-1, 1]

The run's times are mapped to [-1, 1]; where no timetable is known, those of the window and the time to guess. c is
linear in the values, so that the guess is a weighted sum of them and the fit is done on the host, for every row at its
own times. With a ridge the fit is exact on nothing, not even on constants, which it draws towards 0.

What is handed out is drawn towards the last exact value: a wild guess does less harm and a good one less good.

    y = v_0 + kappa (g - v_0),        |y - v| <= kappa |g - v| + (1 - kappa) |v_0 - v|

Where the base and an observer part, neither can be right:

    e = |g_a - g_b| / |g_a|        L2, per sample

Every n-th step computes, and where e is too large a step out of turn, which is paid back by skipping a later scheduled
one: the work stays that of the schedule and goes where it is needed.

    due, e >= threshold              compute              not due, e >= threshold       compute, owe one more
    due, e < threshold, one owed     skip, owe one less   not due, e < threshold        skip

A step whose error is not known computes and is not owed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dicache.approximators.base import Approximator, Histories, Target, per_row
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.approximators.taylor import until
from dicache.controllers.base import Controller, cost_of, decided
from dicache.errors import ModeError
from dicache.estimators.base import Estimator, Evidence
from dicache.estimators.relative_change import finite
from dicache.tensors.norms import relative_change
from dicache.types import Action, Decision, Grid, Quote, Reason, Rows, Site, Step


@dataclass(frozen=True)
class Chebyshev(Approximator):
    """g."""

    order: int = 4
    ridge: float = 0.1
    """The paper's; Spectrum's code has 0.001."""
    window: int = 10

    action = Action.EXTRAPOLATE

    def __post_init__(self) -> None:
        if self.order < 1 or self.window <= self.order or not self.ridge > 0:
            raise ModeError(f"{self}: expected an order of 1 or more, a window above it and a ridge above 0.")

    @property
    def needs(self) -> int:  # type: ignore[override]
        return self.order + 1

    @property
    def history_depth(self) -> int:
        return self.window

    def guess(self, histories: Histories, target: Target) -> Tensor:
        values = histories.outputs.values[: self.window]
        weights = self._weights(histories.outputs.sigmas[: len(values)], target)
        result = values[0] * per_row(weights[0], values[0])
        for weight, value in zip(weights[1:], values[1:], strict=True):
            result += value * per_row(weight, value)
        return result

    def _weights(self, sigmas: Tensor, target: Target) -> Tensor:
        """How much each known value counts, (K, R) -> (K, R)."""
        times = torch.cat([torch.full_like(sigmas[:1], target.sigma), sigmas])
        mapped = _mapped(times, target)
        basis = (_polynomials(mapped.nan_to_num(), self.order) * mapped.isfinite()[..., None]).transpose(0, 1)
        here, there = basis[:, 0], basis[:, 1:]
        ridge = self.ridge**0.5 * torch.eye(self.order + 1, dtype=basis.dtype).expand(len(here), -1, -1)
        q, r = torch.linalg.qr(torch.cat([there, ridge], dim=1))
        solved = torch.linalg.solve_triangular(r.mT, here[..., None], upper=False)
        return (q @ solved)[:, : len(sigmas), 0].T

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return until(sigmas, self.needs, Extrapolate().growth(sigmas, sigma))


def _mapped(times: Tensor, target: Target) -> Tensor:
    """(K, R) to [-1, 1], the run's end at -1; unknown times stay nan."""
    if target.timetable is None:
        low = times.nan_to_num(torch.inf).amin(0)
        high = times.nan_to_num(-torch.inf).amax(0)
    else:
        low, high = (torch.tensor(f(target.timetable.sigmas), dtype=times.dtype) for f in (min, max))
    return 2 * (times - low) / (high - low).clamp(min=torch.finfo(times.dtype).tiny) - 1


def _polynomials(t: Tensor, order: int) -> Tensor:
    """T_0 .. T_order, (...) -> (..., order + 1): T_{k+1} = 2 t T_k - T_{k-1}."""
    polynomials = [torch.ones_like(t), t]
    while len(polynomials) <= order:
        polynomials.append(2 * t * polynomials[-1] - polynomials[-2])
    return torch.stack(polynomials, dim=-1)


@dataclass(frozen=True)
class Shrunk(Approximator):
    """y. Below kappa = 1 its error grows like that of plain reuse."""

    base: Approximator
    kappa: float

    def __post_init__(self) -> None:
        if not 0 < self.kappa <= 1:
            raise ModeError(f"Shrunk(kappa={self.kappa}): expected a number above 0 and up to 1.")

    @property
    def action(self) -> Action:  # type: ignore[override]
        return self.base.action

    @property
    def needs(self) -> int:  # type: ignore[override]
        return self.base.needs

    @property
    def history_depth(self) -> int:
        return self.base.history_depth

    @property
    def reads_noise(self) -> bool:  # type: ignore[override]
        return self.base.reads_noise

    @property
    def reads_feature(self) -> bool:  # type: ignore[override]
        return self.base.reads_feature

    @property
    def multiplies(self) -> bool:  # type: ignore[override]
        return self.base.multiplies

    def guess(self, histories: Histories, target: Target) -> Tensor:
        return torch.lerp(histories.outputs.values[0], self.base.guess(histories, target), self.kappa)

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        growth = self.base.growth(sigmas, sigma)
        return growth if self.kappa == 1 else torch.where(growth.isfinite(), Reuse().growth(sigmas, sigma), torch.nan)

    @property
    def own_bytes(self) -> int:
        return self.base.own_bytes

    def check(self, denoiser: nn.Module, sites: Sequence[Site]) -> None:
        self.base.check(denoiser, sites)


@dataclass(frozen=True)
class Disagreement(Estimator[int]):
    """e, the same for all approximators; which one is handed out is the first of the configuration. State: how many."""

    base: int = 0
    """Position of approximator a in the configuration."""
    observer: int = 1

    def init(self, samples: int, n_approximators: int) -> int:
        return n_approximators

    def predict(self, evidence: Evidence, state: int) -> Grid:
        base, observer = evidence.guess(self.base), evidence.guess(self.observer)
        if base is None or observer is None:
            return torch.full((len(evidence.growth), state), torch.inf, dtype=torch.float64)
        both = evidence.growth[:, [self.base, self.observer]].isfinite().all(1)
        predicted = finite(relative_change(observer, base), state)
        return torch.where(both[:, None], predicted, torch.inf)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: int) -> int:
        return state


class Debt(NamedTuple):
    passed: Rows
    """Steps so far, (B,)."""
    owed: Rows
    spent: Rows


@dataclass(frozen=True)
class Repaid(Controller[Debt]):
    """Compute, skip, owe."""

    threshold: float
    interval: int = 5
    first: int = 1
    """Steps that compute at the start."""

    def __post_init__(self) -> None:
        if self.interval < 1 or self.first < 1:
            raise ModeError(f"{self}: expected an interval and a first of 1 or more.")

    def init(self, samples: int) -> Debt:
        none = torch.zeros(samples, dtype=torch.int64)
        return Debt(none, none.clone(), torch.zeros(samples, dtype=torch.float64))

    def decide(self, quote: Quote, step: Step, state: Debt) -> tuple[Decision, Debt]:
        warm, risky = state.passed < self.first, ~(quote.error < self.threshold)
        due = (state.passed - self.first + 1) % self.interval == 0
        skip = ~warm & ~risky & (~due | (state.owed > 0))
        early = ~warm & ~due & risky & quote.error.isfinite()
        owed = state.owed + early.long() - (skip & due).long()
        spent = state.spent + cost_of(quote, skip)
        over = (quote.error.isfinite(), Reason.OVER_BUDGET)
        decision = decided(quote, skip, spent, over, (due, Reason.SCHEDULED), (warm, Reason.WARM_UP))
        return decision, Debt(state.passed + 1, owed, spent)
