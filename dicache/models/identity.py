"""Which model is this? `outline` says what it is built like: class, and its parameters' names, shapes and dtypes.
`identity` also reads a few values of each: loading the same weights again gives the same, another checkpoint or a
merged LoRA does not. A LoRA that is loaded belongs to the model, whatever its adapter is called.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dicache.errors import UnsupportedModelError

VALUES = 16
"""Per parameter, evenly spread over it."""


def outline(denoiser: nn.Module) -> str:
    """The class name and 16 hexadecimal digits. Reads no weights."""
    built = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in _parameters(denoiser)]
    return f"{type(denoiser).__name__}-{hashlib.sha256(';'.join(built).encode()).hexdigest()[:16]}"


def offloaded(denoiser: nn.Module) -> bool:
    """Whether weights are elsewhere at this moment (sequential offload)."""
    return any(parameter.is_meta for parameter in denoiser.parameters())


def identity(denoiser: nn.Module) -> str:
    """The outline and 32 hexadecimal digits. Waits for the device once per parameter.

    Raises UnsupportedModelError where it is `offloaded`.
    """
    if offloaded(denoiser):
        raise UnsupportedModelError(
            f"the weights of {type(denoiser).__name__} are offloaded, so it cannot be told which model it is. "
            "Call dicache before turning on sequential offload."
        )
    digest = hashlib.sha256()
    parameters = (plain for _, parameter in _parameters(denoiser) for plain in _plain(parameter))
    for parameter in parameters:
        flat = parameter.detach().reshape(-1)
        last = max(flat.numel() - 1, 0)
        spread = (
            torch.linspace(0, last, min(VALUES, flat.numel())).long().clamp(max=last)
        )  # float32 rounds up past 2^24
        digest.update(flat[spread.to(flat.device)].float().cpu().numpy().tobytes())
    return f"{outline(denoiser)}-{digest.hexdigest()[:32]}"


def _parameters(denoiser: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """In the order of their names. Adapters count in the order in which they were loaded, in the place of what they are
    called: `default_0` in Python, `lora0` on the command line.
    """
    adapters = {name: str(k) for k, name in enumerate(getattr(denoiser, "peft_config", ()))}
    named = ((_without_adapters(name, adapters), parameter) for name, parameter in denoiser.named_parameters())
    return sorted(named, key=lambda each: each[0])


def _without_adapters(name: str, adapters: Mapping[str, str]) -> str:
    """`up.lora_A.default_0.weight` as `up.lora_A.0.weight`."""
    parts = name.split(".")
    after = zip(["", *parts], parts, strict=False)
    return ".".join(adapters.get(part, part) if before.startswith("lora_") else part for before, part in after)


def _plain(tensor: Tensor) -> list[Tensor]:
    """What a tensor keeps its values in: itself, or the integers and scales of a quantised one."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [plain for name in tensor.__tensor_flatten__()[0] for plain in _plain(getattr(tensor, name))]
