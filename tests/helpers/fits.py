"""Coefficients to test with: made up for the toy, or fitted on the tiny FLUX pipeline."""

from functools import lru_cache

import torch

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
