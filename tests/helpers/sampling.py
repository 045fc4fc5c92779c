"""A loop as people write it around a denoiser and a scheduler, of a denoiser that is exact at every noise."""

import torch
from diffusers import DDIMScheduler

from pipelines.exact import SHAPE


def loop(denoiser, scheduler, prompts, steps, generators, scale=1.0):
    latents = scale * torch.stack([torch.randn(*SHAPE, generator=generator) for generator in generators])
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        signal = float(scheduler.alphas_cumprod[int(time)])
        denoiser.level, denoiser.mixture = (signal**0.5, (1 - signal) ** 0.5), (0.0, 1.0)
        output = denoiser(latents, time.expand(len(latents)))
        latents = scheduler.step(output, time, latents, return_dict=False)[0]
    return latents


def scheduler():
    return DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
