"""Loops as people write them by hand around a bare denoiser, which is exact at every noise (`pipelines.exact`)."""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from pipelines.exact import SHAPE, ExactDenoiser, pictures

Level = tuple[float, float]


class Sorted(nn.Module):
    """Beside all pictures it knows those of one half: `wanted`, (B,), says for which rows those alone count."""

    def __init__(self) -> None:
        super().__init__()
        self.every, self.some = ExactDenoiser(pictures()), ExactDenoiser(pictures()[:48])
        self.blocks = self.every.blocks
        self.calls = 0

    def at(self, level: Level, mixture: Level) -> None:
        for part in (self.every, self.some):
            part.level, part.mixture = level, mixture

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1  # where nothing is computed its forward is not entered
        return super().__call__(*args, **kwargs)

    def forward(self, latent: Tensor, timestep: Tensor, wanted: Tensor) -> Tensor:
        hidden = latent.flatten(1)[:, :8]
        for block in self.blocks:
            hidden = block(hidden_states=hidden)
        both = [part.predicted(latent) for part in (self.every, self.some)]
        return torch.where(wanted.view(-1, 1, 1, 1), both[1], both[0])


class Named(ExactDenoiser):
    """Takes all it is given in one dict."""

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return super().forward(batch["x"], batch["t"])


class Loop(NamedTuple):
    run: Callable[[Any, Tensor, int], Tensor]
    """Denoiser, first latent, steps; the final latent."""
    make: Callable[[], nn.Module] = lambda: ExactDenoiser(pictures())
    refused: str = ""
    """Why everything computes."""
    calls: int = 1
    """Of the denoiser, a step."""


def at(net: Any, level: Level, mixture: Level) -> None:
    net.level, net.mixture = level, mixture


def variance_preserving(net: Any, x: Tensor, steps: int) -> Tensor:
    """In its own time, alpha^2 = exp(-t), from 8 to nearly 0."""
    times = torch.cat([torch.linspace(8.0**0.5, 0.03, steps) ** 2, torch.zeros(1)]).tolist()
    for t, after in pairwise(times):
        (a, s), (b, r) = ((math.exp(-u / 2), math.sqrt(-math.expm1(-u))) for u in (t, after))
        at(net, (a, s), (0.0, 1.0))
        eps = net(x, torch.full((len(x),), t))
        x = b * (x - s * eps) / a + r * eps
    return x


def velocity_on_a_circle(net: Any, x: Tensor, steps: int) -> Tensor:
    angles = torch.linspace(math.pi / 2, 0.0, steps + 1).tolist()
    for angle, after in pairwise(angles):
        a, s = math.cos(angle), math.sin(angle)
        at(net, (a, s), (-s, a))
        turn = after - angle
        x = math.cos(turn) * x + math.sin(turn) * net(x, torch.full((len(x),), angle))
    return x


def flow_down(net: Any, x: Tensor, steps: int) -> Tensor:
    times = [3 * t / (1 + 2 * t) for t in torch.linspace(1, 0, steps + 1).tolist()]
    for t, after in pairwise(times):
        at(net, (1 - t, t), (-1.0, 1.0))
        x = x + (after - t) * net(x, torch.full((len(x),), 1000 * t))
    return x


def flow_up(net: Any, x: Tensor, steps: int) -> Tensor:
    for t, after in pairwise(torch.linspace(0, 1, steps + 1).tolist()):
        at(net, (t, 1 - t), (1.0, -1.0))
        x = x + (after - t) * net(x, torch.full((len(x),), t))
    return x


def karras(steps: int) -> list[float]:
    ramp = torch.linspace(0, 1, steps)
    high, low = 14.6 ** (1 / 7), 0.03 ** (1 / 7)
    return [*((high + ramp * (low - high)) ** 7).tolist(), 0.0]


def denoised(net: Any, x: Tensor, sigma: float) -> Tensor:
    """As k-diffusion wraps a network that predicts noise."""
    scale = 1 / math.sqrt(1 + sigma**2)
    at(net, (scale, scale * sigma), (0.0, 1.0))
    return x - sigma * net(x * scale, torch.full((len(x),), 250 * math.log(sigma) + 500))


def euler(net: Any, x: Tensor, steps: int) -> Tensor:
    x = x * 14.6
    for sigma, after in pairwise(karras(steps)):
        x = x + (after - sigma) * (x - denoised(net, x, sigma)) / sigma
    return x


def heun(net: Any, x: Tensor, steps: int) -> Tensor:
    x = x * 14.6
    for sigma, after in pairwise(karras(steps)):
        slope = (x - denoised(net, x, sigma)) / sigma
        tried = x + (after - sigma) * slope
        if after > 0:
            slope = (slope + (tried - denoised(net, tried, after)) / after) / 2
        x = x + (after - sigma) * slope
    return x


def dpm2(net: Any, x: Tensor, steps: int) -> Tensor:
    x = x * 14.6
    for sigma, after in pairwise(karras(steps)):
        slope = (x - denoised(net, x, sigma)) / sigma
        if after > 0:
            middle = math.sqrt(sigma * after)
            tried = x + (middle - sigma) * slope
            slope = (tried - denoised(net, tried, middle)) / middle
        x = x + (after - sigma) * slope
    return x


