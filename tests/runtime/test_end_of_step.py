"""A step is over: what its guesses were wrong by, what is learned of it, what is noted down."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dicache.approximators.base import Histories
from dicache.errors import BudgetError, UnsupportedModelError
from dicache.runtime.decide import decide_site
from dicache.runtime.end_of_step import end_step, remembered_bytes
from dicache.runtime.evidence import no_evidence
from dicache.runtime.guidance import Guided
from dicache.runtime.watched_loop import as_it_stands, broken_off, holds_others
from dicache.tensors import history
from dicache.types import Action, Reason
from helpers.stepping import Skips, a_config, a_run, inside, numbers

UNIT = torch.eye(4)


def latent_of(*lengths: float) -> torch.Tensor:
    """Rows along the last axis."""
    return torch.tensor(lengths)[:, None] * UNIT[3]


def ended(config, lengths=(1.0, 1.0), misses=((0.0, 0.0), (0.0, 0.0)), sites=1, after=None, **facts):
    """A step of one branch is over in which every computed row gave `lengths` of the first axis, and each approximator
    missed that by so much of the second, (B, A).
    """
    run = a_run(config, len(lengths), sites=sites, latent=latent_of(*[2.0] * len(lengths)), **facts)
    guided = Guided(("main",), (1,), torch.ones(1, len(lengths), dtype=torch.float64))
    for state in run.states:
        state.judgement, state.controller = decide_site(config, run, state, no_evidence(config, run))
    output = torch.tensor(lengths)[:, None] * UNIT[0]
    missed = {a: output + torch.tensor([miss[a] for miss in misses])[:, None] * UNIT[1] for a in range(2)}
    guided.add("main", output, missed)
    guided.handed("main", output)
    run.guided = guided
    end_step(config, run, after)
    return run


# What was really wrong.


@given(miss=st.floats(0.0, 2.0), other=st.floats(0.0, 2.0), length=st.floats(0.5, 4.0))
def test_the_error_of_every_guess_is_read_off_where_it_was_computed_after_all(miss, other, length):
    config = a_config("##", (0.1, 0.2), (0.2, 0.1))
    run = ended(config, (length, 1.0), ((miss, other), (other, miss)))
    ((realised, evidence, computed),) = run.states[0].estimator
    expected = numbers(miss / length, other / length, other, miss).view(2, 2)
    torch.testing.assert_close(realised, expected, rtol=1e-5, atol=1e-6)
    assert computed.tolist() == [True, True] and torch.equal(evidence.output, run.guided.truth)
    torch.testing.assert_close(run.scale, numbers(length / 2, 0.5))
    (_, (told, ratio, told_of)) = run.states[0].controller
    assert told == "told" and torch.equal(told_of, computed)
    torch.testing.assert_close(ratio, numbers(10 * miss / length, 10 * miss), rtol=1e-5, atol=1e-5)


def test_what_was_noted_down_is_the_best_prediction_and_what_the_one_that_was_chosen_missed():
    config = a_config("##", (0.4, 0.2), (0.1, 0.3))
    run = ended(config, misses=((0.5, 0.25), (0.5, 0.25)))
    (record,) = run.records
    assert record.predicted.tolist() == [0.2, 0.1] and record.realised.tolist() == pytest.approx([0.25, 0.5])
    assert (record.index, record.sigma, record.branches) == (3, run.step.sigma, ("main",))


def test_of_rows_that_skipped_nothing_is_realised_and_their_scale_stays():
    config = a_config("#=", (0.1, 0.2), (0.1, 0.2))
    run = ended(config, (3.0, 3.0), ((0.3, 0.3), (0.3, 0.3)), scale=numbers(9.0, 9.0))
    (record,) = run.records
    assert record.realised[0].item() == pytest.approx(0.1) and record.realised[1].isnan()
    assert run.scale.tolist() == pytest.approx([1.5, 9.0])
    assert record.action.tolist() == [[Action.COMPUTE], [Action.REUSE]]
    assert record.reason.tolist() == [[Reason.UNKNOWN], [Reason.SCHEDULED]]


def test_a_step_in_which_a_branch_was_guessed_tells_nothing():
    config = a_config("==", (0.1, 0.2), (0.1, 0.2))
    run = ended(config, (3.0, 3.0), scale=numbers(9.0, 9.0))
    ((realised, _, computed),) = run.states[0].estimator
    assert realised.isnan().all() and not computed.any() and run.scale.tolist() == [9.0, 9.0]
    assert run.records[0].realised.isnan().all()


# Sites inside the denoiser.


@given(
    misses=st.lists(st.floats(0.01, 1), min_size=2, max_size=2),
    values=st.lists(st.floats(1, 9), min_size=2, max_size=2),
)
def test_sites_have_errors_and_shares_of_their_own_and_the_worst_is_noted_down(misses, values):
    config = inside("##", (0.1, 0.2), (0.1, 0.2))
    run = a_run(config, sites=2)
    run.guided = Guided(("main",), (1,), torch.ones(1, 2, dtype=torch.float64))
    for state, miss, value in zip(run.states, misses, values, strict=True):
        state.judgement, state.controller = decide_site(config, run, state, no_evidence(config, run))
        state.sums = torch.tensor([[miss**2, math.nan, value**2, 100.0]] * 2, dtype=torch.float64)
    run.guided.passed("main", UNIT[:2].clone(), run.latent)
    end_step(config, run, None)
    own = [miss / value for miss, value in zip(misses, values, strict=True)]
    for state, error, value in zip(run.states, own, values, strict=True):
        assert state.share.tolist() == pytest.approx([value / 10] * 2)
        assert state.estimator[0][0][:, 0].tolist() == pytest.approx([error] * 2)
    assert run.records[0].realised.tolist() == pytest.approx([max(own)] * 2)


def test_what_sites_spent_adds_up_in_squares_and_a_site_of_unknown_cost_spent_nothing():
    config = inside("==", (0.3, 0.4), (0.3, 0.4))
    run = a_run(config, sites=2)
    run.guided = Guided(("main",), (1,), torch.ones(1, 2, dtype=torch.float64), surviving_share=numbers(1.0, 1.0))
    for state, share in zip(run.states, (3.0, 4.0), strict=True):
        state.share = numbers(share, share / 2)
        state.judgement, state.controller = decide_site(config, run, state, no_evidence(config, run))
    run.guided.passed("main", UNIT[:2].clone(), run.latent)
    end_step(config, run, None)
    assert run.records[0].spent.tolist() == pytest.approx([0.3 * 0.1 * 5, 0.3 * 0.1 * 2.5])
    assert run.records[0].action.shape == (2, 2)


def test_a_site_that_nobody_had_to_decide_is_computed_and_one_without_memory_learns_nothing():
    config = inside("##", (0.1, 0.2), (0.1, 0.2))
    run = a_run(config, sites=2)
    run.states[1].depth = 0
    run.guided = Guided(("main",), (1,), torch.ones(1, 2, dtype=torch.float64))
    run.guided.passed("main", UNIT[:2].clone(), run.latent)
    end_step(config, run, None)
    assert [len(state.estimator) for state in run.states] == [1, 0]
    assert all(state.judgement.computed.all() for state in run.states)
    assert [[kind for kind, *_ in state.controller] for state in run.states] == [["asked", "told"]] * 2


# The first step, and other branches.


@given(samples=st.integers(1, 3), scale=st.floats(1.5, 8))
def test_the_first_step_shows_how_many_samples_there_are_and_how_they_are_guided(samples, scale):
    config = a_config("#" * samples, *[(math.inf, math.inf)] * samples)
    run = a_run(config, samples, chunks=2, scale=None)
    run.samples, run.guided = 0, Guided()
    cond, uncond = torch.randn(2, samples, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    run.latent = run.latent.double()
    run.guided.passed("main", torch.cat([cond, uncond]), run.latent)
    mixed = uncond + scale * (cond - uncond)
    end_step(config, run, run.latent - 0.1 * mixed.repeat(2, 1))
    assert run.samples == samples and run.guided.strongest == ("main", 0)
    torch.testing.assert_close(run.guided.strength, numbers(*[scale] * samples), rtol=1e-4, atol=1e-4)
    assert run.facts.guidance == pytest.approx(scale, rel=1e-4) and run.scale is None
    assert len(run.records) == 1 and run.records[0].action.shape == (samples, 1)


def test_a_rule_that_refuses_so_many_samples_leaves_the_run_as_it_was():
    config = a_config("##", (0.1, 0.2), (0.1, 0.2))
    run = a_run(config)
    run.samples, run.states[0].rule = 0, Skips("##", samples=(0.1, 0.2, 0.3))
    run.guided.passed("main", UNIT[:2].clone(), run.latent)
    with pytest.raises(BudgetError, match="3 entries but this run has 2 samples"):
        end_step(config, run, None)
    assert run.samples == 0 and run.records == []


def test_rows_that_are_not_branches_of_the_same_samples_are_refused():
    config = a_config("###", *[(0.1, 0.2)] * 3)
    run = a_run(config, 3)
    run.samples, run.guided = 0, Guided()
    for name, rows in (("cond", 3), ("uncond", 2)):
        run.guided.handed(name, torch.randn(rows, 4))
    with pytest.raises(UnsupportedModelError, match="with 3, 2 rows"):
        end_step(config, run, run.latent)


def test_where_other_branches_came_all_that_was_learned_of_their_mixture_is_forgotten():
    config = a_config("##", (0.1, 0.2), (0.1, 0.2))
    run = ended(config, (3.0, 3.0))
    assert len(run.states[0].estimator) == 1 and run.scale is not None
    run.guided = run.guided.next_step(1)
    run.states[0].judgement, run.states[0].share = None, numbers(0.5, 0.5)
    run.guided.handed("another", UNIT[:2].clone())
    end_step(config, run, None)
    assert run.states[0].estimator == () and run.states[0].share is None
    assert run.scale is None and run.guided.mixture is None and run.facts.guidance is None
    assert len(run.records) == 2, "what happened stays noted down"


def test_what_was_known_of_a_runs_conditions_stays_where_only_its_guidance_is_forgotten():
    prints = {"cond": {"text": torch.ones(3, 32)}, "uncond": {"text": torch.zeros(3, 32)}}
    run = a_run(a_config("###"), 3, prints=prints)
    mixture = torch.tensor([[3.0, 9.0, 5.0], [-2.0, -8.0, -4.0]], dtype=torch.float64)
    guided = Guided(("cond", "uncond"), (1, 1), mixture, mixture[0], numbers(0.5, 0.4, 0.4), ("cond", 0))
    run.know_mixture(guided)
    assert run.facts.guidance == 5.0 and run.facts.own_conditions["text"].eq(1).all()
    assert list(run.facts.negative_conditions) == ["0.text"]
    before = run.facts
    run.forget_mixture()
    assert run.facts.guidance is None and run.facts.own_conditions is before.own_conditions


# What is remembered.


@given(samples=st.integers(1, 3), values=st.integers(0, 3), width=st.integers(1, 9))
def test_what_is_remembered_is_counted_in_bytes(samples, values, width):
    config = a_config("#" * samples, *[(0.1, 0.2)] * samples)
    run, outputs = a_run(config, samples), history.empty(3, samples)
    for i in range(values):
        outputs = history.push(outputs, torch.ones(samples, width), 1 - i / 9, torch.ones(samples, dtype=torch.bool))
    nothing = history.empty(3, samples)
    run.states[0].histories = {
        "cond": Histories(outputs, nothing, nothing),
        "uncond": Histories(nothing, outputs, nothing),
    }
    run.states[0].estimator = (torch.ones(samples, 2), torch.ones(samples, 5, 7))
    assert remembered_bytes(run) == 4 * samples * (2 * values * width + 5 * 7)
    run.forget()
    assert remembered_bytes(run) == 0 and not run.gone
    run.let_go()
    assert run.gone and run.prints == {} and run.guided.outputs == {}


# Loops that are watched.


def test_a_run_is_told_of_as_if_it_were_over_and_goes_on_as_it_was():
    config = a_config("##", (0.1, 0.2), (0.1, 0.2))
    run = a_run(config)
    run.guided = Guided(("main",), (1,), torch.ones(1, 2, dtype=torch.float64))
    run.guided.passed("main", UNIT[:2].clone(), run.latent)
    shown = as_it_stands(config, run)
    assert shown.complete and len(shown.records) == 1
    assert not run.complete and run.records == [] and run.states[0].judgement is None and run.states[0].estimator == ()


def test_guidance_branches_share_their_latent_and_tiles_do_not():
    config = a_config("##", (0.1, 0.2), (0.1, 0.2))
    run = a_run(config)
    run.guided.handed("call 0", torch.randn(2, 4))
    assert not holds_others(run, run.latent.clone()) and not holds_others(run, run.latent.repeat(2, 1))
    assert not holds_others(run, run.latent[:1]), "fewer rows of the same samples"
    assert holds_others(run, run.latent + 1) and holds_others(run, run.latent.flip(0))
    beside = torch.cat([run.latent, torch.randn(2, 3)], dim=1)
    assert not holds_others(run, beside), "what stands behind the latent is not denoised"


def test_a_call_of_the_same_loop_that_goes_on_nowhere_broke_it_off():
    run, key = a_run(a_config("##", (0.1, 0.2), (0.1, 0.2))), object()
    run.key = key
    assert "began anew before it was through" in broken_off(run, key)[0] and not broken_off(None, key)
    assert not broken_off(run, object()), "another run of the scheduler"
    run.complete = True
    assert not broken_off(run, key)
    run.complete, run.key = False, None
    assert not broken_off(run, None), "nobody knows, of a bare module"
    run.key, run.displaced = object(), key
    assert "another run came within" in broken_off(run, key)[0] and not broken_off(run, object())
