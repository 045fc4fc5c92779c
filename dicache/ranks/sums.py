"""Sums that are decided from, over all ranks that hold parts of the same samples.

    sums.of(a, b)     the six sums of `dicache.extension.residual_sums`, (B, 6), of whole tensors, though each rank has
                      its part only
    sums.added(x)     sums of any kind, added up over the ranks
    sums.foresee(..)  pairs that will be asked for, all in one exchange

In one process they are those of the tensors at hand, and nothing is remembered.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from dicache.extension import residual_sums
from dicache.ranks.branches import BranchesApart
from dicache.ranks.group import Group
from dicache.types import Step

Pair = tuple[Tensor, Tensor]


class SharedSums:
    """Of one run; `group` None where each rank, or the only one, has whole tensors; `apart` where ranks have guidance
    branches.
    """

    def __init__(self, group: Group | None = None, apart: BranchesApart | None = None) -> None:
        self.group: Group | None = group
        self.apart: BranchesApart | None = apart
        self.step: int = 0
        self.seen: dict[tuple[int, int], tuple[Pair, Tensor]] = {}
        """This step's, by the identity of the tensors, which are held so that no other gets it."""

    @property
    def shared(self) -> bool:
        return self.group is not None

    def next_step(self, step: int) -> None:
        """What was remembered is of the step before."""
        if self.group is not None:
            self.step = step
            self.seen.clear()

    def of(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, ...) each to (B, 6)."""
        if self.group is None:
            return residual_sums(a, b)
        self.foresee([(a, b)])
        return self.seen[id(a), id(b)][1]

    def foresee(self, pairs: Iterable[Pair]) -> None:
        """Nothing in one process. Raises RanksError as `dicache.ranks.group.Group.added`."""
        asked = {(id(a), id(b)): (a, b) for a, b in pairs if (id(a), id(b)) not in self.seen}
        if self.group is None or not asked:
            return
        own = [residual_sums(a, b) for a, b in asked.values()]
        added = self.group.added(torch.cat(own), self.step).split([len(sums) for sums in own])
        self.seen |= {key: (pair, sums) for (key, pair), sums in zip(asked.items(), added, strict=True)}

    def added(self, sums: Tensor) -> Tensor:
        """(...) to (...). Raises RanksError as `dicache.ranks.group.Group.added`."""
        return sums if self.group is None else self.group.added(sums, self.step)


ALONE = SharedSums()


def alone(latent: Tensor, step: Step) -> SharedSums:
    """What a run adds up by where one process computes it."""
    return ALONE
