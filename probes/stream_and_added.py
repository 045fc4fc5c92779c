"""The two looks of DiCache (arXiv 2508.17356): it decides by the stream after the first blocks, and aligns along what
those blocks have added to it.

    p = (h^m, h^m - h^0)
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dicache.probes.base import Probe, View
from dicache.probes.first_blocks_residual import FirstBlocksResidual

STREAM, ADDED = 0, 1
"""Its parts."""


@dataclass(frozen=True)
class StreamAndAdded(Probe):
    """(R, 2, N, C). Raises UnsupportedModelError as `FirstBlocksResidual` does."""

    depth: int = 1
    over_ranks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"StreamAndAdded(depth={self.depth}): expected 1 or more.")

    def __call__(self, view: View) -> Tensor:
        added = FirstBlocksResidual(self.depth)(view)
        return torch.stack([view.after.detach(), added], dim=1)
