"""The pixel side of the reference model: a lossless stand-in for an autoencoder.

Latents are the picture itself with every 2 x 2 patch moved into the channels (space to depth), so nothing that a cache
does to a latent is hidden or added by a decoder.
"""

from typing import cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderOutput
from torch import Generator, Tensor


class SpaceToDepth(ModelMixin, ConfigMixin):
    """(B, 3, H, W) in [-1, 1] to (B, 12, H/2, W/2) and back, exactly. Has the face of an `AutoencoderKL`."""

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (3, 12),
        latent_channels: int = 12,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(()))  # pipelines ask a module for its device and dtype

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[Tensor]:
        latents = F.pixel_unshuffle(x, 2)
        return EncoderOutput(latent=latents) if return_dict else (latents,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        sample = F.pixel_shuffle(z, 2)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, x: Tensor) -> Tensor:
        return cast(DecoderOutput, self.decode(cast(EncoderOutput, self.encode(x)).latent)).sample
