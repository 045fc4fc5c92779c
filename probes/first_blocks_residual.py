"""What the first blocks add to the picture stream: the look of First-Block Cache and of DBCache, whose front blocks are
`depth`. Smaller than the stream itself, so its relative change is larger.
"""

from dataclasses import dataclass

from torch import Tensor

from dicache.errors import UnsupportedModelError
from dicache.probes.base import Probe, View


@dataclass(frozen=True)
class FirstBlocksResidual(Probe):
    """h^depth - h^0, (R, N, C). All zero, which tells nothing, where blocks work in place. Raises UnsupportedModelError
    where the largest tensor that the first block takes is not the stream that the last one hands on.
    """

    depth: int = 1

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"FirstBlocksResidual(depth={self.depth}): expected 1 or more.")

    def __call__(self, view: View) -> Tensor:
        if view.before.shape != view.after.shape:
            raise UnsupportedModelError(
                f"FirstBlocksResidual found {tuple(view.before.shape)} before the first block and "
                f"{tuple(view.after.shape)} after block {self.depth}: not one stream. Use probe=FirstBlocks()."
            )
        return (view.after - view.before).detach()
