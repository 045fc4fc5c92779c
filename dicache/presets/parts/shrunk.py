"""Another approximator's guess, drawn towards the last exact value (RACER, arXiv 2608.01740).

    y = v_0 + kappa (g - v_0),        |y - v| <= kappa |g - v| + (1 - kappa) |v_0 - v|

A wild guess does less harm and a good one less good; below kappa = 1 the error grows like that of plain reuse.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.hold import Reuse
from dicache.errors import ModeError
from dicache.types import Action, Rows, Site


@dataclass(frozen=True)
class Shrunk(Approximator):
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
