"""The reference model under a setting: pipelines nobody has touched, and captions drawn with them.

Cost is multiply-accumulates of the whole denoiser, counted by a dispatch mode around every call of it, so that probes,
peers and overheads all count, whoever hooked what.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor

from dicache.bench.models.adams_bashforth import AdamsBashforth2
from dicache.bench.models.batched_guidance import FluxBatchedPipeline
from dicache.reference.assembly import pipeline
from dicache.reference.scenes import prompts
from dicache.tensors.mac_meter import MacCounter

CALIBRATED_ON = 4
"""Captions that a peer's own calibration sees."""


@dataclass(frozen=True)
class Setting:
    """How pictures are drawn. `guidance` 1 means none; above, cond and uncond run in calls of their own, or, if
    `batched`, in one call.
    """

    steps: int = 28
    guidance: float = 3.5
    batch: int = 8
    shift: float = 1.0
    """Bend of the flow-matching sigmas; above 1, more steps at high noise."""
    solver: Literal["euler", "ab2", "dpm++", "unipc"] = "euler"
    batched: bool = False
    warmup: float = 0.2
    """Share of the steps that an arm with a warm-up computes at the start. `Arm.enter` fills in the arm's own."""
    sigmas: tuple[float, ...] | None = None
    """Where the steps begin, falling from 1, as the scheduler plays them; None for even ones. An arm's own."""

    @property
    def calls_per_step(self) -> int:
        return 2 if self.guidance > 1 and not self.batched else 1

    @property
    def name(self) -> str:
        grid = f"{self.solver}-{self.steps}-guidance{self.guidance:g}-shift{self.shift:g}-batch{self.batch}"
        return grid + ("-batched" if self.batched else "")

    def calibrate(self, pipe: FluxPipeline) -> None:
        """Draws what the bench never scores, for peers that look at runs of their own."""
        draw(pipe, prompts("calibration", CALIBRATED_ON), self)


@dataclass(frozen=True)
class Drawn:
    latents: Tensor
    macs: float
    seconds: float


def fresh(setting: Setting) -> FluxPipeline:
    """A pipeline nobody has touched, with the setting's scheduler and way of guiding."""
    pipe = pipeline()
    if setting.batched:
        side, pipe = pipe.default_sample_size, FluxBatchedPipeline(**pipe.components)
        pipe.default_sample_size = side
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler(setting)
    return pipe


def scheduler(setting: Setting) -> Any:  # noqa: ANN401
    if setting.solver in ("euler", "ab2"):
        return (FlowMatchEulerDiscreteScheduler if setting.solver == "euler" else AdamsBashforth2)(shift=setting.shift)
    solver = (DPMSolverMultistepScheduler if setting.solver == "dpm++" else UniPCMultistepScheduler)(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        use_dynamic_shifting=True,
        time_shift_type="exponential",
    )
    shift = math.log(setting.shift)  # FluxPipeline computes its shift from these two
    solver.register_to_config(base_shift=shift, max_shift=shift)
    return solver


def draw(pipe: FluxPipeline, captions: list[str], setting: Setting) -> Drawn:
    """All captions, in batches; caption i has seed i. MACs are those of the denoiser."""
    latents, macs, seconds = [], 0.0, 0.0
    for start in range(0, len(captions), setting.batch):
        batch = captions[start : start + setting.batch]
        with counted_macs(pipe) as counted:
            started = time.perf_counter()
            latents.append(draw_batch(pipe, batch, start, setting))
            seconds += time.perf_counter() - started
        macs += counted[0]
    return Drawn(torch.cat(latents), macs, seconds)


def draw_batch(pipe: FluxPipeline, captions: list[str], first: int, setting: Setting) -> Tensor:
    latents: Tensor = pipe(captions, **arguments(captions, first, setting)).images
    return latents


def arguments(captions: list[str], first: int, setting: Setting) -> dict[str, Any]:
    """Of the pipeline's call, but for the captions."""
    guided = {"negative_prompt": [""] * len(captions), "true_cfg_scale": setting.guidance}
    return {
        "num_inference_steps": setting.steps,
        "generator": [torch.Generator().manual_seed(first + i) for i in range(len(captions))],
        "output_type": "latent",
        **(guided if setting.guidance > 1 else {}),
        **({} if setting.sigmas is None else {"sigmas": unshifted(setting.sigmas, setting.shift)}),
    }


def unshifted(sigmas: Sequence[float], shift: float) -> list[float]:
    """What a scheduler of this shift makes these sigmas of: it takes s to shift s / (1 + (shift - 1) s)."""
    return [sigma / (shift - (shift - 1) * sigma) for sigma in sigmas]


@contextmanager
def counted_macs(pipe: Any) -> Iterator[list[float]]:  # noqa: ANN401
    """MACs of every call of the denoiser: wraps `forward` as found, below every hook, while the context lasts."""
    transformer, macs = pipe.transformer, [0.0]
    inner, had = transformer.forward, "forward" in vars(transformer)

    def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with MacCounter() as counter:
            output = inner(*args, **kwargs)
        macs[0] += counter.total
        return output

    transformer.forward = counted
    try:
        yield macs
    finally:
        if had:
            transformer.forward = inner
        else:
            del transformer.forward
