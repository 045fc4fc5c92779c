"""Sites below the whole evaluation: the same laws at any granularity."""

from dataclasses import replace
from functools import cache

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import dicache
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.controllers.budgeted import Budgeted
from dicache.controllers.fixed import Fixed
from dicache.controllers.interval import Interval
from dicache.controllers.planned import Planned
from dicache.controllers.threshold import Threshold
from dicache.controllers.with_gains import WithGains
from dicache.errors import ModeError, UnsupportedModelError
from dicache.estimators.closed_loop import ClosedLoop
from dicache.estimators.relative_change import RelativeChange
from dicache.planning.gains import Gains
from dicache.presets.parts.easycache import OnlineRate
from dicache.probes.first_blocks import FirstBlocks
from dicache.probes.raw_latent import RawLatent
from dicache.probes.site_input import SiteInput
from dicache.runtime.end_of_step import remembered_bytes
from dicache.sites import Branches, Drafted, Evaluation, Sites, Spans, Sublayers, Tail
from dicache.tensors.block_output import layout_of, output_of, value_of
from dicache.tensors.written import Unwritten
from dicache.types import Action, Kind, Reason
from helpers.fuzzing import examples
from helpers.watching import count_macs
from pipelines.tiny import PIPELINES, Tiny, make_flux

STEPS = 8
SITES: dict[str, Sites] = {
    "branches": Branches(),
    "tail": Tail(),
    "tail, last block fresh": Tail(back=1),
    "blocks": Spans(),
    "pairs": Spans(2),
    "outputs of blocks": Spans(added=False),
    "sublayers": Sublayers(),
    "verified draft": Drafted(),
}
FLUX = PIPELINES["two streams and one (flux)"]
GUIDED = PIPELINES["sequential guidance with named branches (flux)"]


@pytest.fixture(params=PIPELINES.values(), ids=PIPELINES.keys())
def tiny(request) -> Tiny:
    return request.param


@pytest.fixture(params=SITES.values(), ids=SITES.keys())
def sites(request) -> Sites:
    return request.param


def config(sites: Sites, budget: float = 0.3, **parts) -> dicache.Config:
    return dicache.Config(WithGains(Budgeted(budget), Gains()), ClosedLoop(), sites=sites, **parts)


def actions(cache: dicache.Cache) -> torch.Tensor:
    """(steps, B, S)."""
    return torch.stack([record.action for record in cache.trace.records])


def test_budget_zero_is_bitwise_equal_and_disabling_restores(tiny, sites):
    pipe = tiny.make()
    plain = tiny.draw(pipe, [1, 2], STEPS)
    with dicache.enable(pipe, config=config(sites, 0.0)) as cache:
        assert torch.equal(tiny.draw(pipe, [1, 2], STEPS), plain)
    assert cache.report().compute_speedup == 1.0
    assert not any("forward" in vars(module) for module in pipe.transformer.modules())
    assert torch.equal(tiny.draw(pipe, [1, 2], STEPS), plain)


@examples(2)
@given(mates=st.lists(st.integers(10, 30), min_size=1, max_size=3, unique=True), state=st.integers(0, 3))
@pytest.mark.parametrize("inner", SITES)
@pytest.mark.parametrize("name", PIPELINES)
def test_decisions_do_not_depend_on_batch_mates(name, inner, mates, state):
    tiny, sites = PIPELINES[name], SITES[inner]
    pipe, state = tiny.make(), min(state, len(mates))
    with dicache.enable(pipe, config=config(sites)) as cache:
        alone, decided_alone = tiny.draw(pipe, [1], STEPS), actions(cache)
        together = tiny.draw(pipe, [*mates[:state], 1, *mates[state:]], STEPS)
        decided_together = actions(cache)
    assert torch.equal(decided_together[:, state], decided_alone[:, 0])
    torch.testing.assert_close(together[state], alone[0], rtol=1e-3, atol=1e-3)


def test_work_is_what_ran_and_memory_is_what_was_planned(tiny, sites):
    pipe = tiny.make()
    with dicache.enable(pipe, config=config(sites)) as cache:
        tiny.draw(pipe, [1, 2], STEPS)  # costs are measured
        macs = count_macs(pipe.transformer)
        tiny.draw(pipe, [1, 2], STEPS)
        run = cache.session.run
        assert run.complete or tiny is not FLUX, "this pipeline says that its run is over"
        assert remembered_bytes(run) == 0 or not run.complete
        trace = cache.trace
    assert remembered_bytes(run) == 0, "where the pipeline says nothing, what asks for the report ends the run"
    assert trace.executed.sum().item() == pytest.approx(sum(macs), rel=1e-6)
    assert trace.cache_bytes <= (trace.planned_bytes or 0)
    guided = not isinstance(sites, Branches) or tiny is not FLUX
    assert (cache.report().compute_speedup > 1.0) == guided or isinstance(sites, Drafted)


