"""A life beside offload, LoRA, compiled blocks, quantised weights, other pipelines and copies.

Every neighbour comes before dicache and after it, on pipelines of different shape, over three generations: at budget 0
each is bitwise what the neighbour gives without dicache, with a budget each is cached, and `disable` leaves the
neighbour alone as it was.
"""

import gc
import weakref
from itertools import product
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import dicache
from dicache import presets
from dicache.errors import ModeError
from dicache.sites import Spans
from helpers.fuzzing import spread
from helpers.watching import strips
from pipelines.neighbours import (
    BUDGET,
    EAGER,
    FLUX,
    GENERATIONS,
    NEIGHBOURS,
    ORDERS,
    PIXART,
    SD3,
    SHAPES,
    STEPS,
    WAN,
    draw,
    enabled,
    fused_lora,
    group_offload,
    group_offload_that_learns,
    int8_weights,
    lora,
    model_offload,
    plainly,
    quiet,
    sequential_offload,
    traces,
)
from pipelines.tiny import PIPELINES, Tiny, draw_flux, draw_wan, embeds, make_flux, make_wan

COMPILED_BESIDE = (model_offload, group_offload, group_offload_that_learns, lora, fused_lora, int8_weights)
beside = pytest.mark.parametrize(
    ("neighbour", "order", "name"),
    spread(product(NEIGHBOURS, ORDERS, SHAPES), len(SHAPES)),
    ids=lambda f: getattr(f, "__name__", f),
)


def generations(tiny: Tiny, pipe: Any, cache: dicache.Cache) -> tuple[list[torch.Tensor], list[float]]:
    """What is drawn, and uncached over executed MACs of each."""
    found = [(draw(tiny, pipe, sample), cache.report().compute_speedup) for sample in GENERATIONS]
    return [drawn for drawn, _ in found], [speedup for _, speedup in found]


@pytest.mark.long
@beside
def test_budget_zero_is_bitwise_what_the_neighbour_gives_and_disable_leaves_it_as_it_was(name, neighbour, order):
    tiny, (plain, untouched) = PIPELINES[name], plainly(name, neighbour)
    pipe, cache = enabled(tiny, neighbour, order, error_budget=0.0)
    drawn, _ = generations(tiny, pipe, cache)
    assert all(map(torch.equal, drawn, plain)) and traces(pipe.transformer)["ours"]
    cache.disable()
    assert traces(pipe.transformer) == untouched
    assert torch.equal(draw(tiny, pipe, 1), plain[0])


@pytest.mark.long
@beside
def test_beside_a_neighbour_every_generation_is_cached_within_its_budget(name, neighbour, order):
    tiny, (plain, untouched) = PIPELINES[name], plainly(name, neighbour)
    pipe, cache = enabled(tiny, neighbour, order, error_budget=BUDGET)
    drawn, speedups = generations(tiny, pipe, cache)
    assert min(speedups) > 1.2
    assert max((x - exact).norm() / exact.norm() for x, exact in zip(drawn, plain, strict=True)) < BUDGET
    cache.disable()
    assert traces(pipe.transformer) == untouched
    assert torch.equal(draw(tiny, pipe, 1), plain[0])


# Compiled blocks.


def compiled_from_outside(pipe: Any) -> None:
    for stack in pipe.transformer.children():
        for block in stack if isinstance(stack, torch.nn.ModuleList) else ():
            block.compile(fullgraph=True, **EAGER)


def left_alone(pipe: Any) -> None:
    """dicache compiles the blocks itself."""


def given_back(model: torch.nn.Module) -> int:
    """How many modules are compiled from outside."""
    return sum(module._compiled_call_impl is not None for module in model.modules())


COMPILED = {
    "by dicache": (left_alone, "before dicache"),
    "before dicache": (compiled_from_outside, "before dicache"),
    "after dicache": (compiled_from_outside, "after dicache"),
}


