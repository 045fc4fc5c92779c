"""Every mistake has one clear error, and leaves the model as it was."""

import math

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig

import dicache
from dicache.approximators.alignment import Align
from dicache.config import Config
from dicache.defaults import for_budget
from dicache.errors import AlreadyEnabledError, BudgetError, CaptionError, ModeError, UnsupportedModelError
from dicache.probes.first_blocks import FirstBlocks
from helpers.watching import untouched
from pipelines.tiny import draw_flux, make_flux


@pytest.mark.parametrize(
    "budget",
    [
        *(-0.1, math.nan, math.inf, 1e308, 10**400, 10**5000, True, np.float32("nan"), torch.tensor(math.inf)),
        *([], [0.1, -1.0], [0.1, 10**400], [[0.1, 0.2]], [None], torch.tensor([0.1, -1]), torch.zeros(2, 2)),
        *("0.05", b"0.05", bytearray(b"1"), {0: 0.1}, {0.1}, frozenset({0.1}), object()),
        *(torch.empty((), device="meta"), torch.empty(2, device="meta"), [torch.empty((), device="meta")]),
        *([dicache.Psnr(30), [0.1, 0.2]], {0: dicache.Psnr(30)}),
    ],
    ids=lambda budget: type(budget).__name__,
)
def test_a_budget_that_makes_no_sense_is_refused(budget):
    pipe = make_flux()
    with pytest.raises(BudgetError, match="Expected"):
        dicache.enable(pipe, error_budget=budget)
    assert untouched(pipe)
    with pytest.raises(ModeError, match=r"^speedup .*Expected"):
        dicache.enable(pipe, speedup=budget)


def test_shares_that_were_meant_as_per_cents_are_told_apart():
    for confidence in (90, 1, 0, -0.5, math.nan, "0.9", np.float32(90), torch.tensor(90)):
        with pytest.raises(ModeError, match=r"0\.9 stands for 90 %"):
            dicache.enable(make_flux(), error_budget=0.1, confidence=confidence)
    for speedup in (0.5, [2.0, 0.99], 0):
        with pytest.raises(ModeError, match=r"Expected 1 \(compute everything\) or more"):
            dicache.enable(make_flux(), speedup=speedup)
    for budget, told in ((5, "500 %"), ([0.1, 1.0], "100 %"), (0.99, None)):
        pipe = make_flux()
        with dicache.enable(pipe, error_budget=budget) as cache:
            draw_flux(pipe, [1, 2], 6)
        large = [note for note in cache.report().warnings if "budgets are shares" in note]
        assert (told in large[0]) if told else not large


def test_a_class_is_not_what_is_made_of_it():
    for kind in (type(make_flux()), type(make_flux().transformer), type(make_flux().scheduler)):
        for call in (lambda kind=kind: dicache.enable(kind, error_budget=0.1), lambda kind=kind: dicache.disable(kind)):
            with pytest.raises(UnsupportedModelError, match=r"is a class\. Expected a pipeline or a denoiser"):
                call()


def test_numbers_of_numpy_and_torch_are_numbers():
    alone = (np.float32(2), np.array(2.0), torch.tensor(2.0), np.int64(2), torch.tensor(2, dtype=torch.bfloat16))
    for numbers in (*alone, np.array([2.0, 3.0], "float32"), list(alone), tuple(alone), torch.tensor([2.0, 3.0])):
        for asked in ("error_budget", "speedup"):
            dicache.enable(make_flux(), **{asked: numbers}).disable()


def test_as_many_budgets_as_samples_or_an_error_and_then_a_clean_run():
    pipe = make_flux()
    plain = draw_flux(pipe, [1, 2], 6)
    with dicache.enable(pipe, error_budget=[0.0, 0.0]) as cache:
        with pytest.raises(BudgetError, match="2 entries but this run has 3 samples"):
            draw_flux(pipe, [1, 2, 3], 6)
        for told in (str(cache.report()), cache._repr_html_()):
            assert (
                "the run was refused" in told
                and "2 entries but this run has 3 samples" in told
                and "x less" not in told
            )
        assert not cache.report().to_dict()["samples"] and "the run was refused" in repr(cache)
        with pytest.raises(BudgetError, match="2 entries"):
            draw_flux(pipe, [1, 2, 3], 1)
        assert not cache.report().to_dict()["complete"]
        assert not cache.report().to_dict()["samples"] and cache.report().plot()
        assert torch.equal(draw_flux(pipe, [1, 2], 6), plain)
        assert "refused" not in str(cache.report())
    assert untouched(pipe)


