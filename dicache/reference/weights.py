"""The shipped weights: bfloat16 safetensors beside this file, one tensor a parameter, named `model.parameter`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dicache.errors import ReferenceModelError
from dicache.files.atomic import replacing

FOLDER = Path(__file__).parent / "weights"
MODEL = FOLDER / "model.safetensors"
READER = FOLDER / "reader.safetensors"


def save(path: Path, modules: Mapping[str, nn.Module]) -> None:
    path.parent.mkdir(exist_ok=True)
    tensors = {
        f"{model}.{name}": p.detach().bfloat16().contiguous()
        for model, module in modules.items()
        for name, p in module.named_parameters()
    }
    with replacing(path) as part:
        save_file(tensors, part)


@torch.no_grad()
def load(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Fill the modules in place, in their own dtype. Raises ReferenceModelError if the file is missing, damaged or of
    another model.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ReferenceModelError(
            f"the reference model's weights cannot be read from {path}: {error}. Reinstall dicache."
        ) from error
    for model, module in modules.items():
        for name, parameter in module.named_parameters():
            stored = tensors.pop(f"{model}.{name}", None)
            if stored is None or stored.shape != parameter.shape:
                wrong = "missing" if stored is None else "of another shape"
                raise ReferenceModelError(
                    f"{path} does not fit this version of dicache: {model}.{name} is {wrong}. Reinstall dicache."
                )
            parameter.copy_(stored)
