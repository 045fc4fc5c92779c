"""The two operations in plain torch: what the native ones are tested against, and the path where there is none.

Any floating dtype and any device. Sums run in float32, for float64 in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def residual_sums(a: Tensor, b: Tensor) -> Tensor:
    """(B, ...), (B, ...) -> (B, 6) float32: sum|a - b|, sum|b|, sum(a - b)^2, sum b^2, sum a b, sum a^2."""
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    a, b = (x.reshape(len(x), x[:1].numel()).to(wide) for x in (a, b))
    d = a - b
    terms = (d.abs(), b.abs(), d * d, b * b, a * b, a * a)
    return torch.stack([term.sum(1) for term in terms], dim=1).float()


def combine(terms: Sequence[Tensor], coefficients: Tensor, *, to_float: bool = False) -> Tensor:
    """K of (B, ...), (B, K) on the host -> (B, ...). A term whose coefficient is 0 is not read: it may hold nan."""
    first = terms[0]
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    weights = coefficients.to(wide).to(first.device)
    total = torch.zeros(first.shape, dtype=wide, device=first.device)
    for k, term in enumerate(terms):
        weight = weights[:, k].view(-1, *[1] * (first.ndim - 1))
        total = torch.where(weight == 0, total, total + weight * term)
    return total if to_float else total.to(first.dtype)


class Eager:
    """As a path to choose (`dicache.extension.choice.Operations`)."""

    name = "eager (torch)"

    def residual_sums(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        out.copy_(residual_sums(a, b))

    def combine(self, terms: Sequence[Tensor], coefficients: Tensor, out: Tensor) -> None:
        out.copy_(combine(terms, coefficients, to_float=out.dtype != terms[0].dtype))
