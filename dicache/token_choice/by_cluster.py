"""ClusCa (arXiv 2509.10312): one token of every cluster runs, and the others follow it.

Where a sample is computed, what its last block gave is clustered by k-means: the nearest centroid in L1, centroids are
means, they start where they ended at the computed step before. At other steps one token of every cluster, drawn by
chance, runs, and the rest of its cluster takes part of it over:

    y_j = g * mean of y_i over the tokens i of its cluster that ran + (1 - g) * guess_j             as published
    y_j = guess_j + g * mean of (y_i - guess_i)                                                     with `updates`

The second hands on by how much the guess was off, so with g = 1 a cluster keeps its shape. The first centroids are
tokens that lie far from each other, so that equal tokens share a cluster wherever there are enough of them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dicache.errors import ModeError
from dicache.token_choice.base import SeenTokens, TokenChoice
from dicache.token_choice.by_chance import drawn

MOST = 100
"""Rounds of k-means."""


class Clustering(NamedTuple):
    labels: Tensor
    """(B, N)."""
    centroids: Tensor
    """(B, K, C)."""
    computed: tuple[int, ...]
    """The steps whose tokens were clustered, B."""


@dataclass(frozen=True)
class Clusters(TokenChoice):
    """Raises ModeError for less than one cluster, or a weight outside [0, 1]."""

    count: int = 16
    weight: float = 0.005
    """g."""
    updates: bool = False

    reads_leaving = True

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.weight <= 1:
            raise ModeError(f"{self}: expected a count of 1 or more and a weight from 0 to 1.")

    def choose(self, seen: SeenTokens, state: Clustering | None) -> tuple[Tensor, Any]:
        assert seen.leaving is not None
        state = self._clustered(seen.leaving.float(), tuple(seen.computed), state)
        chance = drawn(seen).to(state.labels.device)
        best = chance.new_zeros(*state.centroids.shape[:2]).scatter_reduce(1, state.labels, chance, "amax")
        return chance == best.gather(1, state.labels), state

    def _clustered(self, tokens: Tensor, computed: tuple[int, ...], state: Clustering | None) -> Clustering:
        """Sample by sample, so that none waits for another to settle."""
        labels, centroids = [], []
        for b, own in enumerate(tokens):
            if state is not None and state.computed[b] == computed[b]:
                own_labels, own_centroids = state.labels[b], state.centroids[b]
            else:
                begun = far_apart(own, self.count) if state is None else state.centroids[b]
                own_labels, own_centroids = k_means(own, begun)
            labels.append(own_labels)
            centroids.append(own_centroids)
        return Clustering(torch.stack(labels), torch.stack(centroids), computed)

    def spread(self, tokens: Tensor, guess: Tensor, mask: Tensor, state: Clustering) -> Tensor:
        labels = state.labels.repeat(len(tokens) // len(state.labels), 1)
        ran, index = mask.to(tokens.dtype)[..., None], labels[..., None].expand_as(tokens)
        size = (len(tokens), state.centroids.shape[1], tokens.shape[2])
        source = tokens - guess if self.updates else tokens
        sums = tokens.new_zeros(size).scatter_add(1, index, source * ran)
        counts = tokens.new_zeros(size).scatter_add(1, index, ran.expand_as(tokens))
        mean = (sums / counts).gather(1, index)
        followed = guess + self.weight * (mean if self.updates else mean - guess)
        # A cluster none of whose tokens ran, as of samples that were computed, follows nothing.
        return torch.where(mask[..., None] | mean.isnan(), tokens, followed)


def far_apart(tokens: Tensor, count: int) -> Tensor:
    """The first token, then always the one that is furthest from those so far: (N, C) to (K, C)."""
    picked, distance = [tokens[0]], _distances(tokens, tokens[:1])[:, 0]
    for _ in range(min(count, len(tokens)) - 1):
        picked.append(tokens[distance.argmax()])
        distance = torch.minimum(distance, _distances(tokens, picked[-1][None])[:, 0])
    return torch.stack(picked)


def k_means(tokens: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Labels, (N,), and centroids, (K, C), of (N, C) tokens. A cluster that lost its tokens stays where it was."""
    labels = _distances(tokens, centroids).argmin(1)
    for _ in range(MOST):
        sums = torch.zeros_like(centroids).index_add(0, labels, tokens)
        counts = torch.bincount(labels, minlength=len(centroids))[:, None].to(tokens)
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
        settled = torch.allclose(moved, centroids)
        centroids, labels = moved, _distances(tokens, moved).argmin(1)
        if settled:
            break
    return labels, centroids


def _distances(tokens: Tensor, centroids: Tensor) -> Tensor:
    """In L1, (N, K)."""
    return torch.cdist(tokens, centroids, p=1)
