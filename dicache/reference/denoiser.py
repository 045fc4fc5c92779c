"""The reference denoiser: a stock `FluxTransformer2DModel`, deep and narrow, because depth is what caching works on.

3 two-stream and 12 single-stream blocks of width 128 over 64 picture tokens (8 x 8 patches of 4 x 4 pixels) and 28 text
tokens; 4.9 million parameters.
"""

import torch
from diffusers import FluxTransformer2DModel

from dicache.reference.text import LENGTH

SMOOTHED = [*range(44), *range(128, 172)]
"""Columns of the time embedding's first layer that stay zero: its 44 fastest sines and cosines. With them a small,
shortly trained model jumps from step to step in a way that large ones do not.
"""


def denoiser() -> FluxTransformer2DModel:
    """Untrained."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=48,
        num_layers=3,
        num_single_layers=12,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=96,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def positions() -> torch.Tensor:
    """Rotary positions of the text (zeros) and the picture tokens (row, column), (28 + 64, 3), as FluxPipeline makes
    them.
    """
    picture = torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(8.0))
    return torch.cat([torch.zeros(LENGTH, 3), picture])
