"""Drawing with the reference pipeline: captions to latents, latents to pictures."""

import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from dicache.reference.assembly import GUIDANCE


def draw(
    pipe: FluxPipeline,
    captions: list[str],
    seeds: list[int],
    steps: int,
    tick: Callable[[], None] = lambda: None,
    guidance: float = GUIDANCE,
) -> tuple[Tensor, float]:
    """Final packed latents of the captions, (B, 64, 48), and the seconds it took; `tick` is called after every step."""

    def after_step(pipe: FluxPipeline, index: int, timestep: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        tick()
        return {}

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    started = time.perf_counter()
    latents = pipe(
        captions,
        negative_prompt=[""] * len(captions),
        true_cfg_scale=guidance,
        num_inference_steps=steps,
        generator=generators,
        output_type="latent",
        callback_on_step_end=after_step,
    ).images
    return latents, time.perf_counter() - started


def pictures(pipe: FluxPipeline, latents: Tensor) -> Tensor:
    """(B, 3, 32, 32) in [0, 1]."""
    side = pipe.default_sample_size * pipe.vae_scale_factor
    decoded: Tensor = pipe.vae.decode(
        pipe._unpack_latents(latents, side, side, pipe.vae_scale_factor), return_dict=False
    )[0]
    return (decoded / 2 + 0.5).clamp(0, 1)
