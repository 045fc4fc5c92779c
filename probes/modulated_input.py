"""The first block's input as its first norm hands it to attention, scaled and shifted by the time embedding (TeaCache,
arXiv 2411.19108): it moves with the latent and with time, and costs one norm.

    m = norm1(h, emb=temb)        for blocks that begin with an AdaLayerNormZero, as those of FLUX and SD3 do
"""

from dataclasses import dataclass

from torch import Tensor

from dicache.errors import UnsupportedModelError
from dicache.probes.base import Probe, View


@dataclass(frozen=True)
class ModulatedInput(Probe):
    """(R, N, C), before any block has run. Raises UnsupportedModelError where the first block has no such norm."""

    depth = 0

    def __call__(self, view: View) -> Tensor:
        norm, time = view.block._modules.get("norm1"), view.kwargs.get("temb")
        if norm is None or time is None or not type(norm).__name__.startswith(("AdaLayerNormZero", "SD35AdaLayerNorm")):
            raise UnsupportedModelError(
                f"ModulatedInput needs a first block whose norm1 is an AdaLayerNormZero and which is called with temb; "
                f"{type(view.block).__name__} is not. Use another probe, for example FirstBlocks(), "
                "as presets.dicache() does."
            )
        modulated = norm(view.before, emb=time)
        feature: Tensor = modulated[0] if isinstance(modulated, tuple) else modulated
        return feature.detach()
