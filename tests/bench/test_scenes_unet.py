"""The UNet of the scenes: stock pipelines, offline, four solvers; budget 0 costs no bit, and the control counts."""

import itertools

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

import dicache
from dicache.bench.models import scenes_unet
from dicache.bench.models.scenes_unet import CONTROL, MODEL, SMOOTHED, SOLVERS, draw, edges, pictures, pipeline
from dicache.errors import ReferenceModelError
from dicache.reference.reader import Reader
from dicache.reference.render import render
from dicache.reference.scenes import caption, scenes
from helpers.watching import count_macs

pytestmark = pytest.mark.skipif(not MODEL.exists(), reason="scenes-unet's weights are in the repository only")

SHOWN = list(itertools.islice(scenes("calibration", seed=11), 4))
CAPTIONS = [caption(scene) for scene in SHOWN]
IMAGE = edges(render(SHOWN))


def quiet(**kwargs):
    pipe = pipeline(**kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def plain():
    return quiet()


@pytest.fixture(scope="module")
def controlled():
    return quiet(control=True)


def test_pipelines_and_networks_are_stock_and_small(plain, controlled):
    assert type(plain) is StableDiffusionPipeline and type(controlled) is StableDiffusionControlNetPipeline
    assert type(plain.unet) is UNet2DConditionModel and type(plain.text_encoder) is CLIPTextModel
    assert type(controlled.controlnet) is ControlNetModel
    assert MODEL.stat().st_size + CONTROL.stat().st_size <= 10_000_000
    for network in (controlled.unet, controlled.controlnet):
        assert not network.time_embedding.linear_1.weight[:, SMOOTHED].any()


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_draws_what_the_captions_say(plain, solver):
    plain.scheduler = scenes_unet.scheduler(solver)
    seen = pictures(draw(plain, CAPTIONS, 20))
    assert seen.shape == (4, 3, 32, 32) and bool(seen.isfinite().all())
    read = Reader.shipped()
    another = CAPTIONS[1:] + CAPTIONS[:1]
    assert read.score(seen, CAPTIONS).mean() > 1.5 * read.score(seen, another).mean()  # its card says how much it sees


@pytest.mark.parametrize(("control", "solver"), [(False, "dpm++"), (True, "ddim")], ids=["plain", "controlled"])
def test_a_budget_saves_work_and_a_budget_of_nothing_costs_no_bit(request, control, solver):
    pipe = request.getfixturevalue("controlled" if control else "plain")
    pipe.scheduler, image = scenes_unet.scheduler(solver), IMAGE[:2] if control else None
    bare = draw(pipe, CAPTIONS[:2], 12, image=image)
    with dicache.enable(pipe, error_budget=0.0):
        assert torch.equal(draw(pipe, CAPTIONS[:2], 12, image=image), bare)
    with dicache.enable(pipe, error_budget=0.1) as cache:
        cached = draw(pipe, CAPTIONS[:2], 12, image=image)
        report = cache.report().to_dict()
    assert bool(cached.isfinite().all()) and report["denoiser_speedup"] > 1.1
    assert torch.equal(draw(pipe, CAPTIONS[:2], 12, image=image), bare)


def test_the_control_is_counted_and_runs_where_the_denoiser_does():
    pipe = quiet(control=True)
    executed = [count_macs(network) for network in (pipe.unet, pipe.controlnet)]
    with dicache.enable(pipe, error_budget=0.2) as cache:
        draw(pipe, CAPTIONS[:2], 10, image=IMAGE[:2])
        report = cache.report()
    assert report.to_dict()["executed_macs"] == pytest.approx(sum(map(sum, executed)), rel=0.01)
    computed = sum("#" in marks for marks in zip(report.strip(0), report.strip(1), strict=True))
    assert len(executed[1]) == computed < 10


def test_the_control_is_obeyed_where_no_caption_says_anything(controlled):
    controlled.scheduler = scenes_unet.scheduler("ddim")
    here = (edges(pictures(draw(controlled, [""] * 4, 20, image=IMAGE))) > 0.5).flatten(1)
    there = (IMAGE > 0.5).flatten(1)
    own = (here & there).sum(1) / (here | there).sum(1)
    another = (here & there.roll(1, 0)).sum(1) / (here | there.roll(1, 0)).sum(1)
    assert own.mean() > 1.5 * another.mean()


def test_without_weights_it_says_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr(scenes_unet, "MODEL", tmp_path / "none.safetensors")
    with pytest.raises(ReferenceModelError, match="checkout"):
        pipeline()
    with pytest.raises(ValueError, match="Expected one of ddim"):
        scenes_unet.scheduler("heun")
