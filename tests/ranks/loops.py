"""A guided loop by hand, whose branches one process calls, or each of two ranks one."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines import tiny

SCALE = 3.0


def inputs_of(pipe: Any, samples: Sequence[int], steps: int) -> tuple[list[dict[str, Any]], Tensor]:
    """What the denoiser is called with for either branch, and the noise that the loop begins with."""
    calls = []
    handle = pipe.transformer.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    tiny.guided_flux(pipe, samples, steps)
    handle.remove()
    return calls[:2], calls[0]["hidden_states"].clone()


def draw(pipe: Any, mixed: Callable[[Tensor, Tensor], Tensor], latents: Tensor, steps: int) -> Tensor:
    """`mixed(latents, time)` is the guided output."""
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    pipe.scheduler.set_begin_index(0)
    for time in pipe.scheduler.timesteps:
        output = mixed(latents, time)
        latents = pipe.scheduler.step(output, time, latents, return_dict=False)[0]
    return latents


def called(pipe: Any, branch: dict[str, Any], latents: Tensor, time: Tensor) -> Tensor:
    call = {**branch, "hidden_states": latents, "timestep": time.expand(len(latents)) / 1000, "return_dict": False}
    return pipe.transformer(**call)[0]


def guided(outputs: Sequence[Tensor]) -> Tensor:
    return outputs[1] + SCALE * (outputs[0] - outputs[1])


def apart_mixed(pipe: Any, branch: dict[str, Any], group: dist.ProcessGroup) -> Callable[[Tensor, Tensor], Tensor]:
    """The guided output, where each of a group's two ranks calls one branch."""

    def mixed(latents: Tensor, time: Tensor) -> Tensor:
        own = called(pipe, branch, latents, time).contiguous()
        outputs = [torch.empty_like(own) for _ in range(2)]
        dist.all_gather(outputs, own, group=group)
        return guided(outputs)

    return mixed
