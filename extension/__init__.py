"""Sums that every norm in dicache is made of.

    residual_sums(a, b) -> (B, 6) float32:   sum|a - b|, sum|b|, sum(a - b)^2, sum b^2, sum a b, sum a^2   per sample

From them follow relative change in L1 and L2, cosine, and least-squares alignment: see `dicache.norms`. This is the
plain torch form; it takes any floating dtype and accumulates in float32.
"""

import torch
from torch import Tensor

from dicache.errors import DicacheError

BACKEND = "eager (torch)"


def residual_sums(a: Tensor, b: Tensor) -> Tensor:
    """Six sums per sample of two tensors of one shape, (B, ...), (B, ...) -> (B, 6). Raises DicacheError where shapes
    differ.
    """
    if a.shape != b.shape or a.ndim == 0:
        raise DicacheError(
            f"residual_sums needs two tensors of one shape with a batch axis, not {tuple(a.shape)}, {tuple(b.shape)}."
        )
    a, b = a.flatten(1).float(), b.flatten(1).float()
    d = a - b
    return torch.stack(
        [d.abs().sum(1), b.abs().sum(1), (d * d).sum(1), (b * b).sum(1), (a * b).sum(1), (a * a).sum(1)], dim=1
    )
