"""How much a site's value changed from one computed step to the next (BWCache, arXiv 2509.13789): known once the later
of them is over, and the same until another is.

    e = |v_a - v_b|_1 / |v_b|_1        a, b the last two computed steps

Nothing is measured while a gap is open, and no probe is asked.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.estimators.base import Estimator, Evidence
from dicache.estimators.relative_change import finite, updated
from dicache.tensors.norms import relative_change_l1
from dicache.types import Grid, Rows


class Change(NamedTuple):
    output: Tensor | None
    """v_a, (B, ...)."""
    change: Grid
    """(B, A); inf until it is known."""


@dataclass(frozen=True)
class ComputedChange(Estimator[Change]):
    def held(self, feature: int, output: int, latent: int) -> int:
        return output

    def init(self, samples: int, n_approximators: int) -> Change:
        return Change(None, torch.full((samples, n_approximators), torch.inf, dtype=torch.float64))

    def predict(self, evidence: Evidence, state: Change) -> Grid:
        return state.change.clone()

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Change) -> Change:
        now = evidence.output
        if now is None:
            return state._replace(change=state.change.masked_fill(computed[:, None], torch.inf))
        change = state.change
        if state.output is not None:
            change = finite(relative_change_l1(now, state.output), change.shape[1])
        elif bool(computed.any()):
            change = torch.full_like(change, torch.inf)
        change = torch.where(computed[:, None], change, state.change)
        return Change(updated(state.output, now, None if bool(computed.all()) else computed), change)
