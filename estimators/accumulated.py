"""What another estimator says, added up since the last computed step: the sum that TeaCache, DiCache, EasyCache and
SeaCache hold against a threshold.

    E_i = E_{i-1} + e_i,        E = 0 after a computed step

The sum overestimates a feature that swings to and fro (triangle inequality), and it is what those methods use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from dicache.estimators.base import Estimator, Evidence
from dicache.ranks.sums import Pair
from dicache.types import Grid, Rows

S = TypeVar("S")


class Sum(NamedTuple, Generic[S]):
    inner: S
    total: Grid
    """(B, A)."""


@dataclass(frozen=True)
class Accumulated(Estimator[Sum[Any]]):
    inner: Estimator[Any]

    @property
    def over_ranks(self) -> bool:
        return self.inner.over_ranks

    def own_bytes(self, feature: int, output: int, latent: int) -> int:
        return self.inner.own_bytes(feature, output, latent)

    def init(self, samples: int, n_approximators: int) -> Sum[Any]:
        return Sum(
            self.inner.init(samples, n_approximators), torch.zeros(samples, n_approximators, dtype=torch.float64)
        )

    def pairs(self, evidence: Evidence, state: Sum[Any]) -> Sequence[Pair]:
        return self.inner.pairs(evidence, state.inner)

    def predict(self, evidence: Evidence, state: Sum[Any]) -> Grid:
        return state.total + self.inner.predict(evidence, state.inner)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Sum[Any]) -> Sum[Any]:
        total = torch.zeros_like(state.total)
        if not bool(computed.all()):
            total = torch.where(computed[:, None], total, self.predict(evidence, state))
        return Sum(self.inner.observe(realised, evidence, computed, state.inner), total)
