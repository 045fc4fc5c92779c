"""The reference model: its world, its text, and what it draws."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import dicache
from dicache.errors import CaptionError, ReferenceModelError
from dicache.models.identity import identity
from dicache.planning.error_law import RULES
from dicache.promise.choose_profile import shipped
from dicache.promise.metrics import relative_error
from dicache.reference.denoiser import denoiser, positions
from dicache.reference.draw import draw, pictures
from dicache.reference.pixels import SpaceToDepth
from dicache.reference.reader import Reader
from dicache.reference.render import render
from dicache.reference.scenes import caption, parse, prompts, scenes, split_of
from dicache.reference.text import LENGTH, tokenizer
from dicache.reference.training.fast import FastDenoiser
from dicache.reference.training.reader import ceiling
from dicache.reference.weights import FOLDER, load


def test_the_public_names_stay_what_they_are_whatever_was_imported_before():
    import dicache.cli.demo
    import dicache.reference

    assert callable(dicache.reference.pipeline) and callable(dicache.reference.prompts)


@given(seed=st.integers(0, 10_000))
def test_a_caption_names_its_scene_and_fits_the_text_length(seed):
    scene = next(scenes("train", seed))
    text = caption(scene)
    assert caption(parse(text)) == text
    assert len(tokenizer()(text).input_ids) <= LENGTH


def test_splits_are_disjoint_and_repeatable():
    drawn = {split: prompts(split, 200, seed=1) for split in ("train", "calibration", "test")}
    assert all(split_of(text) == split for split, texts in drawn.items() for text in texts)
    assert len({text for texts in drawn.values() for text in texts}) == 600
    assert drawn["test"] == prompts("test", 200, seed=1) != prompts("test", 200, seed=2)
    with pytest.raises(CaptionError, match="0 or more"):
        prompts("test", -1)
    with pytest.raises(CaptionError, match="no split"):
        prompts("validation", 1)


def test_pixels_are_lossless():
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(SpaceToDepth()(image), image)


def test_the_training_forward_is_the_stock_models():
    torch.manual_seed(0)
    model = denoiser()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    latents, words, sentence, sigma = (
        torch.randn(2, 64, 48),
        torch.randn(2, LENGTH, 96),
        torch.randn(2, 64),
        torch.rand(2),
    )
    text, picture = positions().split([LENGTH, 64])
    with torch.no_grad():
        stock = model(latents, words, sentence, sigma, picture, text, return_dict=False)[0]
        fast = FastDenoiser(model, positions(), compiled=False)(latents, words, sentence, sigma)
    assert relative_error(fast, stock).max() < 1e-5


def test_the_shipped_weights_fit_their_limit_and_damage_is_told(tmp_path):
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= 12e6
    with pytest.raises(ReferenceModelError, match="cannot be read"):
        load(tmp_path / "missing.safetensors", {})
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(ReferenceModelError, match="cannot be read"):
        load(tmp_path / "broken.safetensors", {})


def test_the_reader_reads_drawn_scenes_and_sees_what_is_missing():
    reader = Reader.shipped()
    assert ceiling(reader, 300) > 0.97
    drawn = list(itertools.islice(scenes("test", seed=9), 64))
    texts = [caption(scene) for scene in drawn]
    assert reader.score(render(drawn), texts[1:] + texts[:1]).mean() < 0.5


@pytest.fixture(scope="module")
def uncached(reference):
    captions = prompts("test", 8, seed=5)
    return captions, draw(reference, captions, list(range(8)), 28)[0]


def test_what_is_drawn_shows_its_caption(reference, uncached):
    captions, latents = uncached
    assert Reader.shipped().score(pictures(reference, latents), captions).mean() >= 0.8


def test_budget_zero_is_bitwise_the_reference_pipeline(reference, uncached):
    captions, latents = uncached
    with dicache.enable(reference, error_budget=0.0) as cache:
        cached, _ = draw(reference, captions, list(range(8)), 28)
    assert torch.equal(cached, latents) and cache.report().compute_speedup == 1.0


def test_a_budget_is_kept_with_less_work_and_decisions_of_ones_own(reference, uncached):
    captions, latents = uncached
    with dicache.enable(reference, error_budget=0.05) as cache:
        cached, _ = draw(reference, captions[:8], list(range(8)), 28)
    report = cache.report()
    assert relative_error(cached, latents[:8]).median() <= 0.05
    assert sum(s["computed_fraction"] for s in report.to_dict()["samples"]) / 8 <= 0.6
    assert len({report.strip(i) for i in range(8)}) >= 3
    assert report.to_dict()["branches"] == ["cond", "uncond"]


def test_alone_together_and_shuffled_decide_the_same(reference, uncached):
    captions, _ = uncached

    def strips(order):
        with dicache.enable(reference, error_budget=0.05) as cache:
            draw(reference, [captions[i] for i in order], list(order), 28)
        return {sample: cache.report().strip(row) for row, sample in enumerate(order)}

    together = strips(range(8))
    shuffled = strips([5, 1, 2, 7, 0, 3])
    alone = {i: strips([i])[i] for i in (0, 5)}
    assert shuffled == {i: together[i] for i in shuffled}
    assert alone == {i: together[i] for i in alone}


def test_one_budget_per_sample_gives_each_its_own_work(reference, uncached):
    captions, latents = uncached
    with dicache.enable(reference, error_budget=[0.0, 0.02, 0.2]) as cache:
        cached, _ = draw(reference, captions[:1] * 3, [0] * 3, 28)
    work = [sample["computed_fraction"] for sample in cache.report().to_dict()["samples"]]
    assert work[0] == 1.0 > work[1] > work[2]
    errors = relative_error(cached, latents[:1].expand(3, -1, -1))
    assert errors[0] < 1e-5 and errors[1] <= 0.02 and errors[2] <= 0.2


def test_the_profiles_that_ship_are_of_this_model_and_of_a_rule_that_this_version_decides_by():
    profiles = shipped(identity(dicache.reference.pipeline().transformer))
    assert {(f.steps, round(f.guidance, 2), f.rule) for f in (profile.facts for profile in profiles)} == {
        (steps, guidance, 2) for steps in (20, 28, 50) for guidance in (1.0, 3.5)
    }
    assert 2 in RULES
    assert all(profile.prompts >= 100 for profile in profiles)
    assert all(bool(profile.facts.negative_conditions) == (profile.facts.guidance > 1) for profile in profiles)
