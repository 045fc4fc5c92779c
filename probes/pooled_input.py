"""The input of every site, the mean over its tokens: what gates read (LazyDiT, arXiv 2412.12444). Of an attention or a
feed-forward that is what comes out of the norm before it, moved and scaled by the time.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dicache.probes.base import Probe, View
from dicache.tensors.token_grid import tokens


@dataclass(frozen=True)
class PooledInput(Probe):
    """(R, C) of the site that opens."""

    depth = 0
    local = True
    over_ranks: ClassVar[bool] = False

    def __call__(self, view: View) -> Tensor:
        return tokens(view.before).detach().mean(1)
