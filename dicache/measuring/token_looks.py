"""An unbiased look at what a feed-forward that was skipped is off by, from k of its tokens: column-row sampling where
the winners take all (WTA-CRS, arXiv 2305.15265).

A feed-forward f takes each token by itself, so the squared error of a value v that was held is a sum over tokens,

    S = sum_n e_n,    e_n = ||f(x_n) - v_n||^2,    p_n ~ ||x_n - x_0n||

x_0 its input when v was computed: where little moved, little changed. The most probable tokens C are computed for sure,
and k - |C| more are drawn from the others, again and again:

    S ~ sum_C e_c + (1 - p_C) / (k - |C|) sum_j e_j / p_j,    |C| = argmin (1 - p_C) / (k - |C|)

The mean of that is S, whatever p. It is an audit and nothing that a guess is made of: k tokens that are the most likely
ones alone err less, but always on one side. What it costs and shows is in docs/notebook/2026-11-29-systems.md.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dicache.extension import residual_sums
from dicache.types import Rows


def odds(x: Tensor, before: Tensor) -> Tensor:
    """p, (R, N) float64 on the host, from inputs (R, N, C); every token may be drawn, however still it stood."""
    moved = squares(x, before).sqrt()
    moved = moved + 1e-6 * moved.amax(1, keepdim=True) + 1e-30
    return moved / moved.sum(1, keepdim=True)


def winners(p: Tensor, k: int) -> int:
    """|C|, from probabilities (N,) that fall, and k of 1 or more tokens."""
    before = torch.cat([p.new_zeros(1), p.cumsum(0)])[:k]
    return int(((1 - before) / (k - torch.arange(len(before)))).argmin())


def sample(p: Tensor, k: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Which tokens to look at and what each counts, (k,) both, from probabilities (N,); all, once, for k >= N."""
    if k >= len(p):
        return torch.arange(len(p)), torch.ones_like(p)
    order = p.argsort(descending=True)
    certain = winners(p[order], k)
    drawn = torch.multinomial(p[order[certain:]], k - certain, replacement=True, generator=generator)
    rest = order[certain:][drawn]
    share = p[order[certain:]].sum() / (k - certain)
    weights = torch.cat([p.new_ones(certain), share / p[rest]])
    return torch.cat([order[:certain], rest]), weights


def look(
    feed_forward: Callable[[Tensor], Tensor],
    x: Tensor,
    before: Tensor,
    value: Tensor,
    k: int,
    generator: torch.Generator | None = None,
) -> Rows:
    """S of every row, (R,) float64, of inputs (R, N, C) and those when `value`, (R, N, D), was made. k tokens run."""
    samples = [sample(p, k, generator) for p in odds(x, before)]
    tokens = torch.stack([indices for indices, _ in samples]).to(x.device)[:, :, None]
    x, v = (t.gather(1, tokens.expand(-1, -1, t.shape[2])) for t in (x, value))
    weights = torch.stack([weights for _, weights in samples])
    return (weights * squares(feed_forward(x), v)).sum(1)


def squares(a: Tensor, b: Tensor) -> Tensor:
    """||a_n - b_n||^2 of every token, (R, N) float64 on the host."""
    return residual_sums(a.flatten(0, 1), b.flatten(0, 1))[:, 2].double().cpu().view(a.shape[:2])
