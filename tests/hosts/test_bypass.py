"""A call of which no row computes does not enter the denoiser: nothing but the time it takes is another for it."""

import pytest
import torch

import dicache
from dicache import presets
from dicache.hosts.bypass import Bypass
from helpers.watching import count_macs
from pipelines.neighbours import PIPELINES, STEPS, draw, model_offload, quiet, sequential_offload, traces
from pipelines.tiny import draw_flux, draw_wan, make_flux, make_wan

BUDGET = 0.5
OFFLOADS = [model_offload, sequential_offload]


def skipped_calls(cache: dicache.Cache) -> int:
    """Steps at which no sample computed."""
    assert cache.trace is not None
    return sum(not bool((record.action == 0).any()) for record in cache.trace.records)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_picture_is_the_same_and_what_is_told_as_well(name, monkeypatch):
    tiny, drawn, told = PIPELINES[name], [], []
    for bypassed in (True, False):
        if not bypassed:
            monkeypatch.setattr(Bypass, "prepare", lambda self, key: None)
        pipe = quiet(tiny.make())
        with dicache.enable(pipe, error_budget=BUDGET) as cache:
            drawn.append(tiny.draw(pipe, [1, 2], STEPS))
        told.append(cache.trace)
    assert torch.equal(*drawn)
    assert [r.action.tolist() for r in told[0].records] == [r.action.tolist() for r in told[1].records]
    torch.testing.assert_close(told[0].uncached, told[1].uncached, rtol=1e-9, atol=0)
    assert (told[0].executed <= told[1].executed).all(), "what is around the blocks is left out too"


@pytest.mark.parametrize("guided", [False, True])
def test_what_lies_inside_is_not_called_and_what_ran_is_what_is_reported(guided):
    pipe, entered = quiet(make_wan()), []
    pipe.transformer.proj_out.register_forward_pre_hook(lambda *_: entered.append(1))
    macs = count_macs(pipe.transformer)
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        draw_wan(pipe, [1], STEPS, guided=guided)
    calls = 1 + guided
    skipped = skipped_calls(cache)
    assert 0 < skipped and len(entered) == calls * (STEPS - skipped)
    assert float(cache.trace.executed.sum()) == pytest.approx(sum(macs), rel=0.005)
    del pipe.transformer.forward


def test_rows_that_differ_enter_it_together():
    pipe, entered = quiet(make_flux()), []
    pipe.transformer.proj_out.register_forward_pre_hook(lambda *_: entered.append(1))
    with dicache.enable(pipe, error_budget=[BUDGET, 0.0]):
        draw_flux(pipe, [1, 2], STEPS)
    assert len(entered) == STEPS, "the second sample computes every step"


def test_whoever_wraps_the_forward_later_is_called_and_loses_nothing():
    pipe, called = quiet(make_wan()), []
    cache = dicache.enable(pipe, error_budget=BUDGET)
    inner = pipe.transformer.forward

    def wrapped(*args, **kwargs):
        called.append(1)
        return inner(*args, **kwargs)

    pipe.transformer.forward = wrapped
    drawn = [draw_wan(pipe, [1], STEPS, guided=False) for _ in range(2)]
    assert torch.equal(*drawn) and len(called) == 2 * STEPS and skipped_calls(cache) > 0
    cache.disable()
    assert pipe.transformer.forward is wrapped
    draw_wan(pipe, [1], STEPS, guided=False)
    assert len(called) == 3 * STEPS


@pytest.mark.parametrize("offload", OFFLOADS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("first", [True, False], ids=["offload first", "dicache first"])
def test_beside_offload_it_is_found_again_in_every_run(offload, first):
    pipe, plain, entered = quiet(make_wan()), quiet(make_wan()), []
    with dicache.enable(plain, error_budget=BUDGET):
        expected = draw_wan(plain, [1], STEPS)
    if first:
        offload(pipe)
    cache = dicache.enable(pipe, error_budget=BUDGET)
    if not first:
        offload(pipe)
    pipe.transformer.condition_embedder.register_forward_pre_hook(lambda *_: entered.append(1))
    for _ in range(3):
        entered.clear()
        assert torch.equal(draw_wan(pipe, [1], STEPS), expected)
        assert 0 < skipped_calls(cache) and len(entered) == 2 * (STEPS - skipped_calls(cache))
    cache.disable()
    assert not traces(pipe.transformer)["ours"]


@pytest.mark.parametrize("made", [presets.first_block_cache, presets.dicache], ids=["first_block_cache", "dicache"])
def test_rules_that_look_inside_first_enter_it(made):
    pipe, entered = quiet(make_flux()), []
    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: entered.append(1))
    with dicache.enable(pipe, config=made()):
        draw_flux(pipe, [1], STEPS)
    assert len(entered) == STEPS


def test_after_disable_nothing_of_it_is_there():
    pipe = quiet(make_flux())
    before = dict(vars(pipe.transformer))
    with dicache.enable(pipe, error_budget=BUDGET):
        draw(PIPELINES["two streams and one (flux)"], pipe, 1)
    assert vars(pipe.transformer).keys() == before.keys()
