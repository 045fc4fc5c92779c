"""The laws of design on tiny pipelines of every family that is wrapped, and a reason for every one that is not."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dicache
from dicache.approximators.hold import Reuse
from dicache.controllers.base import Controller
from dicache.errors import UnsupportedModelError
from dicache.models.families import FAMILIES
from dicache.models.family import Batch
from dicache.promise.metrics import relative_error
from dicache.sites import Branches, Evaluation, Skips, Spans, Tail
from dicache.types import Decision
from helpers.watching import count_macs
from pipelines.table import MIXTURES, PIPELINES, Made

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi, at every run
    pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),  # the autoencoder of Stable Audio
]
STEPS = 8
BUDGET = 2.0
MIXED = [BUDGET, 0.0, 0.3, BUDGET, 0.05]
"""A batch in which at most steps some samples compute and some do not."""


@pytest.fixture(scope="module", params=PIPELINES)
def made(request) -> Made:
    tiny = PIPELINES[request.param]
    return Made(request.param, tiny, tiny.make())


def draw(made: Made, samples: list[int], **kwargs: Any) -> Tensor:
    return made.tiny.draw(made.pipe, samples, STEPS, **kwargs)


def strips(cache: dicache.Cache) -> list[str]:
    report = cache.report()
    return [report.strip(i) for i in range(len(report.to_dict()["samples"]))]


def attributes(module: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        path: {name: dict(value) if isinstance(value, dict) else value for name, value in vars(part).items()}
        for path, part in module.named_modules()
    }


def assert_same_sample(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@dataclass(frozen=True)
class Scripted(Controller[None]):
    """Skips at the given steps after the first, where anything is known."""

    skips: frozenset[int] = frozenset({3, 4, 6})

    def init(self, samples):
        return None

    def decide(self, quote, step, state):
        wanted = step.index - step.timetable.begin in self.skips
        action = torch.where(quote.cost.isfinite() & wanted, quote.action, 0)
        return Decision(action[:, None], torch.zeros_like(action)[:, None], torch.zeros_like(quote.cost)), None

    def settle(self, ratio, computed, state):
        return None


# 1. Budget 0 computes everything, bitwise; disabling restores the model exactly.


def test_budget_zero_is_bitwise_the_pipeline_and_disabling_restores_it(made):
    plain = draw(made, [1, 2])
    before = [attributes(denoiser) for denoiser in made.denoisers]
    with dicache.enable(made.pipe, error_budget=0.0) as cache:
        assert torch.equal(draw(made, [1, 2]), plain)
    assert cache.report().compute_speedup == 1.0
    assert [attributes(denoiser) for denoiser in made.denoisers] == before
    assert torch.equal(draw(made, [1, 2]), plain)


# 2. A sample's decisions do not depend on its batch mates, its outputs only by floating-point tolerance.


def test_a_batch_of_many_budgets_decides_and_draws_as_each_sample_alone(made):
    samples = list(range(1, 1 + len(MIXED)))
    with dicache.enable(made.pipe, error_budget=MIXED) as cache:
        together, decided = draw(made, samples), strips(cache)
    assert len(set(decided)) > 1
    for i, (sample, budget) in enumerate(zip(samples, MIXED, strict=True)):
        with dicache.enable(made.pipe, error_budget=budget) as cache:
            alone = draw(made, [sample])
            assert strips(cache) == [decided[i]]
        assert_same_sample(together[i], alone[0])


# 5. A new run starts clean, however the last one ended.


@contextmanager
def stopping(denoiser: nn.Module, after: int) -> Iterator[None]:
    """Raises inside the denoiser, in the first call after so many in which a linear map of it runs."""
    calls = []

    def stop(*_: Any) -> None:
        if len(calls) > after:
            raise KeyboardInterrupt

    inside = next(m for m in denoiser.modules() if isinstance(m, nn.Linear))
    handles = [denoiser.register_forward_pre_hook(lambda *_: calls.append(1)), inside.register_forward_hook(stop)]
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        for handle in handles:
            handle.remove()


def test_a_run_after_one_that_broke_off_equals_a_fresh_one_bitwise(made):
    with dicache.enable(made.pipe, error_budget=BUDGET) as cache:
        fresh, decided = draw(made, [1, 2]), strips(cache)
    with dicache.enable(made.pipe, error_budget=BUDGET) as cache:
        with stopping(made.denoiser, 2):
            draw(made, [3, 4, 5])
        second = draw(made, [1, 2])
        assert strips(cache) == decided
        assert torch.equal(draw(made, [1, 2]), second)
    assert torch.equal(second, fresh)


# 6. Branches never mix.


def test_a_step_that_is_skipped_gives_every_branch_its_own_last_output(made):
    outputs: list[list[Tensor]] = []
    config = dicache.Config(Scripted(), approximators=(Reuse(),))
    with dicache.enable(made.pipe, config=config) as cache, ExitStack() as stack:
        for attachment in cache._attachments.values():
            stack.callback(attachment.denoiser.register_forward_hook(_recorder(attachment, outputs)).remove)
        draw(made, [1, 2])
        skipped = [i for i, record in enumerate(cache.trace.records) if bool((record.action != 0).any())]
    assert skipped
    del outputs[: made.alone]
    for step in skipped:  # a branch may end or begin between two steps
        assert all(torch.equal(one, other) for one, other in zip(outputs[step], outputs[step - 1], strict=False))
    for branches in outputs:
        rows = torch.cat([torch.stack(list(b.split(2))) for b in branches])
        assert all(not torch.equal(rows[i], rows[j]) for i in range(len(rows)) for j in range(i))


def _recorder(attachment: Any, outputs: list[list[Tensor]]) -> Any:
    seen: list[int] = []

    def record(module: nn.Module, args: Any, output: Any) -> None:
        run = attachment.session.run
        if run.step.index not in seen:
            seen.append(run.step.index)
            outputs.append([])
        outputs[-1].append(list(run.guided.outputs.values())[-1].clone())

    return record


@pytest.mark.parametrize("made", MIXTURES, indirect=True)
def test_the_mixture_found_is_the_guidance_that_was_asked_for(made):
    mixtures = []
    cache = dicache.enable(made.pipe, error_budget=0.0)
    handle = made.denoiser.register_forward_hook(lambda *_: mixtures.append(cache.session.run.guided.mixture))
    draw(made, [1, 2])
    handle.remove()
    cache.disable()
    found = max((mixture for mixture in mixtures if mixture is not None), key=len)
    assert sorted(found[:, 0].tolist()) == pytest.approx(sorted(MIXTURES[made.name]), rel=1e-2)


# 7. What is reported as saved was really not executed; and a budget that should engage the cache does.


def test_a_wide_budget_saves_work_that_was_really_not_executed(made):
    plain = draw(made, [1, 2, 3])
    with dicache.enable(made.pipe, error_budget=[BUDGET, 0.3, 0.0]) as cache:
        draw(made, [1, 2, 3])
        counted = [(denoiser, count_macs(denoiser)) for denoiser in made.denoisers]
        drawn = draw(made, [1, 2, 3])
        for denoiser, _ in counted:
            del denoiser.forward
    trace = cache.trace
    whole = sum(sum(macs[made.alone :]) for _, macs in counted)  # some models run a little outside their modules
    assert float(trace.executed.sum()) == pytest.approx(whole, rel=0.005)
    assert len(trace.records) == STEPS - made.alone
    assert float(trace.executed[2]) == float(trace.uncached[2])
    assert_same_sample(drawn[2], plain[2])
    assert any(mark in strips(cache)[0] for mark in "=/")
    if made.gathered:
        assert float(trace.executed[0]) < float(trace.uncached[0])


# Sites inside the denoiser, where the family allows them.


def test_sites_inside_decide_and_draw_as_alone_or_are_refused(made):
    selectors = (Spans(2) if made.skips else Tail(), Skips(1) if made.skips else Spans(1))
    tail, blocks = (dicache.Config(Scripted(), approximators=(Reuse(),), sites=s) for s in selectors)
    if not made.spans:
        with pytest.raises(UnsupportedModelError, match="Use sites=Spans" if made.blocks else "Use sites=Evaluation"):
            dicache.enable(made.pipe, config=tail)
    if not made.spans and not made.blocks:
        with pytest.raises(UnsupportedModelError, match="Use sites=Evaluation"):
            dicache.enable(made.pipe, config=blocks)
        return
    config = tail if made.spans else blocks
    with dicache.enable(made.pipe, config=config) as cache:
        together = draw(made, [1, 2])
        assert any(bool((record.action != 0).any()) for record in cache.trace.records)
        assert_same_sample(together[:1], draw(made, [1]))
        assert cache.report().compute_speedup > 1.001
    assert not torch.equal(together, draw(made, [1, 2]))


@pytest.mark.parametrize("made", [name for name in PIPELINES if "ControlNet" in name], indirect=True)
def test_with_control_the_error_is_no_larger_than_without_at_equal_work(made):
    choices = (Evaluation(), Spans(1)) if made.spans or made.blocks else (Evaluation(),)
    for sites in choices:
        config = dicache.Config(Scripted(), approximators=(Reuse(),), sites=sites)
        without, controlled = (_error(made, config, scale) for scale in (0.0, 0.3))
        assert controlled <= 1.1 * without  # random weights: control moves the outputs, and so their change, either way


def _error(made: Made, config: dicache.Config, scale: float) -> float:
    """Of four samples, on average."""
    samples = [1, 2, 3, 4]
    plain = draw(made, samples, controlnet_conditioning_scale=scale)
    with dicache.enable(made.pipe, config=config):
        return float(relative_error(draw(made, samples, controlnet_conditioning_scale=scale), plain).mean())


def test_branches_that_perturbed_attention_splits_are_not_computed_apart():
    tiny = PIPELINES["SD3 perturbed attention"]
    pipe = tiny.make()
    with (
        dicache.enable(pipe, config=dicache.Config(Scripted(), sites=Branches())),
        pytest.raises(UnsupportedModelError, match="cannot compute its guidance branches apart: PAG"),
    ):
        tiny.draw(pipe, [1], STEPS)


def test_the_tests_run_every_family_that_is_gathered(made_models):
    assert {model for model, family in FAMILIES.items() if family.calls} == made_models
    assert {model for model, family in FAMILIES.items() if family.batch is Batch.SAMPLE} <= made_models


@pytest.fixture(scope="module")
def made_models() -> set[str]:
    return {type(Made(name, tiny, tiny.make()).denoiser).__name__ for name, tiny in PIPELINES.items()}
