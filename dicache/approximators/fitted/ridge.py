"""What FastCache (arXiv 2505.20353) meant, fitted where its code leaves it random: a linear map per site in place of
the site, here of the change since the anchor, so that what is exact there stays exact.

    v ~ v_0 + (x - x_0) W,        W = argmin sum |dv - dx W|^2 + lambda |W|^2,        error ~ |tau|

x is the site's input now, x_0 its input when v_0 was computed, dx and dv the same differences along recorded runs.
Where the input stands still the value is held; where the site is linear the guess is exact.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from dicache.approximators.base import Histories, Target
from dicache.approximators.fitted.base import FromCoefficients, moved


class Ridge(FromCoefficients):
    reads_feature = True
    multiplies = True
    names: ClassVar[Mapping[str, str]] = {"weight": "XC"}

    def corrected(self, anchor: Tensor, histories: Histories, target: Target) -> Tensor:
        change = moved(anchor, histories, target)
        return anchor + (change @ self.at("weight", target, change)).to(anchor.dtype)
