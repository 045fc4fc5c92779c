"""Coefficients to test with: made up for the toy, or fitted on the tiny FLUX pipeline; and a pipeline whose denoiser is
linear, so that maps of its blocks can be exact.
"""

from functools import lru_cache
from types import SimpleNamespace

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import dicache
from dicache.approximators.fitted.about import About, described
from dicache.approximators.fitted.coefficients import Fitted
from dicache.sites import Evaluation, Sites, Sublayers
from helpers.toy import SIGMAS, B
from pipelines.tiny import draw_flux, make_flux

STEPS = 6
C = 4
EVERY = torch.ones(B, dtype=torch.bool)


def made(kind: str, coefficients: dict[str, torch.Tensor], longest: int = 3) -> Fitted:
    """For the toy: one site, the whole evaluation."""
    about = About(kind, {}, "none", tuple(SIGMAS), 1.0, described(Evaluation()), 1, longest, C, 1e-3, "0")
    return Fitted(about, {"": coefficients})


class Captioned:
    """The tiny FLUX pipeline, whose prompts are the numbers of its samples."""

    def __init__(self) -> None:
        self.pipe, self.seeds = make_flux(), []

    @property
    def transformer(self):
        return self.pipe.transformer

    @property
    def scheduler(self):
        return self.pipe.scheduler

    def __call__(self, prompts, *, num_inference_steps, generator, output_type, **kwargs):
        self.seeds += [g.initial_seed() for g in generator]
        return draw_flux(self.pipe, [int(p) for p in prompts], num_inference_steps, **kwargs)


@lru_cache
def fitted(kind: str, sites: Sites | None = None, **options) -> Fitted:
    return dicache.fit(
        Captioned(), ["11", "12"], steps=STEPS, kind=kind, sites=sites, longest=2, progress=False, **options
    )


PLACES = [("ridge", None), ("low_rank", Sublayers()), ("affine", Evaluation()), ("scale_shift", None)]
GATES = ("gate", Sublayers())


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(C, C)

    def forward(self, hidden_states):
        return hidden_states + 0.3 * self.linear(hidden_states)


class Straight(torch.nn.Module):
    """A denoiser of three linear blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(Linear() for _ in range(3))

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


def straight():
    pipe = SimpleNamespace(transformer=Straight(), scheduler=FlowMatchEulerDiscreteScheduler())

    @torch.no_grad()
    def draw(prompts, *, num_inference_steps, generator, output_type):
        pipe.scheduler.set_timesteps(num_inference_steps)
        x = torch.cat([torch.randn(1, 16, C, generator=g) for g in generator])
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.transformer(x, t), t, x, return_dict=False)[0]
        return x

    class Pipe(SimpleNamespace):
        def __call__(self, *args, **kwargs):
            return draw(*args, **kwargs)

    return Pipe(transformer=pipe.transformer, scheduler=pipe.scheduler)
