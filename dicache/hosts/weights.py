"""Whether a denoiser's weights are those of `enable`, without reading one of them.

Every parameter counts what is written into it in place; another dtype, or another parameter in its place, is another
weight too. What moves weights (offload, `.to()`) leaves the count alone. Not seen: what is written through `.data`,
into inference tensors, quantised weights, or weights that are elsewhere (sequential offload). What LoRA does to them is
told by `dicache.hosts.lora`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Mark(NamedTuple):
    """What a parameter was when it was looked at. It is not referred to, also not weakly: it could not be moved then
    where it is quantised (`torch.utils.swap_tensors`).
    """

    identity: int
    written: int
    dtype: torch.dtype


class Slot(NamedTuple):
    """Where a module keeps a parameter."""

    parameters: Mapping[str, Tensor | None]
    name: str
    mark: Mark | None
    """None while its weight is elsewhere."""

    def again(self) -> "Slot":
        return _slot(self.parameters, self.name)


class Weights:
    """Those of one denoiser."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.as_at_first = True
        self.elsewhere = False
        """Whether some ever were: they come back as other parameters."""
        self.slots = self._slots()

    def changed(self, *, run_may_begin: bool) -> bool:
        """Whether they are others than when this was asked last. Only where a run may begin it is looked for modules
        that were exchanged.
        """
        before = self.slots
        latest = self._slots() if run_may_begin else {path: slot.again() for path, slot in before.items()}
        self.elsewhere = self.elsewhere or any(slot.mark is None for slot in latest.values())
        self.slots = latest
        changed = any(self._differ(before[path].mark, slot.mark) for path, slot in latest.items() if path in before)
        self.as_at_first = self.as_at_first and not changed
        return changed

    def _differ(self, before: Mark | None, latest: Mark | None) -> bool:
        if before is None or latest is None or before == latest:
            return False
        return before.identity == latest.identity or not self.elsewhere

    def _slots(self) -> dict[str, Slot]:
        return {
            f"{path}.{name}": _slot(module._parameters, name)
            for path, module in self.denoiser.named_modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        }


def _slot(parameters: Mapping[str, Tensor | None], name: str) -> Slot:
    parameter = parameters.get(name)
    if parameter is None or parameter.is_meta:
        return Slot(parameters, name, None)
    counts = not (parameter.is_inference() or is_traceable_wrapper_subclass(parameter))
    return Slot(parameters, name, Mark(id(parameter), parameter._version if counts else 0, parameter.dtype))