def test_exactly_one_mode():
    pipe = make_flux()
    for arguments in ({}, {"error_budget": 0.1, "config": for_budget(0.1)}):
        with pytest.raises(ModeError, match="exactly one"):
            dicache.enable(pipe, **arguments)
    with pytest.raises(TypeError):
        dicache.enable(pipe, eror_budget=0.1)
    assert untouched(pipe)


@pytest.mark.parametrize("config", [0.05, {"error_budget": 0.1}])
def test_a_config_is_a_config(config):
    with pytest.raises(ModeError, match="Expected a dicache"):
        dicache.enable(make_flux(), config=config)
    with pytest.raises(ModeError, match="Expected a controller"):
        Config(config)


def test_a_cache_that_was_disabled_is_not_entered_again_and_outlives_its_pipeline():
    pipe = make_flux()
    cache = dicache.enable(pipe, error_budget=0.1)
    with cache:
        draw_flux(pipe, [1], 6)
    del pipe
    assert len(cache.report().strip(0)) == 6
    with pytest.raises(ModeError, match="was disabled"), cache:
        pass


@pytest.mark.parametrize("name", ["error_budget", "budget", "speedup", "report", "audit"])
def test_nothing_of_a_cache_is_changed_by_setting_it(name):
    with dicache.enable(make_flux(), error_budget=0.3) as cache:
        with pytest.raises(AttributeError, match=rf"no {name} to set.*disable\(\), then dicache.enable"):
            setattr(cache, name, 0.1)
        assert callable(cache.report)


def test_enabling_twice_is_refused_and_the_first_goes_on():
    pipe = make_flux()
    cache = dicache.enable(pipe, error_budget=0.3)
    with pytest.raises(AlreadyEnabledError, match="disable"):
        dicache.enable(pipe, error_budget=0.1)
    draw_flux(pipe, [1], 6)
    assert cache.report().compute_speedup > 1
    cache.disable()
    cache.disable()
    assert untouched(pipe)


def test_a_cache_that_was_lost_is_taken_off_by_its_pipeline_or_denoiser():
    for lost_on in (lambda pipe: pipe, lambda pipe: pipe.transformer):
        pipe = make_flux()
        plain = draw_flux(pipe, [1], 6)
        dicache.enable(pipe, error_budget=0.3)
        with pytest.raises(AlreadyEnabledError, match=r"dicache.disable\(pipe\)"):
            dicache.enable(pipe, error_budget=0.1)
        dicache.disable(lost_on(pipe))
        assert untouched(pipe) and torch.equal(draw_flux(pipe, [1], 6), plain)
        dicache.disable(pipe)


def test_a_cache_that_was_taken_off_by_its_pipeline_is_disabled_and_still_reports():
    pipe = make_flux()
    cache = dicache.enable(pipe, error_budget=0.3)
    draw_flux(pipe, [1], 6)
    dicache.disable(pipe)
    assert cache.report().to_dict()["complete"]
    with pytest.raises(ModeError, match="was disabled"), cache:
        pass


def test_a_model_with_a_diffusers_cache_is_refused_and_keeps_it():
    pipe = make_flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(AlreadyEnabledError, match="diffusers cache"):
        dicache.enable(pipe, error_budget=0.1)
    assert pipe.transformer.is_cache_enabled
    pipe.transformer.disable_cache()
    dicache.enable(pipe, error_budget=0.1).disable()


def test_a_module_without_blocks_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="Linear has no stack of blocks"):
        dicache.enable(torch.nn.Linear(2, 2), error_budget=0.1)
    with pytest.raises(UnsupportedModelError, match="neither a torch module nor a pipeline"):
        dicache.enable(object(), error_budget=0.1)


def test_a_failure_half_way_through_attaching_undoes_everything(monkeypatch):
    from diffusers.hooks import HookRegistry

    pipe, register, count = make_flux(), HookRegistry.register_hook, []

    def fails_at_the_third(self, hook, name):
        count.append(1)
        if len(count) == 3:
            raise RuntimeError("no more hooks")
        register(self, hook, name)

    monkeypatch.setattr(HookRegistry, "register_hook", fails_at_the_third)
    with pytest.raises(RuntimeError, match="no more hooks"):
        dicache.enable(pipe, error_budget=0.1)
    assert untouched(pipe)


