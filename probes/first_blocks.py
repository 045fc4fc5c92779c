"""The first blocks of the denoiser, run at every step: a shallow look at how far the features moved (DiCache, arXiv
2508.17356; First-Block Cache).

Their work is never wasted: computing goes on from them. Without a probe (depth 0) a skipped step runs no block at all,
and the controller decides one step ahead without waiting for the device.
"""

from dataclasses import dataclass

from torch import Tensor

from dicache.probes.base import Probe, View


@dataclass(frozen=True)
class FirstBlocks(Probe):
    """The picture stream after the first `depth` blocks, (R, N, C); in a UNet a map, (R, C, H, W), before the last of
    those down blocks samples it down.
    """

    depth: int = 1

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ValueError(f"FirstBlocks(depth={self.depth}): expected 0 (no probe) or more.")

    @property
    def sees_tokens(self) -> bool:
        return self.depth > 0

    def __call__(self, view: View) -> Tensor | None:
        return view.after.detach().clone() if self.depth else None
