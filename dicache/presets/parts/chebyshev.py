"""A ridge fit of Chebyshev polynomials over a window of exact values, along true time (Spectrum, arXiv 2603.01623; the
base of RACER, arXiv 2608.01740).

    v(t) ~ sum_{k<=M} c_k T_k(t),    c = argmin sum_j |v_j - sum_k c_k T_k(t_j)|^2 + ridge |c|^2,    t in [-1, 1]

The run's times are mapped to [-1, 1]; where no course is known, those of the window and the time to guess. c is linear
in the values, so that the guess is a weighted sum of them and the fit is done on the host, for every row at its own
times. With a ridge the fit is exact on nothing, not even on constants, which it draws towards 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target, per_row
from dicache.approximators.linear import Extrapolate
from dicache.approximators.taylor import until
from dicache.errors import ModeError
from dicache.types import Action, Rows


@dataclass(frozen=True)
class Chebyshev(Approximator):
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
    found = [torch.ones_like(t), t]
    while len(found) <= order:
        found.append(2 * t * found[-1] - found[-2])
    return torch.stack(found, dim=-1)
