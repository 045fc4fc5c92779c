"""Every tiny pipeline by name, with what guidance makes of its branches where that is one mixture."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from dicache.models.families import FAMILIES
from dicache.models.family import Batch, Family, Inside
from pipelines.controls import CONTROLS
from pipelines.more import MORE
from pipelines.one_stream import ONE_STREAM
from pipelines.tiny import GUIDANCE, Tiny
from pipelines.two_streams import TWO_STREAMS
from pipelines.videos import VIDEOS

PIPELINES: dict[str, Tiny] = {**ONE_STREAM, **TWO_STREAMS, **VIDEOS, **CONTROLS, **MORE}

PLAIN = (1 - GUIDANCE, GUIDANCE)
MIXTURES = {
    **dict.fromkeys(("Sana", "Chroma", "HiDream", "AuraFlow", "CogView 3 Plus", "CogView 4", "Bria", "Ovis"), PLAIN),
    **dict.fromkeys(("Wan 2.1", "Wan 2.2, two experts", "CogVideoX", "HunyuanVideo", "LTX", "Mochi"), PLAIN),
    **dict.fromkeys(("Allegro", "Sana Video", "SkyReels V2", "Stable Audio", "FLUX.1 guided", "SD3"), PLAIN),
    **dict.fromkeys(
        (
            "SD3 ControlNet",
            "SD 1.5",
            "SD 1.5 ControlNet",
            "SD 1.5 ControlNet-XS",
            "AudioLDM 2",
            "SDXL",
            "HunyuanImage",
            "Ernie-Image",
        ),
        PLAIN,
    ),
    "Z-Image": (-GUIDANCE, 1 + GUIDANCE),
    "Cosmos 2": (-GUIDANCE, 1 + GUIDANCE),
    "SD3 skip-layer guidance": (1 - GUIDANCE, GUIDANCE + 2.8, -2.8),
    "SD3 perturbed attention": (1 - GUIDANCE, GUIDANCE + 3, -3),
}


CACHED = ("FLUX.2 with a key-value cache",)
"""Pipelines whose first step writes a cache, with inputs of its own, and is a run of its own; the others read it, and
cannot be gathered.
"""


@dataclass(frozen=True)
class Made:
    """A pipeline that was built, and what is known of its denoiser."""

    name: str
    tiny: Tiny
    pipe: Any

    @property
    def denoiser(self) -> nn.Module:
        return getattr(self.pipe, "transformer", None) or self.pipe.unet

    @property
    def denoisers(self) -> list[nn.Module]:
        second = getattr(self.pipe, "transformer_2", None)
        return [self.denoiser] if second is None else [self.denoiser, second]

    @property
    def family(self) -> Family:
        return FAMILIES[type(self.denoiser).__name__]

    @property
    def gathered(self) -> bool:
        return self.family.batch is Batch.SAMPLE and self.name not in CACHED

    @property
    def alone(self) -> int:
        """Steps that are not part of the last run."""
        return int(self.name in CACHED)

    @property
    def spans(self) -> bool:
        return self.family.inside is Inside.SPANS

    @property
    def blocks(self) -> bool:
        return self.family.inside in (Inside.BLOCKS, Inside.SKIPS)

    @property
    def skips(self) -> bool:
        return self.family.inside is Inside.SKIPS
