"""Which model it is, without its weights: the denoiser's class, its configuration, its parameters' names and shapes.

Two fine-tunings of one model have one fingerprint; an adapter that adds parameters changes it.
"""

import hashlib
import json
from collections.abc import Mapping

from torch import nn


def fingerprint(denoiser: nn.Module) -> dict[str, str]:
    """{"class", "config", "parameters"}, the last two as the first 16 digits of a SHA-256."""
    config = getattr(denoiser, "config", {})
    told = {k: v for k, v in config.items() if not k.startswith("_")} if isinstance(config, Mapping) else {}
    shapes = sorted((name, list(p.shape)) for name, p in denoiser.named_parameters())
    return {"class": type(denoiser).__name__, "config": _digest(told), "parameters": _digest(shapes)}


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
