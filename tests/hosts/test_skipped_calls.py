"""A call in which no row computes does not enter the denoiser's forward, and gives what it would have given."""

from collections import Counter
from typing import Any

import pytest
import torch

import dicache
from dicache.hosts.attachment import attached_to
from helpers.fuzzing import spread
from helpers.watching import strips
from pipelines.neighbours import quiet
from pipelines.table import CACHED, PIPELINES

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi's
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning"),  # Stable Audio's
]
STEPS, BUDGET = 14, 0.3
SEVERAL_PARTS = ("Wan 2.2, two experts", "SD3 skip-layer guidance")
"""Whose steps are not alike, or whose denoisers are two."""
NAMES = spread([name for name in PIPELINES if name not in (*CACHED, *SEVERAL_PARTS)], 6)


def nothing() -> None:
    """Instead of a call: it must be entered."""


def counting(pipe: Any) -> tuple[Any, Counter[str]]:
    """The pipeline's denoiser, whose calls and entries into its forward are counted."""
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    counts, forward = Counter[str](), denoiser.forward

    def entered(*args: Any, **kwargs: Any) -> Any:
        counts["entered"] += 1
        return forward(*args, **kwargs)

    def called(*_: Any) -> None:
        counts["called"] += 1

    denoiser.forward = entered
    denoiser.register_forward_pre_hook(called)
    return denoiser, counts


@pytest.mark.parametrize("name", NAMES)
def test_only_calls_with_rows_that_compute_enter_the_forward(name):
    tiny = PIPELINES[name]
    pipe = quiet(tiny.make())
    denoiser, counts = counting(pipe)
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        latents, (strip,) = tiny.draw(pipe, [1], STEPS).clone(), strips(cache)
        calls, entries, macs = counts["called"], counts["entered"], cache.report().to_dict()["uncached_macs"]
        attachment = attached_to(denoiser)
        assert attachment is not None and attachment.hooks.root is not None
        attachment.hooks.root.hook.instead = nothing
        inside, (skipped_inside,) = tiny.draw(pipe, [1], STEPS).clone(), strips(cache)
        assert skipped_inside == strip and torch.equal(latents, inside)
        assert counts["entered"] - entries == calls, "without the hook of the denoiser itself"
        report = cache.report().to_dict()
        assert report["uncached_macs"] == pytest.approx(macs, rel=1e-9) and report["executed_macs"] > 0
    assert 0 < strip.count("#") < STEPS and entries < calls and entries == calls * strip.count("#") / STEPS


def test_a_batch_in_which_one_sample_computes_enters_it():
    pipe = quiet(PIPELINES["FLUX.1 guided"].make())
    _, counts = counting(pipe)
    with dicache.enable(pipe, error_budget=[0.0, BUDGET]):
        PIPELINES["FLUX.1 guided"].draw(pipe, [1, 2], STEPS)
    assert counts["entered"] == counts["called"] == 2 * STEPS


@pytest.mark.parametrize("return_dict", [True, False])
@torch.no_grad()
def test_what_comes_back_is_of_the_kind_that_was_asked_for(return_dict):
    tiny, kinds = PIPELINES["FLUX.1 guided"], []
    pipe = quiet(tiny.make())
    denoiser, counts = counting(pipe)
    with_these = denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "return_dict": return_dict}), with_kwargs=True, prepend=True
    )
    heard = denoiser.register_forward_hook(lambda _, args, output: kinds.append(type(output)))
    answers = denoiser.register_forward_hook(lambda _, args, output: (output[0],), prepend=False)
    with dicache.enable(pipe, error_budget=BUDGET):
        tiny.draw(pipe, [1], STEPS)
    for handle in (with_these, heard, answers):
        handle.remove()
    assert counts["entered"] < counts["called"] == len(kinds) and len(set(kinds)) == 1


def test_its_own_forward_is_back_after_disable():
    pipe = quiet(PIPELINES["FLUX.1 guided"].make())
    before = dict(vars(pipe.transformer))
    dicache.enable(pipe, error_budget=BUDGET).disable()
    assert "forward" not in vars(pipe.transformer) and vars(pipe.transformer).keys() == before.keys()
