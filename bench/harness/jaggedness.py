"""Does the model's output move smoothly along a trajectory, or jump from step to step?

    ratio = (length of the path v(sigma_0), v(sigma_1), .. over a window of 4 steps) / |v(end) - v(start)|

1 is a straight line; an under-trained model reached 6, and then extrapolating was worse than reusing. Every claim about
extrapolation is as good as this number is near 1.
"""

from typing import Any

import torch
from torch import Tensor

from dicache.bench.models.reference import Setting, draw_batch, fresh
from dicache.reference.scenes import prompts

WINDOW = 4


def path_ratio(setting: Setting, captions: int = 4) -> dict[str, float]:
    """The median ratio over calibration captions, at the windows that begin near sigma 0.8, 0.5 and 0.2."""
    pipe, outputs = fresh(setting), []

    def note(module: Any, inputs: Any, output: tuple[Tensor]) -> None:  # noqa: ANN401
        outputs.append(output[0].flatten(1)[-captions:])  # batched guidance: cond is the second half

    handle = pipe.transformer.register_forward_hook(note)
    with torch.no_grad():
        draw_batch(pipe, prompts("calibration", captions, seed=12), 0, setting)
    handle.remove()
    path = torch.stack(outputs[:: setting.calls_per_step])
    sigmas = pipe.scheduler.sigmas[:-1]
    return {f"{at:g}": _ratio(path, int((sigmas - at).abs().argmin())) for at in (0.8, 0.5, 0.2)}


def _ratio(path: Tensor, start: int) -> float:
    window = path[min(start, len(path) - WINDOW - 1) :][: WINDOW + 1]
    travelled = window.diff(dim=0).norm(dim=2).sum(0)
    return float((travelled / (window[-1] - window[0]).norm(dim=1)).median())
