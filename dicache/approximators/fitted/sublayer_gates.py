"""LazyDiT's gates (arXiv 2412.12444), fitted to errors that were recorded: whether a site may be held, by what goes in.

With z the input of a site, the mean over its tokens, at step t, g steps after it was last computed,

    p = 1 / (1 + exp(-(w_t . z + b_tg)))        the odds that holding the value errs by more than what was fitted to

The site computes where p is 1/2 or more, per sample. The paper has w alone, trained with the images' loss, and lets
what is held be held again without end; here b says what a gap of g steps usually costs, and gaps longer than those
fitted compute.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dicache.approximators.base import Histories, Target
from dicache.approximators.fitted.base import FromCoefficients
from dicache.estimators.base import Estimator, Evidence
from dicache.estimators.relative_change import finite
from dicache.types import Action, Grid, Rows

CERTAIN = 20.0
"""The bias of what is never to be held."""


class Gates(FromCoefficients):
    """Holds the value; when it may is in the coefficients."""

    action = Action.REUSE
    reads_feature = True
    pooled = True
    names: ClassVar[Mapping[str, str]] = {"weight": "TX", "bias": "TG"}

    def corrected(self, anchor: Tensor, histories: Histories, target: Target) -> Tensor:
        return anchor.clone()

    def odds(self, site: str, sigma: float, pooled: Tensor, gaps: Tensor) -> Rows:
        """p of every row, (R,), from its input, (R, X), and how many steps ago it computed, (R,) int64; 1 where that is
        longer than what was fitted.
        """
        target, i = Target(sigma, pooled, site=site), self.step(sigma)
        weight, bias = (self.at(name, target, pooled, torch.float32)[i] for name in ("weight", "bias"))
        gaps = gaps.to(pooled.device)
        logit = pooled.float() @ weight + bias[(gaps - 1).clamp(0, len(bias) - 1)]
        return torch.where(gaps <= len(bias), logit.sigmoid(), 1.0)


class Waited(NamedTuple):
    n_approximators: int
    steps: Rows
    """Since the site was computed, (B,) int64."""


@dataclass(frozen=True)
class Gated(Estimator[Waited]):
    """The odds p in the place of an error. Needs the probe `PooledInput`."""

    gates: Gates

    def init(self, samples: int, n_approximators: int) -> Waited:
        return Waited(n_approximators, torch.zeros(samples, dtype=torch.int64))

    def predict(self, evidence: Evidence, state: Waited) -> Grid:
        if evidence.feature is None or evidence.step is None:
            return torch.full((len(state.steps), state.n_approximators), torch.inf, dtype=torch.float64)
        odds = self.gates.odds(evidence.site, evidence.step.sigma, evidence.feature, state.steps + 1)
        return finite(odds, state.n_approximators)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Waited) -> Waited:
        return state._replace(steps=torch.where(computed, 0, state.steps + 1))
