"""Norms per sample: (B, ...) -> (B,). The batch is never reduced over.

All are read off `residual_sums`, the one place that touches the data. Whatever they divide by 0, or was not finite, is
not finite.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from dicache.extension import residual_sums
from dicache.types import Rows

SumsOf = Callable[[Tensor, Tensor], Tensor]
"""`residual_sums`, or what stands in its place."""


class Alignment(NamedTuple):
    coefficient: Rows
    """c = <a, b> / ||b||^2: how far along b the sample's a goes."""
    trust: Rows
    """cos^2 of the two: the share of a, squared, that lies along b."""


def relative_change(after: Tensor, before: Tensor, sums_of: SumsOf = residual_sums) -> Rows:
    """||after - before|| / ||before||, both L2; `sums_of` where the tensors are parts of larger ones."""
    sums = sums_of(after, before)
    return (sums[:, 2] / sums[:, 3]).sqrt()


def relative_change_l1(after: Tensor, before: Tensor, sums_of: SumsOf = residual_sums) -> Rows:
    """|after - before|_1 / |before|_1, the measure of DiCache and TeaCache."""
    sums = sums_of(after, before)
    return sums[:, 0] / sums[:, 1]


def cosine(a: Tensor, b: Tensor) -> Rows:
    """<a, b> / (||a|| ||b||)."""
    sums = residual_sums(a, b)
    return sums[:, 4] / (sums[:, 3].sqrt() * sums[:, 5].sqrt())


def alignment(a: Tensor, b: Tensor) -> Alignment:
    """Least squares of a on b, min over c of ||a - c b||, and how far to trust it."""
    sums = residual_sums(a, b)
    coefficient = sums[:, 4] / sums[:, 3]
    return Alignment(coefficient, coefficient * (sums[:, 4] / sums[:, 5]))


def length(x: Tensor) -> Rows:
    """||x||, L2."""
    return residual_sums(x, x)[:, 5].sqrt()


def root_mean_square(x: Tensor) -> Rows:
    """||x|| / sqrt(elements per sample)."""
    return length(x) / math.sqrt(x[0].numel())


def change_per_token(value: Tensor, reference: Tensor) -> Tensor:
    """||value_n - reference_n|| of every token: (B, N, C) each to (B, N), float32."""
    sums = residual_sums(value.flatten(0, 1), reference.flatten(0, 1))
    return sums[:, 2].sqrt().view(value.shape[:2])
