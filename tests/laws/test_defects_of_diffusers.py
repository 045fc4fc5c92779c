"""Defects that the caches of diffusers have (0.42.1), each a test that dicache has it not. After the dash is whose it
is; the behaviour was reproduced there, or is what an issue there reports.

Hooks that vanish under offload, copies that run the original's weights, graph breaks and a shared transformer are in
hosts/test_ecosystem, test_copies and test_shared; runs that break off, caches that never engage and half-attached hooks
in test_laws and test_errors.
"""

import contextlib
import pickle
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchHeunDiscreteScheduler,
    UNet2DConditionModel,
    WanPipeline,
)

import dicache
from dicache import presets
from dicache.config import Config
from dicache.controllers.interval import Interval
from dicache.controllers.planned import Planned
from dicache.errors import UnsupportedModelError
from dicache.estimators.closed_loop import ClosedLoop
from dicache.sites import Spans, Sublayers
from helpers.watching import strips
from pipelines.bare import (
    UNREGISTERED,
    bare_loop,
    controlled_flux,
    draw_controlled,
    error,
    flux_like,
    make_flux2,
)
from pipelines.neighbours import BUDGET, FLUX, SD3, STEPS, draw, quiet
from pipelines.tiny import (
    PIPELINES,
    draw_flux,
    draw_sd3,
    draw_wan,
    embeds,
    guided_flux,
    lively,
    make_flux,
    make_sd3,
    make_wan,
)


@pytest.mark.parametrize("sites", ["evaluation", "spans", "sublayers"])
def test_a_pipeline_that_names_no_branches_is_cached_and_control_is_not_counted_twice(sites):
    """No cache_context: ValueError at the first step, as in 219 pipeline files; and residuals over a whole stack hold
    the control signal that the loop then adds again. - diffusers FirstBlockCache, MagCache
    """
    pipe = controlled_flux()
    plain = draw_controlled(pipe)
    assert error(draw_controlled(pipe, 0.0), plain) > 0.3, "control does something"
    how: dict[str, Any] = {"error_budget": BUDGET / 4}
    if sites != "evaluation":
        how = {"config": presets.fora(2, Spans(1) if sites == "spans" else Sublayers())}
    with dicache.enable(pipe, **how) as cache:
        assert error(draw_controlled(pipe), plain) < 0.05
    assert cache.report().compute_speedup > 1.1


@pytest.mark.parametrize("make", [make_flux2, *UNREGISTERED.values()], ids=["flux2", *UNREGISTERED])
@pytest.mark.parametrize("sites", [None, Spans(1)], ids=["evaluation", "spans"])
def test_models_that_a_registry_of_blocks_lacks_or_has_wrong_are_cached(make, sites):
    """Not registered, or registered under other outputs: refused when enabled, left half-hooked, or TypeError at the
    first step. - diffusers (Bria, Chroma, LongCat, Ovis; FLUX.2, whose text joins the picture between stacks)
    """
    model = lively(make())
    call = flux_like(model, axes=4 if make is make_flux2 else 3)
    plain = bare_loop(model, call, 12)
    how: dict[str, Any] = {"error_budget": BUDGET}
    if sites is not None:
        how = {"config": presets.fora(2, sites)}
    with dicache.enable(model, **how) as cache:
        assert error(bare_loop(model, call, 12), plain) < BUDGET
        assert cache.report().compute_speedup > 1.1
    assert torch.equal(bare_loop(model, call, 12), plain)


@pytest.mark.parametrize("name", PIPELINES)
def test_blocks_are_found_on_every_pipeline(name):
    """The default patterns match no module, and nothing is said. - diffusers TaylorSeer on seven families"""
    pipe = PIPELINES[name].make()
    stacks = [m for m in pipe.transformer.children() if isinstance(m, torch.nn.ModuleList)]
    with dicache.enable(pipe, error_budget=0.0):
        hooked = {id(m) for m in pipe.transformer.modules() if "dicache" in getattr(m, "_diffusers_hook", _NONE).hooks}
        assert {id(block) for stack in stacks for block in stack} <= hooked


class _NONE:
    hooks = ()


@pytest.mark.parametrize("preset", [presets.pab, presets.fora, presets.fastercache_attention])
def test_each_guidance_branch_gets_its_own_attention(preset):
    """The branch that runs second gets the first one's cached attention, and is never computed. - diffusers
    PyramidAttentionBroadcast, FasterCache
    """
    pipe, ran = quiet(make_wan()), {}

    def note(module: Any, args: Any, output: Any) -> None:
        name = pipe.transformer.blocks[0]._diffusers_hook.hooks["dicache"].branch.name
        ran[name] = ran.get(name, 0) + 1

    with dicache.enable(pipe, config=preset()) as cache:
        draw_wan(pipe, [1], 12)
        handle = pipe.transformer.blocks[1].attn1.to_q.register_forward_hook(note)
        draw_wan(pipe, [1], 12)
        handle.remove()
    assert ran["cond"] == ran["uncond"] < 12 and cache.report().compute_speedup > 1


