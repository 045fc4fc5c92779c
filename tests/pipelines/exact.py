"""A denoiser in closed form: the posterior mean of a small data set, each picture x_i of it blurred by w,

    E[x_0 | x] = sum_i p_i (m_i + w^2 a (x - a x_i) / (a^2 w^2 + s^2)),   p_i ~ exp(-|x - a x_i|^2 / 2 (a^2 w^2 + s^2)),

for a latent x = a x_0 + s eps. As nonlinear as a trained one, exact at every noise, and usable under every scheduler as
whatever it predicts. Runs are loops of their own, which play the part of a pipeline.
"""

import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dicache.solvers.play import play
from dicache.solvers.prediction import Path, path_of

SHAPE = (4, 8, 8)


def pictures(number: int = 96, size: float = 0.7) -> Tensor:
    """Of a figure that turns around once, (number, *SHAPE): each is near the next, and opposite ones are far apart."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(4, *SHAPE, generator=generator).flatten(1)
    angle = torch.arange(number)[:, None] * (2 * torch.pi / number)
    turns = torch.cat([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], dim=1)
    return (size * turns @ waves / 2**0.5).view(number, *SHAPE)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.rows = nn.Linear(8, 8), 0

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.rows += len(hidden_states)
        return hidden_states + self.linear(hidden_states)


class ExactDenoiser(nn.Module):
    """Predicts (data, noise) parts of `mixture` at the level it is told before each call; beside that its blocks do
    nothing but work.
    """

    def __init__(self, data: Tensor, width: float = 0.6, learned_variance: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.data, self.width, self.learned_variance = data, width, learned_variance
        self.level, self.mixture, self.calls = (0.0, 1.0), (0.0, 1.0), 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1  # where nothing is computed its forward is not entered
        return super().__call__(*args, **kwargs)

    def forward(self, latent: Tensor, timestep: Tensor) -> Tensor:
        hidden = latent.flatten(1)[:, :8]
        for block in self.blocks:
            hidden = block(hidden_states=hidden)
        output = self.predicted(latent)
        return torch.cat([output, torch.ones_like(output)], dim=1) if self.learned_variance else output

    def predicted(self, latent: Tensor) -> Tensor:
        (a, s), (data, eps) = self.level, self.mixture
        clean = self.clean(latent.double(), a, s)
        noise = (latent.double() - a * clean) / s
        return (data * clean + eps * noise).to(latent.dtype)

    def clean(self, latent: Tensor, a: float, s: float) -> Tensor:
        data, variance = self.data.double(), (a * self.width) ** 2 + s**2
        away = latent[:, None] - a * data
        weights = torch.softmax(-away.flatten(2).square().sum(2) / (2 * variance), dim=1)
        near = (weights[:, :, None] * data.flatten(1)).sum(1).view_as(latent)
        return near + self.width**2 * a / variance * (latent - a * near)


class Run(NamedTuple):
    """What a loop has to know of its scheduler."""

    reset: Callable[[Any], None]
    """Sets its times."""
    path: Path
    scales: list[float]
    random: bool
    """Whether a step takes a generator."""
    scaled: bool
    """Whether the scheduler scales what the denoiser sees."""


def scales(scheduler: Any) -> bool:
    return hasattr(scheduler, "scale_model_input")


def run_of(scheduler: Any, steps: int, **times: Any) -> Run:
    """`times` are what `set_timesteps` takes beside the number of steps."""

    def reset(scheduler: Any) -> None:
        scheduler.set_timesteps(steps, **times)

    reset(scheduler)
    responses = play(scheduler)
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return Run(reset, path_of(responses), responses.scales.tolist(), takes, scales(scheduler))


def pipeline(scheduler: Any, **options: Any) -> Any:
    return SimpleNamespace(transformer=ExactDenoiser(pictures(), **options), scheduler=scheduler)


def draw(pipe: Any, run: Run, seeds: Sequence[int]) -> Tensor:
    """The loop that every pipeline has, on one sample per seed."""
    given = {"generator": torch.Generator().manual_seed(0)} if run.random else {}
    run.reset(pipe.scheduler)
    latent = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    latent = latent * float(run.path.levels[0, 1])
    for call, time in enumerate(pipe.scheduler.timesteps):
        pipe.transformer.level = tuple((run.path.levels[call] * run.scales[call]).tolist())
        pipe.transformer.mixture = tuple(run.path.mixtures[call].tolist())
        with torch.no_grad():
            scaled = pipe.scheduler.scale_model_input(latent, time) if run.scaled else latent
            output = pipe.transformer(scaled, time.expand(len(latent)))[:, : SHAPE[0]]
        latent = pipe.scheduler.step(output, time, latent, return_dict=False, **given)[0]
    return latent
