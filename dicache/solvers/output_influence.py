"""How far one denoiser output moves the final latent, through all steps of the solver that read it: E_q = dx_N / dv_q.

Solvers are linear in latent and outputs, so their own impulse response says it: a copy of the scheduler takes all its
steps on N latents of 0 at once, with an output of 1 in row q at step q and 0 elsewhere. For a first-order step E_q is
its coefficient; multistep solvers read an output again later, and pass it on.
"""

from copy import deepcopy
from typing import Any

import torch

IMPULSE = 1e-3
"""Small, for schedulers that clip."""


def influence(scheduler: Any) -> tuple[float, ...]:  # noqa: ANN401
    """Per step, signed; 0 before the run's first. Empty for schedulers that add noise or take several outputs a step.
    The scheduler must be fresh: `set_timesteps` was called, and no step taken.
    """
    copy, steps = deepcopy(scheduler), len(scheduler.timesteps)
    if len(set(torch.as_tensor(scheduler.timesteps).tolist())) < steps:
        return ()
    moved = torch.zeros(steps + 1, 1, 1, 1)
    for i in range(int(getattr(scheduler, "begin_index", None) or 0), steps):
        output = torch.zeros_like(moved)
        output[i] = IMPULSE
        moved = copy.step(output, copy.timesteps[i], moved, return_dict=False)[0]
    found = (moved.flatten().double() / IMPULSE).tolist()
    return tuple(found[:steps]) if found[-1] == 0 else ()  # the last row had no impulse: it must not have moved
