"""A twin of a pipeline: the same modules and weights, and a scheduler and a denoiser's `forward` of its own, so that
its loop may run beside those of others. What a pipeline notes down of a run lies on itself, and so on its twin.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn

_OWN = ("_diffusers_hook", "_hf_hook", "_old_forward", "forward")
"""What others have put on the module itself; it is still on the one that the twin's `forward` leads to."""


def module_twin(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """With another `forward`, and no hooks; parameters, submodules and configuration are the module's."""
    twin: nn.Module = object.__new__(type(module))
    for name, value in vars(module).items():
        if name not in _OWN:
            vars(twin)[name] = OrderedDict() if "_hooks" in name else value
    vars(twin)["forward"] = wraps(module.forward)(forward)
    return twin


def pipeline_twin(pipe: Any, name: str, denoiser: nn.Module) -> Any:  # noqa: ANN401
    """With another denoiser of this name."""
    twin = copy.copy(pipe)
    vars(twin)["scheduler"] = copy.deepcopy(pipe.scheduler)  # not by setattr, which writes to the configuration
    vars(twin)[name] = denoiser
    return twin
