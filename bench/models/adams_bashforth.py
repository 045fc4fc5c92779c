"""Adams-Bashforth 2 on the flow's equation dx / dsigma = v, as a scheduler: two outputs a step, one evaluation.

    x_(i+1) = x_i + h (v_i + (h / 2 d) (v_i - v_(i-1))),        h = sigma_(i+1) - sigma_i, d = sigma_i - sigma_(i-1)

The first step is Euler's. diffusers has no such solver for flows; on an uneven grid the weights follow the steps.
"""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler


class AdamsBashforth2(FlowMatchEulerDiscreteScheduler):
    """Euler's step with the velocity carried half a step on; its grid and shift are Euler's."""

    def step(
        self,
        model_output: torch.FloatTensor,
        timestep: torch.FloatTensor,
        sample: torch.FloatTensor,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if self.step_index is None:
            self._init_step_index(timestep)
            self._before: torch.FloatTensor | None = None
        i = self.step_index
        carried: Any = model_output
        if self._before is not None:
            before, here, ahead = (float(sigma) for sigma in self.sigmas[i - 1 : i + 2])
            carried = model_output + (ahead - here) / (2 * (here - before)) * (model_output - self._before)
        self._before = model_output
        return super().step(carried, timestep, sample, **options)