def dpm_sde(net: Any, x: Tensor, steps: int) -> Tensor:
    """DPM-Solver++ of first order, as a stochastic equation."""
    generator, x = torch.Generator().manual_seed(0), x * 14.6
    for sigma, after in pairwise(karras(steps)):
        clean = denoised(net, x, sigma)
        h = math.log(sigma / after) if after > 0 else math.inf
        noise = torch.randn(x.shape, generator=generator)
        x = after / sigma * math.exp(-h) * x - math.expm1(-2 * h) * clean if after > 0 else clean
        x = x + after * math.sqrt(-math.expm1(-2 * h)) * noise
    return x


def ddim(net: Any, x: Tensor, steps: int) -> Tensor:
    """By the table of Stable Diffusion, at whole times."""
    signal = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0).sqrt().tolist()
    times = [*torch.linspace(980, 0, steps).round().int().tolist(), None]
    for t, after in pairwise(times):
        a, b = signal[t], 1.0 if after is None else signal[after]
        s, r = math.sqrt(1 - a * a), math.sqrt(1 - b * b)
        at(net, (a, s), (0.0, 1.0))
        eps = net(x, torch.full((len(x),), t))
        x = b * (x - s * eps) / a + r * eps
    return x


def time_per_token(net: Any, x: Tensor, steps: int) -> Tensor:
    """The first tokens are a picture to go by, at no time."""
    for t, after in pairwise(torch.linspace(1, 0, steps + 1).tolist()):
        at(net, (1 - t, t), (-1.0, 1.0))
        times = torch.full((len(x), 16), t)
        times[:, :4] = 0
        x = x + (after - t) * net(x, times)
    return x


def in_a_dict(net: Any, x: Tensor, steps: int) -> Tensor:
    for t, after in pairwise(torch.linspace(1, 0, steps + 1).tolist()):
        at(net, (1 - t, t), (-1.0, 1.0))
        x = x + (after - t) * net({"x": x, "t": torch.full((len(x),), t)})
    return x


def batched_guidance(net: Any, x: Tensor, steps: int) -> Tensor:
    wanted = torch.arange(2 * len(x)) >= len(x)
    for t, after in pairwise(torch.linspace(1, 0, steps + 1).tolist()):
        net.at((1 - t, t), (-1.0, 1.0))
        plain, half = net(torch.cat([x, x]), torch.full((2 * len(x),), t), wanted).chunk(2)
        x = x + (after - t) * (plain + 2.0 * (half - plain))
    return x


def guidance_in_turn(net: Any, x: Tensor, steps: int) -> Tensor:
    for t, after in pairwise(torch.linspace(1, 0, steps + 1).tolist()):
        net.at((1 - t, t), (-1.0, 1.0))
        time = torch.full((len(x),), t)
        half, plain = (net(x, time, torch.full((len(x),), wanted)) for wanted in (True, False))
        x = x + (after - t) * (plain + 2.0 * (half - plain))
    return x


def ending_early(net: Any, x: Tensor, steps: int) -> Tensor:
    for t, after in list(pairwise(torch.linspace(1, 0, steps + 1).tolist()))[: 2 * steps // 3]:
        at(net, (1 - t, t), (-1.0, 1.0))
        x = x + (after - t) * net(x, torch.full((len(x),), t))
    return x


def beginning_anew(net: Any, x: Tensor, steps: int) -> Tensor:
    """Half-way it goes back to where three quarters are noise, and through the rest again."""
    times = torch.linspace(1, 0, steps + 1).tolist()
    for t, after in list(pairwise(times))[: steps // 2]:
        at(net, (1 - t, t), (-1.0, 1.0))
        x = x + (after - t) * net(x, torch.full((len(x),), t))
    t, back = times[steps // 2], times[steps // 4]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    kept = (1 - back) / (1 - t)
    x = kept * x + math.sqrt(back**2 - (kept * t) ** 2) * noise
    for t, after in list(pairwise(times))[steps // 4 :]:
        at(net, (1 - t, t), (-1.0, 1.0))
        x = x + (after - t) * net(x, torch.full((len(x),), t))
    return x


TRIED = "calls at one time hold different latents"
LEFT_OVER = "is not one of the latent and the output alone"
LOOPS = {
    "variance preserving": Loop(variance_preserving),
    "velocity on a circle": Loop(velocity_on_a_circle),
    "flow down": Loop(flow_down),
    "flow up": Loop(flow_up),
    "k-diffusion Euler": Loop(euler),
    "k-diffusion Heun": Loop(heun, refused=TRIED),
    "k-diffusion DPM2": Loop(dpm2, refused=LEFT_OVER),
    "k-diffusion DPM++ SDE": Loop(dpm_sde, refused=LEFT_OVER),
    "DDIM by hand": Loop(ddim),
    "time per token": Loop(time_per_token),
    "inputs in a dict": Loop(in_a_dict, lambda: Named(pictures())),
    "guidance in one call": Loop(batched_guidance, Sorted),
    "guidance in turn": Loop(guidance_in_turn, Sorted, calls=2),
    "ending early": Loop(ending_early),
    "beginning anew": Loop(beginning_anew),
}


def noise(seeds: Iterator[int] | range) -> Tensor:
    return torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sampled(denoiser, scheduler, prompts, steps, generators, scale=1.0):
    """As a `dicache.Sampler` draws with, of a denoiser that is exact at every noise."""
    latents = scale * torch.stack([torch.randn(*SHAPE, generator=generator) for generator in generators])
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        signal = float(scheduler.alphas_cumprod[int(time)])
        denoiser.level, denoiser.mixture = (signal**0.5, (1 - signal) ** 0.5), (0.0, 1.0)
        output = denoiser(latents, time.expand(len(latents)))
        latents = scheduler.step(output, time, latents, return_dict=False)[0]
    return latents


def ddim():
    return DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