@pytest.mark.parametrize(
    ("name", "who"), [(FLUX, "by dicache"), (SD3, "by dicache"), *[(WAN, who) for who in COMPILED]]
)
def test_compiled_blocks_have_no_breaks_no_recompiles_after_warm_up_and_are_given_back(name, who):
    tiny, (neighbour, order) = PIPELINES[name], COMPILED[who]
    batch, budgets = [1, 2, 3], [0.5, 0.2, 0.05]
    plain = tiny.draw(quiet(tiny.make()), batch, STEPS)
    torch._dynamo.reset()
    counters.clear()
    pipe, cache = enabled(tiny, neighbour, order, error_budget=[0.0] * 3, compile_blocks=EAGER)
    assert torch.equal(tiny.draw(quiet(pipe), batch, STEPS), plain)
    cache.disable()
    neighbour(other := tiny.make())
    assert given_back(pipe.transformer) == given_back(other.transformer)
    assert not traces(pipe.transformer)["ours"]
    pipe, cache = enabled(tiny, neighbour, order, error_budget=budgets, compile_blocks=EAGER)
    graphs = []
    for _ in range(4):
        drawn = tiny.draw(quiet(pipe), batch, STEPS)
        graphs.append(counters["stats"]["unique_graphs"])
        assert cache.report().compute_speedup > 1.2
    cache.disable()
    assert (drawn - plain).norm() / plain.norm() < 0.5
    assert graphs[0] > 0 and graphs[1] == graphs[-1]
    assert not counters["graph_break"]


def test_blocks_really_run_as_graphs_and_skipped_ones_do_not():
    ran = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        def run(*args: Any) -> Any:
            ran.append(1)
            return graph(*args)

        return run

    pipe = quiet(make_wan())
    blocks = len(pipe.transformer.blocks)
    torch._dynamo.reset()
    with dicache.enable(pipe, error_budget=BUDGET, compile_blocks={"backend": backend}) as cache:
        draw_wan(pipe, [1], STEPS, guided=False)
        ran.clear()
        draw_wan(pipe, [1], STEPS, guided=False)
        assert len(ran) == blocks * strips(cache)[0].count("#")
    ran.clear()
    draw_wan(pipe, [1], STEPS)
    assert not ran


def test_the_first_call_gives_what_the_graphs_give_and_runs_them_once():
    ran = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        def run(*args: Any) -> Any:
            ran.append(1)
            return tuple(t * 1.001 for t in graph(*args))

        return run

    drawn, times = [], []
    for ours in (False, True):
        torch._dynamo.reset()
        counters.clear()
        pipe = quiet(make_wan())
        if ours:
            dicache.enable(pipe, error_budget=0.0, compile_blocks={"backend": backend})
        else:
            for block in pipe.transformer.blocks:
                block.compile(fullgraph=True, backend=backend)
        ran.clear()
        drawn.append(draw_wan(pipe, [1], 2))
        times.append((len(ran), counters["stats"]["unique_graphs"]))
    assert torch.equal(*drawn) and times[0] == times[1]
    assert not torch.equal(drawn[0], draw_wan(quiet(make_wan()), [1], 2)), "the graphs give other numbers"


@pytest.mark.long
@pytest.mark.parametrize(
    ("neighbour", "order"), spread(product(COMPILED_BESIDE, ORDERS), 2), ids=lambda f: getattr(f, "__name__", f)
)
def test_compiled_blocks_go_with_their_neighbours(neighbour, order):
    tiny, (plain, untouched) = PIPELINES[WAN], plainly(WAN, neighbour)
    torch._dynamo.reset()
    counters.clear()
    for budget in (0.0, BUDGET):
        pipe, cache = enabled(tiny, neighbour, order, error_budget=budget, compile_blocks=EAGER)
        drawn, speedups = generations(tiny, pipe, cache)
        cache.disable()
        errors = [float((x - exact).norm() / exact.norm()) for x, exact in zip(drawn, plain, strict=True)]
        assert max(errors) <= budget and (budget == 0.0) == (max(speedups) == 1.0)
        assert traces(pipe.transformer) == untouched
    assert counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"]


@pytest.mark.parametrize("order", ORDERS)
def test_compiled_blocks_without_the_keyword_are_refused_with_the_way_out(order):
    if order == "before dicache":
        pipe = quiet(make_flux())
        compiled_from_outside(pipe)
        with pytest.raises(ModeError, match="compile_blocks=True"):
            dicache.enable(pipe, error_budget=BUDGET)
        return
    pipe, cache = enabled(PIPELINES[FLUX], compiled_from_outside, order, error_budget=BUDGET)
    with pytest.raises(ModeError, match="compile_blocks=True"):
        draw(PIPELINES[FLUX], pipe, 1)
    cache.disable()


@pytest.mark.parametrize("compiled", [False, EAGER])
def test_blocks_that_torch_compile_has_wrapped_are_refused_with_the_way_out(compiled):
    pipe = make_flux()
    blocks = pipe.transformer.transformer_blocks
    blocks[1] = torch.compile(blocks[1], **EAGER)
    with pytest.raises(ModeError, match=r"transformer_blocks\.1 is what torch\.compile made"):
        dicache.enable(pipe, error_budget=BUDGET, compile_blocks=compiled)
    assert not traces(pipe.transformer)["ours"]


