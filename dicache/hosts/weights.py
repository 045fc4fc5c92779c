"""Whether a denoiser's weights are those of `enable`, without reading one of them.

Every parameter counts what is written into it in place; another dtype, or another parameter under its name, is another
weight too. What moves weights (offload, `.to()`) leaves the count alone. Not seen: what is written through `.data`,
into inference tensors, quantised weights, or weights that are elsewhere (sequential offload). What LoRA does to them is
told by `dicache.hosts.lora`.
"""

import weakref
from typing import NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Mark(NamedTuple):
    """What a parameter was when it was looked at."""

    parameter: "weakref.ref[nn.Parameter]"
    """Weak: offload may let go of it."""
    written: int
    dtype: torch.dtype

    @property
    def same(self) -> bool:
        parameter = self.parameter()
        return parameter is None or self[1:] == _mark(parameter)[1:]


class Weights:
    """Those of one denoiser."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.as_at_first = True
        self.elsewhere = False
        """Whether some were ever offloaded so that their place was empty: they come back as other parameters."""
        self.marks = self._marks()

    def changed(self, *, run_may_begin: bool) -> bool:
        """Whether they are others than when this was asked last. Only where a run may begin it is looked for parameters
        that were exchanged.
        """
        changed = not all(mark.same for mark in self.marks.values())
        if changed or run_may_begin:
            before, self.marks = self.marks, self._marks()
            exchanged = any(
                mark.parameter is not before[name].parameter for name, mark in self.marks.items() if name in before
            )
            changed = changed or (exchanged and not self.elsewhere)
        self.as_at_first = self.as_at_first and not changed
        return changed

    def _marks(self) -> dict[str, Mark]:
        parameters = dict(self.denoiser.named_parameters())
        self.elsewhere = self.elsewhere or any(parameter.is_meta for parameter in parameters.values())
        return {name: _mark(parameter) for name, parameter in parameters.items() if not parameter.is_meta}


def _mark(parameter: nn.Parameter) -> Mark:
    counts = not (parameter.is_inference() or is_traceable_wrapper_subclass(parameter))
    return Mark(weakref.ref(parameter), parameter._version if counts else 0, parameter.dtype)
