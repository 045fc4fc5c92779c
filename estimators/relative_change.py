"""How much the probe's feature moved: the estimate of nearly every published method.

    e = |p_i - p_ref| / |p_ref|        per sample, ref the previous step or the last computed one

Against the previous step it is meant to be added up (`dicache.estimators.accumulated`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dicache.estimators.base import Estimator, Evidence
from dicache.ranks.sums import Pair
from dicache.tensors.norms import relative_change, relative_change_l1
from dicache.types import Grid, Rows


class Reference(NamedTuple):
    n_approximators: int
    feature: Tensor | None
    """(B, ...), None before the first."""


@dataclass(frozen=True)
class RelativeChange(Estimator[Reference]):
    against: Literal["previous", "computed"] = "previous"
    norm: Literal["l1", "l2"] = "l1"
    part: int | None = None
    """Which of a probe's features, where it has several; None for the whole of it."""

    @property
    def over_ranks(self) -> bool:
        return True

    def own_bytes(self, feature: int, output: int, latent: int) -> int:
        return feature

    def init(self, samples: int, n_approximators: int) -> Reference:
        return Reference(n_approximators, None)

    def pairs(self, evidence: Evidence, state: Reference) -> Sequence[Pair]:
        if evidence.feature is None or state.feature is None:
            return ()
        return ((self._part(evidence.feature), self._part(state.feature)),)

    def predict(self, evidence: Evidence, state: Reference) -> Grid:
        if evidence.feature is None or state.feature is None:
            return torch.full((len(evidence.growth), state.n_approximators), torch.inf, dtype=torch.float64)
        measure = relative_change_l1 if self.norm == "l1" else relative_change
        ((feature, before),) = self.pairs(evidence, state)
        return finite(measure(feature, before, evidence.sums.of), state.n_approximators)

    def _part(self, feature: Tensor) -> Tensor:
        return feature if self.part is None else feature[:, self.part]

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Reference) -> Reference:
        if evidence.feature is None:
            return state
        everywhere = self.against == "previous" or bool(computed.all())
        return state._replace(feature=updated(state.feature, evidence.feature, None if everywhere else computed))


def finite(error: Rows, n_approximators: int) -> Grid:
    """One estimate for all approximators: (B,) anywhere to (B, A) float64 on the host, inf where not finite."""
    error = error.double().cpu()
    return torch.where(error.isfinite(), error, torch.inf)[:, None].repeat(1, n_approximators)


def updated(old: Tensor | None, new: Tensor, rows: Rows | None) -> Tensor:
    """`new`, (B, ...), where `rows`, (B,) bool, hold, else `old`; nan where there is none. None for all rows."""
    if rows is None:
        return new.detach().clone()
    old = torch.full_like(new, torch.nan) if old is None else old
    return torch.where(rows.to(new.device).view(-1, *[1] * (new.ndim - 1)), new.detach(), old)
