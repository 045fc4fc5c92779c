"""TaylorSeer (arXiv 2503.06923) as published: backward differences of computed values, nested, in place of derivatives.

    D_0^i = v_i,    D_j^i = (D_{j-1}^i - D_{j-1}^{i+1}) / (t_i - t_{i+1}),    v(t) ~ sum_{j<=n} D_j^0 (t - t_0)^j / j!

The times are true times where the paper counts steps; on an even grid both are the same. A backward difference is the
derivative half-way back, so only n = 1 is exact on polynomials of its order (`Newton` is for all n), and the error of
any n >= 1 grows like that of a line.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target, per_row
from dicache.approximators.linear import Extrapolate
from dicache.errors import ModeError
from dicache.types import Action, Rows


@dataclass(frozen=True)
class Taylor(Approximator):
    order: int = 1

    action = Action.EXTRAPOLATE
    over_ranks = True

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ModeError(f"Taylor(order={self.order}): expected 1 or more; order 0 is Reuse().")

    @property
    def needs(self) -> int:  # type: ignore[override]
        return self.order + 1

    def guess(self, histories: Histories, target: Target) -> Tensor:
        ahead = target.sigma - histories.outputs.sigmas[0]
        return expand(histories, [ahead**j / math.factorial(j) for j in range(self.needs)])

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return until(sigmas, self.needs, Extrapolate().growth(sigmas, sigma))


def expand(histories: Histories, basis: list[Rows]) -> Tensor:
    """sum_j D_j basis_j, with basis_j of the unit of sigma^j, (R,) each; undefined for rows with a shorter history."""
    sigmas, level = histories.outputs.sigmas, list(histories.outputs.values[: len(basis)])
    result = level[0].clone()
    for weight in basis[1:]:
        gaps = [sigmas[i] - sigmas[i + 1] for i in range(len(level) - 1)]
        level = [(level[i] - level[i + 1]) * per_row(_finite(1 / gap), result) for i, gap in enumerate(gaps)]
        result += level[0] * per_row(_finite(weight), result)
    return result


def until(sigmas: Tensor, needs: int, growth: Rows) -> Rows:
    """`growth`, (R,), nan for rows with fewer than `needs` values."""
    return torch.where(sigmas[needs - 1].isfinite(), growth, torch.nan)


def _finite(x: Rows) -> Rows:
    return x.nan_to_num(0.0, 0.0, 0.0)