def test_branches_without_names_are_kept_apart(monkeypatch):
    """Where a pipeline names no branches, they are mixed. - diffusers MagCache, PyramidAttentionBroadcast"""
    drawn = []
    for named in (True, False):
        pipe = quiet(make_wan())
        if not named:
            monkeypatch.setattr(type(pipe.transformer), "cache_context", lambda *_, **__: contextlib.nullcontext())
        with dicache.enable(pipe, error_budget=BUDGET) as cache:
            drawn += [draw_wan(pipe, [1], STEPS), draw_wan(pipe, [2], STEPS)]
        assert len(cache.trace.records[-1].branches) == 2
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])


@pytest.mark.parametrize("sites", [Spans(1), Sublayers()], ids=["spans", "sublayers"])
def test_a_last_block_that_returns_no_text_is_skipped_like_others(sites):
    """None - Tensor: TypeError. - diffusers FirstBlockCache on Stable Diffusion 3"""
    pipe = quiet(make_sd3())
    plain = draw_sd3(pipe, [1], STEPS)
    with dicache.enable(pipe, config=presets.fora(2, sites)) as cache:
        assert error(draw_sd3(pipe, [1], STEPS), plain) < BUDGET
    assert cache.report().compute_speedup > 1.1


@pytest.mark.parametrize("preset", [presets.fastercache, presets.fastercache_attention, presets.pab])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_without_guidance_and_from_the_first_step_on_nothing_fails(preset, steps):
    """IndexError where there is no branch to split off, TypeError where the range holds the first step. - diffusers
    FasterCache
    """
    pipe = quiet(make_flux())
    plain = draw_flux(pipe, [1], steps)
    with dicache.enable(pipe, config=preset()):
        drawn = draw_flux(pipe, [1], steps)
    assert torch.equal(drawn, plain) if steps < 3 else error(drawn, plain) < BUDGET


