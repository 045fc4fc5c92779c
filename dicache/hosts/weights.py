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


class Place(NamedTuple):
    """Where a module keeps a parameter."""

    parameters: Mapping[str, Tensor | None]
    name: str
    mark: Mark | None
    """None while its weight is elsewhere."""

    def again(self) -> "Place":
        return _place(self.parameters, self.name)


class Weights:
    """Those of one denoiser."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.as_at_first = True
        self.elsewhere = False
        """Whether some ever were: they come back as other parameters."""
        self.places = self._places()

    def changed(self, *, run_may_begin: bool) -> bool:
        """Whether they are others than when this was asked last. Only where a run may begin it is looked for modules
        that were exchanged.
        """
        before = self.places
        now = self._places() if run_may_begin else {path: place.again() for path, place in before.items()}
        self.elsewhere = self.elsewhere or any(place.mark is None for place in now.values())
        self.places = now
        changed = any(self._differ(before[path].mark, place.mark) for path, place in now.items() if path in before)
        self.as_at_first = self.as_at_first and not changed
        return changed

    def _differ(self, before: Mark | None, now: Mark | None) -> bool:
        if before is None or now is None or before == now:
            return False
        return before.identity == now.identity or not self.elsewhere

    def _places(self) -> dict[str, Place]:
        return {
            f"{path}.{name}": _place(module._parameters, name)
            for path, module in self.denoiser.named_modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        }


def _place(parameters: Mapping[str, Tensor | None], name: str) -> Place:
    parameter = parameters.get(name)
    if parameter is None or parameter.is_meta:
        return Place(parameters, name, None)
    counts = not (parameter.is_inference() or is_traceable_wrapper_subclass(parameter))
    return Place(parameters, name, Mark(id(parameter), parameter._version if counts else 0, parameter.dtype))