def test_a_batch_that_changes_size_half_way_begins_anew_and_says_so():
    model = make_flux().transformer
    torch.manual_seed(0)

    def call(batch, time):
        ids = torch.zeros(16, 3)
        arguments = {
            "encoder_hidden_states": torch.ones(batch, 8, 32),
            "pooled_projections": torch.ones(batch, 32),
            "img_ids": ids,
            "txt_ids": ids[:8],
        }
        return model(torch.ones(batch, 16, 4), timestep=torch.full((batch,), time), return_dict=False, **arguments)[0]

    with torch.no_grad(), dicache.enable(model, error_budget=10.0) as cache:
        for time in (1.0, 0.9, 0.8, 0.7):
            assert call(2, time).shape[0] == 2
        for time in (0.6, 0.5):
            assert call(3, time).shape[0] == 3
    assert any("changed from" in warning for warning in cache.report().warnings)


def test_alignment_without_a_probe_is_refused():
    with pytest.raises(ModeError, match="reads a probe"):
        Config(for_budget(0.1).controller, approximators=(Align(),), probe=FirstBlocks(0))
    with pytest.raises(ModeError, match="no approximator"):
        Config(for_budget(0.1).controller, approximators=())


def test_without_a_probe_skipped_steps_run_no_block():
    pipe = make_flux()
    parts = for_budget(0.4)
    with dicache.enable(
        pipe, config=Config(parts.controller, approximators=parts.approximators[:2], probe=FirstBlocks(0))
    ) as cache:
        draw_flux(pipe, [1], 8)
        ran = []
        pipe.transformer.transformer_blocks[0].attn.to_q.register_forward_hook(lambda *_: ran.append(1))
        draw_flux(pipe, [1], 8)
    strip = cache.report().strip(0)
    assert len(ran) == strip.count("#") < 8


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("", "empty"),
        ("center large red dog on white background", "'dog'"),
        ("center red large circle on white background", "expected a size"),
        ("center large red circle", "expected a cell"),
        ("center large red circle on white background twice", "'twice'"),
        ("top small red circle, top small red ring on white background", "cell of its own"),
        ("top small red circle on white blue background", "'gradient'"),
    ],
)
def test_a_caption_outside_the_language_is_refused_with_the_word(caption, words):
    from dicache.reference.scenes import parse

    with pytest.raises(CaptionError, match=words):
        parse(caption)


def test_a_typo_gets_a_suggestion_even_through_the_pipeline(reference):
    with pytest.raises(CaptionError, match="Did you mean circle"):
        reference("center large red circel on white background")


class Stacked(torch.nn.Module):
    """A bare denoiser whose answer has the given form."""

    def __init__(self, answer):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(3))
        self.answer = answer

    def forward(self, hidden_states, timestep=None):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.answer(hidden_states)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, hidden_states):
        return hidden_states + self.linear(hidden_states)


@pytest.mark.parametrize("answer", [lambda h: (h, h), lambda h: list(h), lambda h: {"video": h, "audio": h}])
def test_a_model_with_several_answers_is_refused_before_it_could_run_wrong(answer):
    model = Stacked(answer)
    with (
        torch.no_grad(),
        dicache.enable(model, error_budget=0.1),
        pytest.raises(UnsupportedModelError, match="Expected one"),
    ):
        model(torch.ones(2, 3, 4), timestep=torch.ones(2))
    model(torch.ones(2, 3, 4), timestep=torch.ones(2))


def test_a_bare_loop_without_a_timestep_is_computed_and_told():
    model = Stacked(lambda h: h)
    latent = torch.ones(2, 3, 4)
    with torch.no_grad(), dicache.enable(model, error_budget=10.0) as cache:
        plain = [model(latent * k) for k in range(5)]
    with torch.no_grad():
        assert all(torch.equal(model(latent * k), out) for k, out in enumerate(plain))
    assert any("no timestep" in warning for warning in cache.report().warnings)


def test_a_bare_module_with_a_loop_of_ones_own_is_cached():
    model = Stacked(lambda h: h)
    latent = torch.randn(2, 3, 4)
    with torch.no_grad(), dicache.enable(model, error_budget=1.0) as cache:
        for t in torch.linspace(1.0, 0.1, 10):
            latent = latent - 0.02 * model(latent, timestep=t.expand(2))
    assert cache.report().compute_speedup > 1.2
