"""What model cards share: how near to the real ones what was drawn is, and grids of pictures."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dicache.files.atomic import replacing


def nearer(seen: Tensor, real: Tensor) -> float:
    """Of what was drawn, (B, ...), and the real ones in the same order: the share of others that are nearer, mean."""
    distances = torch.cdist(seen.flatten(1), real.flatten(1))
    return ((distances < distances.diagonal()[:, None]).sum(1) / (len(seen) - 1)).mean().item()


def save_grid(sheet: Tensor, scale: int, path: Path) -> None:
    """A picture (3, H, W) in [0, 1], every pixel `scale` wide."""
    pixels = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
    size = (pixels.shape[1] * scale, pixels.shape[0] * scale)
    with replacing(path) as part:
        Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(part, format="png")
