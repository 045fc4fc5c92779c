"""Norms per sample: (B, ...) -> (B,). The batch is never reduced over.

All are read off `residual_sums`, the one place that touches the data.
"""

from torch import Tensor

from dicache.extension import residual_sums
from dicache.types import Rows


def relative_change(now: Tensor, then: Tensor) -> Rows:
    """||now - then|| / ||then||, both L2. Not finite where `then` is zero or anything is not finite."""
    sums = residual_sums(now, then)
    return (sums[:, 2] / sums[:, 3]).sqrt()


def relative_change_l1(now: Tensor, then: Tensor) -> Rows:
    """|now - then|_1 / |then|_1, the measure of DiCache and TeaCache."""
    sums = residual_sums(now, then)
    return sums[:, 0] / sums[:, 1]


def length(x: Tensor) -> Rows:
    """||x||, L2."""
    return residual_sums(x, x)[:, 5].sqrt()