def test_a_denoiser_compiled_as_a_whole_is_refused():
    pipe = quiet(make_flux())
    pipe.transformer.compile(**EAGER)
    with pytest.raises(ModeError, match="compiled as a whole"):
        dicache.enable(pipe, error_budget=BUDGET, compile_blocks=True)
    pipe = quiet(make_flux())
    pipe.transformer = torch.compile(pipe.transformer, **EAGER)
    with pytest.raises(ModeError, match="compiled as a whole"):
        dicache.enable(pipe, error_budget=BUDGET)


def test_a_denoiser_compiled_as_a_whole_later_runs_dicache_outside_of_its_graphs():
    pipe, other = quiet(make_wan()), quiet(make_wan())
    plain = draw_wan(other, [1], STEPS)
    cache = dicache.enable(pipe, error_budget=0.0)
    model = pipe.transformer
    pipe.transformer = torch.compile(model, **EAGER)
    assert torch.equal(draw_wan(pipe, [1], STEPS), plain)
    cache.disable()


def test_compile_blocks_with_sequential_offload_or_nonsense_is_refused():
    pipe = make_flux()
    for nonsense in ("yes", 1, ["backend"]):
        with pytest.raises(ModeError, match="compile_blocks"):
            dicache.enable(pipe, error_budget=BUDGET, compile_blocks=nonsense)
    with pytest.raises(TypeError):
        dicache.enable(pipe, error_budget=BUDGET, compile_blocks={"bakend": "eager"})
    sequential_offload(pipe)
    with pytest.raises(ModeError, match="sequential offload"):
        dicache.enable(pipe, error_budget=BUDGET, compile_blocks=True)
    later, _ = enabled(PIPELINES[WAN], sequential_offload, "after dicache", error_budget=BUDGET, compile_blocks=EAGER)
    with pytest.raises(ModeError, match="sequential offload"):
        draw(PIPELINES[WAN], later, 1)
    assert not traces(pipe.transformer)["hooks"]


# Callbacks, dtypes, copies, files.


def test_a_callback_that_edits_latents_is_followed():
    def edit(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] * 0.97 + 0.01} if index % 2 else {}

    plain = draw_flux(quiet(make_flux()), [1, 2], 2 * STEPS, callback_on_step_end=edit)
    unedited = draw_flux(quiet(make_flux()), [1, 2], 2 * STEPS)
    pipe = quiet(make_flux())
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        drawn = draw_flux(pipe, [1, 2], 2 * STEPS, callback_on_step_end=edit)
    assert cache.report().compute_speedup > 1.2
    assert (drawn - plain).norm() / plain.norm() < BUDGET
    assert (unedited - plain).norm() > (drawn - plain).norm(), "the edit is larger than the error"


