"""What surrounds a run: inference mode, autocast, lower precision. Decisions and counts do not depend on it."""

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import pytest
import torch

import dicache
from dicache import presets
from dicache.config import Config
from dicache.controllers import Interval
from dicache.errors import UnsupportedModelError
from dicache.sites import Spans
from helpers.stepping import LINE
from helpers.watching import strips
from pipelines.tiny import PIPELINES, Tiny

STEPS = 8
NEEDING_NOTHING = [
    method.preset
    for method in presets.methods()
    if all(
        argument.default is not argument.empty
        for argument in signature(vars(presets)[method.preset]).parameters.values()
    )
]
GUIDED, BATCHED = "sequential guidance with named branches (flux)", "two streams, batched guidance (sd3)"
CONFIGS: dict[str, Any] = {
    **{preset: {"config": vars(presets)[preset]} for preset in NEEDING_NOTHING},
    "budget": {"error_budget": 0.5},
    "budget 0": {"error_budget": 0.0},
    "speed-up": {"speedup": 2.0},
}


@pytest.fixture(scope="module", params=[GUIDED])
def tiny(request) -> tuple[Tiny, Any]:
    kind = PIPELINES[request.param]
    pipe = kind.make()
    pipe.set_progress_bar_config(disable=True)
    return kind, pipe


TOKENS = {"toca", "clusca", "fastcache_tokens"}


def enabled(pipe: Any, name: str) -> dicache.Cache:
    options = CONFIGS[name]
    return dicache.enable(pipe, **({"config": options["config"]()} if "config" in options else options))


def drawn(tiny: tuple[Tiny, Any], cache: dicache.Cache, mode: AbstractContextManager[Any]) -> list[Any]:
    kind, pipe = tiny
    with mode:
        latents = kind.draw(pipe, [1, 2], STEPS).clone()
    report = cache.report().to_dict()  # outside of the mode
    return [latents.tolist(), strips(cache), report["executed_macs"], report["uncached_macs"], report["samples"]]


@pytest.mark.parametrize(
    ("tiny", "name"),
    [*((GUIDED, name) for name in CONFIGS), (BATCHED, "budget"), (BATCHED, "bwcache")],
    indirect=["tiny"],
)
def test_under_inference_mode_all_is_as_without_and_counted_as_without(tiny, name):
    """Also one after the other on one cache, in any order."""
    runs = []
    for modes in ([torch.no_grad, torch.no_grad], [torch.inference_mode, torch.no_grad]):
        try:
            with enabled(tiny[1], name) as cache:
                runs.append([drawn(tiny, cache, mode()) for mode in modes])
        except UnsupportedModelError as refused:  # the model has no such parts
            runs.append([str(refused)] * 2)
    assert runs[0] == runs[1]
    first, second = runs[0]
    same = slice(2) if name in TOKENS else slice(None)  # each block tries some tokens at its first call, which is work
    assert first[same] == second[same]


def test_a_run_may_go_in_and_out_of_inference_mode():
    """As loops do that wrap each call by itself."""
    kind = PIPELINES[BATCHED]

    def drawn(*modes: Any, **options: Any) -> list[Any]:
        pipe, calls = kind.make(), []
        pipe.set_progress_bar_config(disable=True)
        forward = pipe.transformer.forward

        def in_turns(*args: Any, **kwargs: Any) -> Any:
            calls.append(len(calls))
            with modes[len(calls) % len(modes)]():
                return forward(*args, **kwargs)

        with dicache.enable(pipe, **options) as cache:
            pipe.transformer.forward = in_turns
            latents = kind.draw(pipe, [1, 2], STEPS).clone()
        report = cache.report().to_dict()
        return [latents.tolist(), strips(cache), report["executed_macs"], report["uncached_macs"]]

    spans = Config(Interval(2), approximators=LINE, sites=Spans(1))
    for options in ({"error_budget": 0.5}, {"config": presets.dicache()}, {"config": spans}):
        assert drawn(torch.no_grad, torch.inference_mode, **options) == drawn(nullcontext, **options)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # of torch's, as without dicache
@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["budget 0", "gradient_optimized_cache", "fastercache_attention"])
def test_autocast_changes_no_count_no_decision_of_a_fixed_rule_and_no_bit_at_budget_0(tiny, name, outer):
    with enabled(tiny[1], name) as cache:
        usual = drawn(tiny, cache, torch.no_grad())
        with torch.autocast("cpu", torch.bfloat16):
            lower = drawn(tiny, cache, outer())
    with torch.autocast("cpu", torch.bfloat16), outer():
        plain = tiny[0].draw(tiny[1], [1, 2], STEPS).clone()
    assert lower[1:4] == usual[1:4]
    assert name != "budget 0" or lower[0] == plain.tolist()
