"""Block Caching's scale and shift (arXiv 2312.03209): what is consumed at step t is the held value, moved per channel
as values of that step usually have to be, whenever they were computed.

    v(t) ~ (1 + gamma_t) v_0 + beta_t,        error ~ |tau|

The paper learns gamma and beta as a linear layer on the time embedding, by distillation along cached trajectories; here
they are a table over the steps, by least squares over all gaps that were recorded. They are a function of the step
only: where the gap matters, `Affine` has a pair for each.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dicache.approximators.base import Histories, Target
from dicache.approximators.fitted.base import FromCoefficients


class ScaleShift(FromCoefficients):
    names: ClassVar[Mapping[str, str]] = {"gamma": "TC", "beta": "TC", "change": "T"}
    """`change` is how far values of a step usually are from those of the step before, |dv|_1 / |v|_1."""

    def corrected(self, anchor: Tensor, histories: Histories, target: Target) -> Tensor:
        i = self.step(target.sigma)
        gamma, beta = (self.at(name, target, anchor, torch.float32)[i] for name in ("gamma", "beta"))
        return (anchor + gamma * anchor + beta).to(anchor.dtype)
