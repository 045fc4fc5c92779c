"""How long a gap may be, looked up at its start (AdaCache, arXiv 2411.02397), told as the share of it that is used up.

    c = |v_a - v_b|_1 / |v_b|_1 / (steps from b to a),        a, b the last two computed steps
    e = (steps since a) / gap(c),                             gap(c) that of the first bound above c

`Threshold(1.0)` then computes at the gap's end. Nothing is measured while a gap is open.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.estimators.base import Estimator, Evidence
from dicache.estimators.relative_change import finite, updated
from dicache.tensors.norms import relative_change_l1
from dicache.types import Grid, Rows

FAST = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.0, 1))
"""Bound of c and gap, for 30 steps."""
SLOW = ((0.08, 3), (0.16, 2), (1.0, 1))


class LookedUp(NamedTuple):
    n_approximators: int
    output: Tensor | None
    """v_a, (B, ...)."""
    since: Rows
    """Steps since a, (B,)."""
    gap: Rows
    """1, which computes, until c is known."""


@dataclass(frozen=True)
class Codebook(Estimator[LookedUp]):
    entries: tuple[tuple[float, int], ...] = FAST

    def own_bytes(self, feature: int, output: int, latent: int) -> int:
        return output

    def init(self, samples: int, n_approximators: int) -> LookedUp:
        one = torch.ones(samples, dtype=torch.float64)
        return LookedUp(n_approximators, None, one, one.clone())

    def predict(self, evidence: Evidence, state: LookedUp) -> Grid:
        return (state.since / state.gap)[:, None].repeat(1, state.n_approximators)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: LookedUp) -> LookedUp:
        output, gap = state.output, state.gap
        if evidence.output is None:
            return state._replace(
                since=torch.where(computed, 1.0, state.since + 1), gap=torch.where(computed, 1.0, gap)
            )
        if output is not None:
            change = finite(relative_change_l1(evidence.output, output), 1)[:, 0] / state.since
            gap = torch.where(computed, self._looked_up(change), gap)
        output = updated(output, evidence.output, None if bool(computed.all()) else computed)
        return LookedUp(state.n_approximators, output, torch.where(computed, 1.0, state.since + 1), gap)

    def _looked_up(self, change: Rows) -> Rows:
        gap = torch.ones_like(change)
        for bound, steps in sorted(self.entries, reverse=True):
            gap = torch.where(change < bound, float(steps), gap)
        return gap
