"""A block of modular pipelines that denoises with a cache: budgets in, a report out."""

import pytest
import torch

from dicache.errors import BudgetError, ModeError
from dicache.integrations import CachedDenoising
from pipelines.modular import draw_modular, modular_flux
from pipelines.tiny import make_flux

SAMPLES = [1, 2]


def test_a_budget_goes_in_and_a_report_comes_out():
    plain = draw_modular(modular_flux(make_flux()), SAMPLES)
    pipe = modular_flux(make_flux(), CachedDenoising)
    names = {parameter.name for parameter in pipe.blocks.inputs}
    assert {"error_budget", "speedup", "num_inference_steps"} <= names
    for asked, least in (({"error_budget": [0.05, 0.3]}, 1.2), ({"speedup": 2.0}, 1.8), ({}, 1.0)):
        told = draw_modular(pipe, SAMPLES, output=["latents", "dicache_report"], **asked)
        report, latents = told["dicache_report"], told["latents"]
        assert report.compute_speedup >= least and len(report.to_dict()["samples"]) == 2
        assert (latents - plain).norm() / plain.norm() < 0.3
    assert report.to_dict()["samples"][0]["budget"] == 0.05  # where nothing was said
    assert torch.equal(draw_modular(pipe, SAMPLES, error_budget=0.0), plain)


def test_nothing_of_it_stays_on_the_model():
    flux = make_flux()
    before = dict(vars(flux.transformer))
    pipe = modular_flux(flux, lambda denoise: CachedDenoising(denoise, speedup=2.0))
    report = draw_modular(pipe, SAMPLES, output="dicache_report")
    assert report.compute_speedup > 1.8
    for asked, error in (({"error_budget": -1.0}, BudgetError), ({"error_budget": 0.1, "speedup": 2.0}, ModeError)):
        with pytest.raises(error):
            draw_modular(pipe, SAMPLES, **asked)
    assert vars(flux.transformer).keys() == before.keys()
    assert torch.equal(draw_modular(modular_flux(flux), SAMPLES), draw_modular(modular_flux(make_flux()), SAMPLES))


def test_it_says_what_it_is():
    pipe = modular_flux(make_flux(), CachedDenoising)
    block = pipe.blocks.sub_blocks["denoise"]
    assert "Skips what can be predicted" in block.description
    assert {"transformer", "scheduler"} <= {spec.name for spec in block.expected_components}
    assert block.intermediate_outputs[-1].name == "dicache_report"
