"""Increment-calibrated caching (ICC, arXiv 2505.05829): the change of the input, through a map of low rank.

    v ~ v_0 + (x - x_0) A B,        A B = R^-1 [R W L]_r L^-1,        error ~ |tau|

[.]_r keeps the r largest singular values. R and L are diagonal, the usual magnitudes of the input's and the value's
channels to the power alpha = 1/2: channels that carry more keep more. As in the paper W is the weights of every linear
layer, and what lies between them is computed, where the sites are `Linears()`. A site may be anything else too: W is
then the ridge map of its increments (`dicache.approximators.fitted.ridge`), which for a linear layer is its weights.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from dicache.approximators.base import Histories, Target
from dicache.approximators.fitted.base import FromCoefficients, moved


class LowRank(FromCoefficients):
    reads_feature = True
    multiplies = True
    names: ClassVar[Mapping[str, str]] = {"down": "XK", "up": "KC"}

    def corrected(self, anchor: Tensor, histories: Histories, target: Target) -> Tensor:
        change = moved(anchor, histories, target)
        down, up = (self.at(name, target, change) for name in ("down", "up"))
        return anchor + (change @ down @ up).to(anchor.dtype)
