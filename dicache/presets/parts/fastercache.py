"""What a weaker guidance branch differs by from the strongest one, with a gain for its coarse and one for its fine
spatial frequencies (CFG-Cache of FasterCache, arXiv 2410.19355).

    d ~ g_L L d_0 + g_H (d_0 - L d_0)        L keeps frequencies within `radius` of 0

Early the coarse part of the difference grows, late the fine one. Where what is guessed is no difference (the strongest
branch is called last), or the place in the run is not known, the last value is held.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.hold import Reuse
from dicache.tensors.token_grid import sides
from dicache.types import Action, Rows


@dataclass(frozen=True)
class Bands(Approximator):
    low: float = 1.1
    high: float = 1.1
    until: float = 0.8
    """Share of the run's steps up to which the coarse part has its gain."""
    since: float = 0.6
    """Share from which on the fine part has."""
    part: int = 5
    """The radius is the shorter side over this, rounded down."""
    size: tuple[int, int] | None = None
    """Rows and columns of tokens; None for a square, or for outputs that are pictures."""

    action = Action.REUSE
    needs = 1

    def guess(self, histories: Histories, target: Target) -> Tensor:
        newest = histories.outputs.values[0]
        if not target.difference or math.isnan(target.passed):
            return newest.clone()
        low = self.low if target.passed <= self.until else 1.0
        high = self.high if target.passed >= self.since else 1.0
        return high * newest + (low - high) * self.coarse(newest)

    def coarse(self, x: Tensor) -> Tensor:
        """(R, N, C) or (R, ..., H, W) to the same: the frequencies within the radius. Raises UnsupportedModelError
        where the tokens do not fill the size.
        """
        if x.ndim != 3:
            return self._filtered(x)
        height, width = sides(x.shape[1], self.size)
        return self._filtered(x.mT.unflatten(2, (height, width))).flatten(2).mT

    def _filtered(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        spectrum = torch.fft.rfft2(x.to(torch.promote_types(x.dtype, torch.float32)))
        rows, columns = (torch.fft.fftfreq(n, 1 / n, device=x.device) for n in (height, width))
        inside = rows[:, None] ** 2 + columns[: width // 2 + 1] ** 2 <= (min(height, width) // self.part) ** 2
        return torch.fft.irfft2(spectrum * inside, s=(height, width)).to(x.dtype)

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return Reuse().growth(sigmas, sigma)