def test_a_second_run_equals_a_fresh_one(tiny, sites):
    fresh = tiny.make()
    with dicache.enable(fresh, config=config(sites)):
        wanted = tiny.draw(fresh, [3], STEPS)
    pipe = tiny.make()
    with dicache.enable(pipe, config=config(sites)):
        tiny.draw(pipe, [1, 2], STEPS + 1)
        assert torch.equal(tiny.draw(pipe, [3], STEPS), wanted)


class Suspicious(ClosedLoop):
    """Expects a little of what went without any error, which else counts as unknown."""

    def predict(self, evidence, state):
        return super().predict(evidence, state).clamp(min=1e-6)


@examples(4)
@given(skips=st.frozensets(st.integers(2, STEPS - 1), min_size=1))
@pytest.mark.parametrize(
    "inner", [Spans(), Spans(2), Tail(), Sublayers()], ids=["blocks", "pairs", "tail", "sublayers"]
)
def test_a_skipped_site_gives_its_input_and_what_it_last_added(inner, skips):
    """On blocks whose weights are those of a constant addition, holding is exact whatever is skipped."""
    pipe = make_flux()
    for block in [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]:
        for name, parameter in block.named_parameters():
            if name.endswith("weight") and "norm" not in name.split(".")[-2]:
                parameter.data.zero_()
    schedule = Fixed((frozenset(range(STEPS)) - skips,))
    plain = FLUX.draw(pipe, [1, 2], STEPS)
    with dicache.enable(pipe, config=dicache.Config(schedule, Suspicious(), (Reuse(),), sites=inner)) as cache:
        held = FLUX.draw(pipe, [1, 2], STEPS)
    assert (actions(cache)[sorted(skips)] != Action.COMPUTE).any()
    torch.testing.assert_close(held, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("added", [True, False])
def test_streams_are_taken_apart_and_put_together(added):
    text, picture, time = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 8)
    inputs, output = [picture, text, time], (text + 1, picture + 2, None)
    form = layout_of(inputs, output, 2, added)
    assert form.bases == (1, 0)
    value = value_of(form, inputs, output)
    assert value.shape == (2, 8, 8)
    rebuilt = output_of(form, inputs, value)
    assert rebuilt[2] is None
    for a, b in zip(rebuilt[:2], output[:2], strict=True):
        torch.testing.assert_close(a, b)
    assert layout_of(inputs, torch.randn(7, 8), 2, added) is None