def test_a_run_that_the_user_stops_leaves_nothing_behind():
    """State of a run that ended early is found by the next one. - diffusers"""

    def stop(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index >= 3
        return {}

    pipe = quiet(make_flux())
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        fresh, expected = draw_flux(pipe, [1], STEPS), strips(cache)
        draw_flux(pipe, [2], STEPS, callback_on_step_end=stop)
        assert torch.equal(draw_flux(pipe, [1], STEPS), fresh) and strips(cache) == expected


def test_a_unet_is_refused_by_name_or_really_cached():
    """IndexError from an empty list, or enabled with no effect. - diffusers FirstBlockCache, MagCache, TaylorSeer"""
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": 8, "norm_num_groups": 2}
    kinds = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    model = UNet2DConditionModel(cross_attention_dim=8, attention_head_dim=4, **sizes, **kinds)
    try:
        cache = dicache.enable(model, error_budget=10.0)
    except UnsupportedModelError as refused:
        assert "UNet2DConditionModel" in str(refused)
        return
    with torch.no_grad(), cache:
        latent = torch.randn(1, 4, 8, 8)
        for i in range(12):
            latent = latent - 0.08 * model(latent, 1000 - 80 * i, torch.ones(1, 4, 8)).sample
    assert cache.report().compute_speedup > 1


def test_inputs_by_position_and_by_name_are_the_same_inputs():
    """An index cache of argument names: KeyError, or the wrong one, where a call passes them otherwise. - diffusers"""
    text, drawn = embeds([1], 8, 32, salt=1), []
    for by_name in (lambda i: True, lambda i: False, lambda i: i % 2 == 0):
        model, x = make_wan().transformer, embeds([1], 16, 2, 4, 4)
        with torch.no_grad(), dicache.enable(model, error_budget=BUDGET) as cache:
            for i in range(STEPS):
                given = {
                    "hidden_states": x,
                    "timestep": torch.tensor([1000 * (1 - i / STEPS)]),
                    "encoder_hidden_states": text,
                }
                called = model(**given, return_dict=False) if by_name(i) else model(*given.values(), return_dict=False)
                x = x - called[0] / STEPS
        assert cache.report().compute_speedup > 1.2
        drawn.append(x)
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_branches_are_named_on_a_pipeline_that_ran_before():
    """The list of hooked modules is cached by the first run: hooks that come later never hear of the branch. -
    diffusers, for hooks of third parties
    """
    pipe = quiet(make_flux())
    guided_flux(pipe, [1], 4)
    with dicache.enable(pipe, error_budget=0.0) as cache:
        guided_flux(pipe, [1], 4)
    assert cache.trace.records[0].branches == ("cond", "uncond")
    with dicache.enable(pipe, error_budget=0.0) as cache:
        guided_flux(pipe, [1], 4)
    assert cache.trace.records[0].branches == ("cond", "uncond")


def test_a_configuration_is_not_changed_by_using_it():
    """The user's own configuration is written to. - diffusers FasterCache"""
    config = presets.teacache(threshold=0.2)
    before, drawn = pickle.dumps(config), []
    for _ in range(2):
        with dicache.enable(pipe := quiet(make_flux()), config=config):
            drawn.append(draw_flux(pipe, [1], STEPS))
    assert pickle.dumps(config) == before and torch.equal(*drawn)


def test_what_needs_a_step_and_a_sigma_has_them_on_every_pipeline():
    """Without step and sigma in the pipeline's context it is enabled and never skips. - diffusers SeaCache on FLUX"""
    for name in (FLUX, SD3):
        tiny = PIPELINES[name]
        with dicache.enable(pipe := tiny.make(), config=presets.seacache(threshold=2.0)) as cache:
            draw(tiny, pipe, 1)
        assert cache.report().compute_speedup > 1


def test_an_output_that_is_changed_in_place_is_not_the_cached_one():
    """Models add to what a hook returned, and so to the cache. - diffusers (Chroma's control)"""
    model, text, drawn = make_wan().transformer, embeds([1], 8, 32, salt=1), []
    for in_place in (False, True):
        x = embeds([1], 16, 2, 4, 4)
        with torch.no_grad(), dicache.enable(model, error_budget=BUDGET) as cache:
            for i in range(STEPS):
                out = model(x, torch.tensor([1000 * (1 - i / STEPS)]), text, return_dict=False)[0]
                x = x - (out.div_(STEPS) if in_place else out / STEPS)
                if in_place:
                    out.fill_(1e3)
        assert cache.report().compute_speedup > 1.2
        drawn.append(x)
    assert torch.equal(*drawn)


def test_a_solver_that_calls_twice_a_step_stays_within_its_budget():
    """A call counter takes the second evaluation of a step for the next step, or for the other branch. - diffusers"""
    plain = []
    for budget in (None, 0.0, BUDGET):
        pipe = quiet(make_sd3())
        pipe.scheduler = FlowMatchHeunDiscreteScheduler()
        with contextlib.nullcontext() if budget is None else dicache.enable(pipe, error_budget=budget):
            plain.append(draw_sd3(pipe, [1], 12))
    assert torch.equal(plain[0], plain[1]) and error(plain[2], plain[0]) < BUDGET


@pytest.mark.parametrize("sites", [None, Spans(1)], ids=["evaluation", "spans"])
def test_a_third_branch_of_another_batch_that_leaves_out_blocks_is_never_mixed_in(sites):
    """Skip-layer guidance calls the denoiser once more, for half the rows and without some blocks: a branch of its own.
    - any cache keyed by cond and uncond
    """
    slg = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    pipe = quiet(make_sd3())
    plain = draw_sd3(pipe, [1], STEPS, **slg)
    assert error(draw_sd3(pipe, [1], STEPS), plain) > 0.01, "the third branch does something"
    config = Config(Planned(0.0)) if sites is None else Config(Interval(1), ClosedLoop(), sites=sites)
    with dicache.enable(pipe, config=config):
        assert torch.equal(draw_sd3(pipe, [1], STEPS, **slg), plain)
    how: dict[str, Any] = {"error_budget": BUDGET} if sites is None else {"config": presets.fora(2, sites)}
    with dicache.enable(pipe, **how) as cache:
        assert error(draw_sd3(pipe, [1], STEPS, **slg), plain) < BUDGET
    assert cache.report().compute_speedup > 1.1 and len(cache.report().to_dict()["branches"]) == 2


def test_two_experts_keep_their_caches_to_themselves():
    """Wan 2.2 hands over to a second transformer half-way: its first call is nobody's second. - cache-dit, diffusers"""

    def make() -> WanPipeline:
        wan, other = make_wan(), make_wan().transformer
        torch.nn.init.normal_(other.proj_out.weight, std=0.2)
        return quiet(WanPipeline(**{**wan.components, "transformer_2": other}, boundary_ratio=0.7))

    pipe = make()
    plain = draw_wan(pipe, [1], 14)
    with dicache.enable(pipe, error_budget=0.0):
        assert torch.equal(draw_wan(pipe, [1], 14), plain)
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        fresh = draw_wan(pipe, [1], 14)
        traces = [attachment.session.trace() for attachment in cache._attachments.values()]
        draw_wan(pipe, [2], 14)
        assert torch.equal(draw_wan(pipe, [1], 14), fresh)
    assert sum(len(trace.records) for trace in traces) == 14
    assert all(bool((trace.records[0].action == 0).all()) for trace in traces), "the first call of each computes"
    assert all(trace.executed.sum() < trace.uncached.sum() for trace in traces) and error(fresh, plain) < BUDGET
