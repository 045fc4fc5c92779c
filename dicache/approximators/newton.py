"""Any order: the polynomial through the last exact values, in Newton's form, along true time (TaylorSeer, arXiv
2503.06923, with divided differences in place of step counts).

    v(sigma) ~ sum_k  [v_0, .., v_k] prod_{j<k} (sigma - sigma_j),        error ~ prod_{j<=n} |sigma - sigma_j|

[v_0] = v_0 and [v_i, .., v_k] = ([v_i, .., v_{k-1}] - [v_{i+1}, .., v_k]) / (sigma_i - sigma_k).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target, per_row
from dicache.errors import ModeError
from dicache.types import Action, Rows


@dataclass(frozen=True)
class Newton(Approximator):
    order: int = 2

    action = Action.EXTRAPOLATE
    over_ranks = True

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ModeError(f"Newton(order={self.order}): expected 1 or more; order 0 is Reuse().")

    @property
    def needs(self) -> int:  # type: ignore[override]
        return self.order + 1

    def guess(self, histories: Histories, target: Target) -> Tensor:
        sigmas, level = histories.outputs.sigmas, list(histories.outputs.values[: self.needs])
        result, weight = level[0].clone(), torch.ones_like(sigmas[0])
        for k in range(1, self.needs):
            gaps = [sigmas[i] - sigmas[i + k] for i in range(len(level) - 1)]
            level = [(level[i] - level[i + 1]) * per_row(_inverse(gap), result) for i, gap in enumerate(gaps)]
            weight = weight * (target.sigma - sigmas[k - 1])
            result += level[0] * per_row(weight.nan_to_num(0.0), result)
        return result

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return (sigma - sigmas[: self.needs]).prod(0).abs()


def _inverse(gap: Rows) -> Rows:
    return (1 / gap).nan_to_num(0.0, 0.0, 0.0)
