"""An intermediate head: what a shallow probe sees that its own past did not foretell, through a linear map (the idea of
a head in between, from which deeper layers can be left out: layer pruning on demand, arXiv 2106.09216).

    l(u) = u_0 + (u_0 - u_1) tau / D        the line through the last two computed steps, tau = sigma - sigma_0 and
                                            D = sigma_0 - sigma_1
    v ~ l(v) + (P - l(P)) W_b,              W_b = argmin sum |dv - dP W|^2 + lambda |W|^2,      error ~ |tau (tau + D)|

v is the output of the whole evaluation, P the picture stream after the first m blocks, dv and dP what lines miss of
both along recorded runs, at all gaps up to the longest. The run's steps fall into bands of equal length, b is that of
the step: a head changes with the noise. Where the probe foretells itself the guess is the line; where the denoiser is
linear in P it is exact. The probe's blocks are never wasted: computing goes on from them.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dicache.approximators.base import Histories, Target
from dicache.approximators.fitted.base import FromCoefficients
from dicache.approximators.linear import Extrapolate
from dicache.errors import UnsupportedModelError
from dicache.extension import combine
from dicache.tensors.token_grid import as_picture, as_tokens, tokens
from dicache.types import Rows


class Innovation(FromCoefficients):
    """`depth` is how many blocks the probe runs. Values may be pictures of which the feature has a token a patch."""

    needs = 2
    reads_feature = True
    multiplies = True
    names: ClassVar[Mapping[str, str]] = {"weight": "BXC", "depth": ""}

    def guess(self, histories: Histories, target: Target) -> Tensor:
        value, feature = histories.outputs.values[0], target.feature
        seen = None if feature is None else tokens(feature)
        if seen is None or seen.ndim != 3 or (anchor := as_tokens(value, seen.shape[1])) is None:
            raise mismatched(target.site, value, feature)
        self._check_channels(anchor, target._replace(feature=seen))
        correction = self.corrected(anchor, histories, target._replace(feature=seen))
        return line(histories.outputs.values, histories.outputs.sigmas, target) + as_picture(correction, value.shape)

    def corrected(self, anchor: Tensor, histories: Histories, target: Target) -> Tensor:
        """What is added to the line, (R, N, C)."""
        assert target.feature is not None
        foretold = line([tokens(f) for f in histories.features.values[:2]], histories.outputs.sigmas, target)
        weight = self.at("weight", target, foretold)
        return ((target.feature - foretold) @ weight[self._band(target.sigma, len(weight))]).to(anchor.dtype)

    def _band(self, sigma: float, bands: int) -> int:
        """That of the fitted step which is nearest."""
        return int(self.steps(torch.tensor(sigma, dtype=torch.float64))) * bands // len(self.sigmas)

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return Extrapolate().growth(sigmas, sigma)


def line(values: tuple[Tensor, ...] | list[Tensor], sigmas: Tensor, target: Target) -> Tensor:
    """l(u) of (R, ...) values at these sigmas, (K, R), newest first."""
    ratio = ((target.sigma - sigmas[0]) / (sigmas[0] - sigmas[1])).nan_to_num(0.0, 0.0, 0.0)
    return combine(tuple(values[:2]), torch.stack([1 + ratio, -ratio], dim=1))


def mismatched(site: str, value: Tensor, feature: Tensor | None) -> UnsupportedModelError:
    shape = None if feature is None else tuple(feature.shape)
    return UnsupportedModelError(
        f"{site or 'the denoiser'} gives {tuple(value.shape)} and the probe saw {shape}: not rows, tokens, channels of "
        "the same tokens. Use probe=FirstBlocks(depth) with whole evaluations, or another kind of coefficients."
    )