def test_after_a_callback_replaced_the_latents_a_reset_begins_anew():
    caches: list[dicache.Cache] = []

    def replace(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        for cache in caches if index == STEPS else ():
            cache.reset()
        return {"latents": embeds([9], 256, 4)} if index == STEPS else {}

    plain = draw_flux(quiet(make_flux()), [1], 2 * STEPS, callback_on_step_end=replace)
    pipe = quiet(make_flux())
    with dicache.enable(pipe, error_budget=0.1) as cache:
        caches.append(cache)
        drawn = draw_flux(pipe, [1], 2 * STEPS, callback_on_step_end=replace)
    (strip,) = strips(cache)
    assert len(strip) == STEPS - 1 and strip.startswith("##") and set(strip) != {"#"}
    assert (drawn - plain).norm() / plain.norm() < 0.1


@pytest.mark.parametrize("name", [PIXART, WAN])
def test_another_dtype_between_generations(name):
    tiny = PIPELINES[name]
    dtypes = (torch.float32, torch.bfloat16, torch.float32)
    pipe = tiny.make()
    plain = [draw(tiny, pipe.to(dtype), 1).float() for dtype in dtypes]
    for budget in (0.0, BUDGET):
        pipe = tiny.make()
        with dicache.enable(pipe, error_budget=budget) as cache:
            for dtype, exact in zip(dtypes, plain, strict=True):
                drawn = draw(tiny, pipe.to(dtype), 1)
                assert (drawn - exact).norm() / exact.norm() <= budget
                assert (cache.report().compute_speedup > 1.2) == (budget > 0)


def test_group_offload_that_a_skipped_block_would_upset_is_refused_with_the_way_out():
    pipe = make_flux()
    group_offload(pipe, 2)
    with pytest.raises(ModeError, match="num_blocks_per_group=1"):
        dicache.enable(pipe, config=presets.fora(2, Spans(1)))
    assert not traces(pipe.transformer)["ours"]


@pytest.mark.parametrize("compiled", [False, EAGER])
def test_group_offload_learns_the_order_of_the_blocks_under_dicache(compiled):
    """And every block once: what is counted is not run for it."""
    orders = []
    for enabling in (False, True):
        pipe = make_wan()
        group_offload_that_learns(pipe)
        learning = pipe.transformer._diffusers_hook.get_hook("lazy_prefetch_group_offloading")
        cache = dicache.enable(pipe, error_budget=BUDGET, compile_blocks=compiled) if enabling else None
        draw(PIPELINES[WAN], pipe, 1)
        orders.append([name for name, _ in learning.execution_order])
        assert enabling is False or cache.report().compute_speedup > 1.2
    assert orders[0] == orders[1] == [f"blocks.{i}" for i in range(len(pipe.transformer.blocks))]


def test_disabled_after_one_call_group_offload_has_learned_and_learns_no_more():
    pipe = quiet(make_wan())
    group_offload_that_learns(pipe)
    learning = pipe.transformer._diffusers_hook.get_hook("lazy_prefetch_group_offloading")
    with dicache.enable(pipe, error_budget=BUDGET):
        draw_wan(pipe, [1], 1, guided=False)
    learned = len(learning.execution_order)
    draw_wan(pipe, [1], 1, guided=False)
    assert len(learning.execution_order) == learned == len(pipe.transformer.blocks)


def test_sites_inside_the_denoiser_live_beside_group_offload_and_lora():
    for neighbour in (group_offload, group_offload_that_learns, lora):
        for order in ORDERS:
            plain, _ = plainly(WAN, neighbour)
            pipe, cache = enabled(PIPELINES[WAN], neighbour, order, config=presets.fora(2, Spans(1)))
            drawn, speedups = generations(PIPELINES[WAN], pipe, cache)
            cache.disable()
            assert min(speedups) > 1.2 and torch.equal(draw(PIPELINES[WAN], pipe, 1), plain[0])
            assert max((x - exact).norm() / exact.norm() for x, exact in zip(drawn, plain, strict=True)) < BUDGET


def test_offload_that_is_turned_off_under_dicache_is_told_and_the_run_is_exact():
    pipe = quiet(make_wan())
    plain = draw_wan(make_wan(), [1], STEPS)
    sequential_offload(pipe)
    cache = dicache.enable(pipe, error_budget=BUDGET)
    draw_wan(pipe, [1], STEPS)
    pipe.remove_all_hooks()
    assert torch.equal(draw_wan(pipe, [1], STEPS), plain)
    assert any("hooks are gone" in warning for warning in cache.report().warnings)
    cache.disable()
    assert torch.equal(draw_wan(pipe, [1], STEPS), plain)
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        draw_wan(pipe, [1], STEPS)
    assert cache.report().compute_speedup > 1.2


# What is left behind.


@pytest.mark.parametrize("how", [{}, {"audit": 1.0}, {"compile_blocks": EAGER}], ids=str)
def test_a_disabled_cache_reports_and_keeps_neither_model_nor_pipeline(how):
    pipe = quiet(make_wan())
    with dicache.enable(pipe, error_budget=BUDGET, **how) as cache:
        draw_wan(pipe, [1], STEPS)
    reported, left = str(cache.report()), (weakref.ref(pipe), weakref.ref(pipe.transformer))
    del pipe
    gc.collect()
    assert [one() for one in left] == [None, None]
    assert str(cache.report()) == reported and cache.report().compute_speedup > 1.2


@pytest.mark.parametrize("call", [1, 7, STEPS])
def test_a_run_that_broke_off_is_not_over_after_disable_and_nothing_of_it_is_kept(call):
    pipe, calls = quiet(make_wan()), []

    def stop(*_: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt

    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        handle = pipe.transformer.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            draw_wan(pipe, [1], STEPS, guided=False)
        handle.remove()
    for _ in range(2):
        facts = cache.report().to_dict()
        assert not facts["complete"] and len(facts["steps"]) == call - 1
    assert all(state.judgement is None and not state.histories for state in cache.session.run.states)
