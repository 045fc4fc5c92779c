"""CacheQuant's decoupled error correction for the error of caching (arXiv 2503.01323): per channel the least-squares
line from the value of the anchor step c to that of step t, in closed form.

    v(t) ~ a_tc v_0 + b_tc,        a = cov(v_t, v_c) / var(v_c),    b = mean v_t - a mean v_c,        error ~ |tau|

A pair for every step and gap, so each row is corrected from its own anchor; where nothing was fitted (a longer gap) the
value is held. The correction of quantised weights is not part of this.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dicache.approximators.base import Histories, Target
from dicache.approximators.fitted.base import FromCoefficients


class Affine(FromCoefficients):
    names: ClassVar[Mapping[str, str]] = {"a": "TGC", "b": "TGC"}

    def corrected(self, anchor: Tensor, histories: Histories, target: Target) -> Tensor:
        i = self.step(target.sigma)
        a, b = (self.at(name, target, anchor, torch.float32)[i] for name in ("a", "b"))
        gaps = (i - self.steps(histories.outputs.sigmas[0])).to(a.device)
        fitted = ((gaps >= 1) & (gaps <= len(a)))[:, None, None]
        column = (gaps - 1).clamp(0, len(a) - 1)
        line = a[column][:, None] * anchor + b[column][:, None]
        return torch.where(fitted, line, anchor).to(anchor.dtype)
