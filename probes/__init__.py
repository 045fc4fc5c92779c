"""What to look at before deciding."""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.probes.base import Probe as Probe
    from dicache.probes.base import View as View
    from dicache.probes.first_blocks import FirstBlocks as FirstBlocks
    from dicache.probes.first_blocks_residual import FirstBlocksResidual as FirstBlocksResidual
    from dicache.probes.modulated_input import ModulatedInput as ModulatedInput
    from dicache.probes.pooled_input import PooledInput as PooledInput
    from dicache.probes.raw_latent import RawLatent as RawLatent
    from dicache.probes.site_input import SiteInput as SiteInput
    from dicache.probes.stream_and_added import StreamAndAdded as StreamAndAdded

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.probes.base": ("Probe", "View"),
        "dicache.probes.first_blocks": ("FirstBlocks",),
        "dicache.probes.first_blocks_residual": ("FirstBlocksResidual",),
        "dicache.probes.modulated_input": ("ModulatedInput",),
        "dicache.probes.pooled_input": ("PooledInput",),
        "dicache.probes.raw_latent": ("RawLatent",),
        "dicache.probes.site_input": ("SiteInput",),
        "dicache.probes.stream_and_added": ("StreamAndAdded",),
    },
)
