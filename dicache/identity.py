"""Which model is this? A digest of the denoiser's class, its parameters' names, shapes and dtype, and a few values of
each. Loading the same weights again gives the same digest; another checkpoint, a merged LoRA or another dtype does not.
"""

import hashlib

import torch
from torch import nn

VALUES = 16
"""Per parameter, evenly spread over it."""


def identity(denoiser: nn.Module) -> str:
    """The class name and 32 hexadecimal digits. Waits for the device once per parameter."""
    digest = hashlib.sha256()
    for name, parameter in sorted(denoiser.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().reshape(-1)
        chosen = torch.linspace(0, max(flat.numel() - 1, 0), min(VALUES, flat.numel())).long()
        digest.update(flat[chosen.to(flat.device)].float().cpu().numpy().tobytes())
    return f"{type(denoiser).__name__}-{digest.hexdigest()[:32]}"
