"""A twin of a pipeline: the same modules and weights, and a scheduler and a denoiser's `forward` of its own, so that
its loop may run beside those of others. What a pipeline notes down of a run lies on itself, and so on its twin.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from torch import nn

from dicache.solvers.play import own_copy
from dicache.tensors.tree import plain

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
    """With another denoiser of this name. Its scheduler has the latent that its last step gave, `latent`."""
    twin, scheduler = copy.copy(pipe), own_copy(pipe.scheduler)
    scheduler.__class__ = _remembering(type(scheduler))  # type: ignore[arg-type]
    vars(twin)["scheduler"], vars(twin)[name] = scheduler, denoiser  # not by setattr, which writes to the configuration
    return twin


@cache
def _remembering(kind: Any) -> type:  # noqa: ANN401
    """The same class of scheduler, which keeps what its last step gave. One of its own for each class, since what is
    worked out of a scheduler is remembered by its class.
    """

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        result = kind.step(self, *args, **kwargs)
        self.latent = plain(result)[0]
        return result

    named = {"step": wraps(kind.step)(step), "__module__": kind.__module__, "latent": None}
    return type(kind.__name__, (kind,), named)
