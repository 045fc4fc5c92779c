"""What is in use: versions, device, extension path, reference model."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from dicache import extension
from dicache._version import __version__
from dicache.reference.weights import MODEL, READER

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "scipy")


def examine() -> dict[str, Any]:
    """Plain facts; a missing thing is None."""
    return {
        "dicache": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
        "extension": extension.describe(),
        "reference model": f"{MODEL.stat().st_size / 1e6:.1f} MB" if MODEL.is_file() else None,
        "attribute reader": f"{READER.stat().st_size / 1e6:.1f} MB" if READER.is_file() else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
