"""One point of one arm: draw the captions, count what was executed, hold the latents against the uncached ones.

Cost is multiply-accumulates of the whole denoiser, counted by a dispatch mode around every call of it, so that probes,
peers and overheads all count, whoever hooked what. Error is per caption: relative L2 of the final latent, PSNR and SSIM
of the picture (torchmetrics), and the share of the caption's attributes it shows.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from dicache.bench.arms.arm import Arm, Setting
from dicache.bench.arms.batched_guidance import FluxBatchedPipeline
from dicache.promise.metrics import relative_error
from dicache.reference.assembly import pipeline
from dicache.reference.draw import pictures
from dicache.reference.reader import Reader
from dicache.tensors.mac_meter import MacCounter


@dataclass(frozen=True)
class Drawn:
    latents: Tensor
    macs: float
    seconds: float


@dataclass(frozen=True)
class Point:
    """One value of one arm's knob. Lists hold one entry per caption; `failure` says why there are none."""

    arm: str
    kind: str
    knob: str
    value: Any
    work: float | None = None
    """Executed MACs over those of the uncached run."""
    seconds: float | None = None
    errors: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    attributes: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def speedup(self) -> float | None:
        return None if not self.work else 1 / self.work


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
    if setting.solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=setting.shift)
    solver = DPMSolverMultistepScheduler(
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
    parts, macs, seconds = [], 0.0, 0.0
    for start in range(0, len(captions), setting.batch):
        batch = captions[start : start + setting.batch]
        with _counted(pipe) as counted:
            started = time.perf_counter()
            parts.append(draw_batch(pipe, batch, start, setting))
            seconds += time.perf_counter() - started
        macs += counted[0]
    return Drawn(torch.cat(parts), macs, seconds)


def draw_batch(pipe: FluxPipeline, captions: list[str], first: int, setting: Setting) -> Tensor:
    guided = {"negative_prompt": [""] * len(captions), "true_cfg_scale": setting.guidance}
    latents: Tensor = pipe(
        captions,
        num_inference_steps=setting.steps,
        generator=[torch.Generator().manual_seed(first + i) for i in range(len(captions))],
        output_type="latent",
        **(guided if setting.guidance > 1 else {}),
    ).images
    return latents


@contextmanager
def _counted(pipe: FluxPipeline) -> Iterator[list[float]]:
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


class Judge:
    """Holds latents against the uncached ones of the same captions and seeds."""

    def __init__(self, captions: list[str], setting: Setting) -> None:
        self.captions, self.setting, self.reader = captions, setting, Reader.shipped()
        self.pipe = fresh(setting)
        self.reference = draw(self.pipe, captions, setting)
        self.images = pictures(self.pipe, self.reference.latents)

    def point(self, arm: Arm, value: Any) -> Point:  # noqa: ANN401
        """Draw with a fresh pipeline. Whatever the arm raises becomes the point's failure, with its reason."""
        pipe = fresh(self.setting)
        try:
            with torch.no_grad(), arm.enter(pipe, value, self.setting) as setting:
                drawn = draw(pipe, self.captions, setting)
        except Exception as error:  # a peer may fail in any way; the results say how
            return Point(arm.name, arm.kind, arm.knob, value, failure=f"{type(error).__name__}: {error}")
        return self.judged(arm, value, drawn)

    def judged(self, arm: Arm, value: Any, drawn: Drawn) -> Point:  # noqa: ANN401
        images = pictures(self.pipe, drawn.latents)
        pairs = list(zip(images[:, None], self.images[:, None], strict=True))
        return Point(
            arm=arm.name,
            kind=arm.kind,
            knob=arm.knob,
            value=value,
            work=drawn.macs / self.reference.macs,
            seconds=drawn.seconds,
            errors=relative_error(drawn.latents, self.reference.latents).tolist(),
            psnr=[peak_signal_noise_ratio(a, b, data_range=1.0).item() for a, b in pairs],
            ssim=[structural_similarity_index_measure(a, b, data_range=1.0).item() for a, b in pairs],
            attributes=self.reader.score(images, self.captions).tolist(),
        )