def test_equal_shapes_are_told_apart_by_what_changed_least():
    text, picture = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    inputs = [picture, text]
    form = layout_of(inputs, (text + 0.1, picture + 0.1), 2, True)
    assert form.bases == (1, 0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_block_that_works_in_place_holds_its_output(mode):
    with mode():
        x = torch.randn(2, 4, 8)
        x[0, 0, 0] = torch.nan
        unwritten = Unwritten([x])
        assert not unwritten.changed and layout_of([x], x, 2, True, in_place=unwritten.changed).added
        x += 1
        assert unwritten.changed and not layout_of([x], x, 2, True, in_place=unwritten.changed).added


# Verified drafts: a rejection acts on its own step.


def test_every_draft_is_rejected_at_tolerance_zero_and_the_outputs_are_exact(tiny):
    pipe = tiny.make()
    plain = tiny.draw(pipe, [1, 2], STEPS)
    rule = dicache.Config(Interval(4), ClosedLoop(), sites=Drafted(threshold=0.0, floor=0.0))
    with dicache.enable(pipe, config=rule) as cache:
        drawn = tiny.draw(pipe, [1, 2], STEPS)
    torch.testing.assert_close(drawn, plain, rtol=1e-4, atol=1e-5)
    reasons = torch.stack([record.reason[:, 0] for record in cache.trace.records])
    assert (reasons == Reason.REJECTED).any()
    assert cache.report().compute_speedup < 1.0  # drafts that fail cost their verification


def test_no_draft_is_rejected_at_an_endless_tolerance():
    pipe = make_flux()
    rule = dicache.Config(Interval(4), ClosedLoop(), sites=Drafted(threshold=1e9, floor=1e9))
    with dicache.enable(pipe, config=rule) as cache:
        FLUX.draw(pipe, [1], STEPS)
    reasons = torch.stack([record.reason for record in cache.trace.records])
    assert not (reasons == Reason.REJECTED).any() and cache.report().compute_speedup > 1.3


# Memory.


CAPPED = {
    "evaluation": dicache.Config(Interval(3), ClosedLoop()),
    "evaluation, the estimator keeps features": dicache.Config(
        Threshold(0.5), RelativeChange(), (Extrapolate(), Reuse()), FirstBlocks()
    ),
    "evaluation, the estimator keeps outputs": dicache.Config(Threshold(0.5), OnlineRate(), (Reuse(),), RawLatent()),
    "blocks": dicache.Config(Interval(3), ClosedLoop(), sites=Spans()),
    "blocks, the estimator keeps features": dicache.Config(
        Threshold(0.5), RelativeChange(), (Reuse(),), SiteInput(), Spans()
    ),
    "sublayers": dicache.Config(Interval(3), ClosedLoop(), sites=Sublayers()),
}


@cache
def planned_bytes(name):
    """Without a limit, and kept to."""
    pipe = make_flux()
    with dicache.enable(pipe, config=CAPPED[name]) as cache:
        GUIDED.draw(pipe, [1, 2], STEPS)
    assert cache.trace.cache_bytes <= cache.trace.planned_bytes
    return cache.trace.planned_bytes


@examples(4)
@given(share=st.floats(0.02, 1.2))
@pytest.mark.parametrize("name", CAPPED)
def test_memory_is_capped_and_the_report_says_so(name, share):
    pipe, rule, wanted = make_flux(), CAPPED[name], planned_bytes(name)
    limit = max(1, int(share * wanted))
    with dicache.enable(pipe, config=replace(rule, memory_limit=limit)) as cache:
        GUIDED.draw(pipe, [1, 2], STEPS)
    assert cache.trace.cache_bytes <= cache.trace.planned_bytes <= limit
    said = any("memory_limit" in warning for warning in cache.report().warnings)
    assert said == (limit < wanted)


# Mistakes.


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ({"sites": Spans(), "approximators": dicache.Config(Budgeted(0.0)).approximators[:1]}, ModeError),
        ({"memory_limit": 0}, ModeError),
    ],
)
def test_a_composition_that_cannot_work_is_refused(parts, error):
    with pytest.raises(error):
        dicache.Config(Budgeted(0.0), **parts)


def test_sites_say_what_fills_them_in_unless_a_composition_does():
    for sites in (Evaluation(), Branches(), Spans(), Sublayers()):
        assert dicache.Config(Budgeted(0.0), sites=sites).approximators == sites.approximators
    held = (Reuse(),)
    assert dicache.Config(Budgeted(0.1), approximators=held).approximators is held
    assert Evaluation().approximators != Spans().approximators


@pytest.mark.parametrize("sites", [Spans(back=5), Tail(back=9), Drafted(check=5), Sublayers((Kind.CROSS_ATTENTION,))])
def test_sites_that_select_nothing_are_refused_and_the_model_is_as_it_was(sites):
    pipe = make_flux()
    with pytest.raises(UnsupportedModelError):
        dicache.enable(pipe, config=config(sites))
    assert not any("_diffusers_hook" in vars(module) for module in pipe.transformer.modules())


def test_a_budget_is_shared_out_among_sites():
    pipe = make_flux()
    with dicache.enable(pipe, config=dicache.Config(WithGains(Planned(0.2), Gains()), sites=Spans())) as cache:
        FLUX.draw(pipe, [1], STEPS)
        budgets = [state.rule.inner.budget for state in cache.session.run.states]
    assert budgets == pytest.approx([0.2 / 5**0.5] * 5)


def test_the_report_names_the_sites_and_what_they_cost():
    pipe = make_flux()
    with dicache.enable(pipe, config=config(Spans(), 0.05)) as cache:
        FLUX.draw(pipe, [1], STEPS)
    facts, strip = cache.report().to_dict(), cache.report().strip(0)
    assert [site["kind"] for site in facts["sites"]] == ["span"] * 5 and all(
        site["macs"] > 0 for site in facts["sites"]
    )
    assert all(len(actions) == 5 for actions in facts["samples"][0]["actions"])
    mixed = [len({action == "compute" for action in actions}) == 2 for actions in facts["samples"][0]["actions"]]
    assert [mark == "+" for mark in strip] == mixed


def test_blocks_of_the_probe_are_no_sites():
    pipe = make_flux()
    rule = config(Spans(), probe=FirstBlocks(2))
    with dicache.enable(pipe, config=rule) as cache:
        FLUX.draw(pipe, [1], STEPS)
    assert [site.path for site in cache.trace.sites] == [f"single_transformer_blocks.{i}" for i in range(3)]
