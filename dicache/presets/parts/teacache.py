"""Another estimator's answer through a fitted polynomial (TeaCache): from the change of an input to that of the output.

    e = max(0, sum_k c_k x^k),        x clamped to the range it was fitted on

Fitted polynomials fall and turn negative outside that range (TeaCache's own for Wan gives -5 at 0.15), and a negative
sum would skip for ever: hence both clamps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dicache.estimators.base import Estimator, Evidence
from dicache.ranks.sums import Pair
from dicache.types import Grid, Rows

TEACACHE_FLUX = (498.65, -283.78, 55.86, -3.82, 0.264)
"""TeaCache's, highest power first; fitted on FLUX.1-dev."""


@dataclass(frozen=True)
class Polynomial(Estimator[Any]):
    inner: Estimator[Any]
    coefficients: Sequence[float]
    """Highest power first."""
    support: tuple[float, float] = (0.0, math.inf)

    def own_bytes(self, feature: int, output: int, latent: int) -> int:
        return self.inner.own_bytes(feature, output, latent)

    def init(self, samples: int, n_approximators: int) -> Any:  # noqa: ANN401
        return self.inner.init(samples, n_approximators)

    @property
    def over_ranks(self) -> bool:
        return self.inner.over_ranks

    def pairs(self, evidence: Evidence, state: Any) -> Sequence[Pair]:  # noqa: ANN401
        return self.inner.pairs(evidence, state)

    def predict(self, evidence: Evidence, state: Any) -> Grid:  # noqa: ANN401
        x = self.inner.predict(evidence, state)
        clamped, y = x.clamp(*self.support), torch.zeros_like(x)
        for c in self.coefficients:
            y = y * clamped + c
        return torch.where(x.isfinite() & y.isfinite(), y.clamp(min=0.0), torch.inf)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Any) -> Any:  # noqa: ANN401
        return self.inner.observe(realised, evidence, computed, state)
