"""HiCache (arXiv 2508.16984): TaylorSeer's differences on contracted Hermite polynomials in place of powers.

    v(k) ~ v_0 + sum_{1<=j<=n} D_j s^j H_j(s k) / j!        H_1(x) = 2 x,  H_{j+1}(x) = 2 x H_j(x) - 2 j H_{j-1}(x)

k counts steps since the newest value, forward; the basis is not homogeneous, so k needs a unit. It is the mean length
of the steps passed since (the length of the last gap where no timetable is known), and D_j is taken along true time in
that unit: on an even grid this is the paper's. At the usual s = 1/2, s H_1(s k) = k / 2, half of the slope: the guess
is not exact on lines and its error grows like that of plain reuse.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.hold import Reuse
from dicache.approximators.taylor import expand, until
from dicache.errors import ModeError
from dicache.types import Action, Rows


@dataclass(frozen=True)
class Hermite(Approximator):
    order: int = 2
    contraction: float = 0.5

    action = Action.EXTRAPOLATE
    over_ranks = True

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ModeError(f"Hermite(order={self.order}): expected 1 or more; order 0 is Reuse().")

    @property
    def needs(self) -> int:  # type: ignore[override]
        return self.order + 1

    def guess(self, histories: Histories, target: Target) -> Tensor:
        unit = self._unit(histories.outputs.sigmas, target)
        x = self.contraction * (target.sigma - histories.outputs.sigmas[0]) / unit
        polynomials = [torch.ones_like(x), 2 * x]
        for j in range(1, self.order):
            polynomials.append(2 * x * polynomials[j] - 2 * j * polynomials[j - 1])
        return expand(
            histories, [(self.contraction * unit) ** j * p / math.factorial(j) for j, p in enumerate(polynomials)]
        )

    def _unit(self, sigmas: Tensor, target: Target) -> Rows:
        """One step's way in sigma, with its sign, (R,)."""
        if target.timetable is None:
            return sigmas[0] - sigmas[1]
        grid = torch.tensor(target.timetable.sigmas, dtype=torch.float64)
        sigma = torch.stack([sigmas[0], torch.full_like(sigmas[0], target.sigma)])
        newest, here = (sigma[..., None] - grid).abs().nan_to_num().argmin(-1)
        return (target.sigma - sigmas[0]) / (here - newest).clamp(min=1)

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return until(sigmas, self.needs, Reuse().growth(sigmas, sigma))
