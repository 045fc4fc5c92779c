"""Deciding one site: every factor of its price, who fills in, which rows compute, what is remembered."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dicache.approximators.base import Histories, Target
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.approximators.pricing import cost_of_best
from dicache.controllers.interval import Interval
from dicache.estimators.closed_loop import ClosedLoop
from dicache.planning.error_law import REMAINS, error_rate, error_rates
from dicache.runtime.decide import (
    approximators_to_fill,
    choose_approximator,
    decide_rejected,
    decide_site,
    decide_together,
    realised_errors,
    rows_to_compute,
    rows_to_remember,
    standing_of,
)
from dicache.runtime.evidence import evidence_of, guesses, no_evidence
from dicache.runtime.guidance import Guided
from dicache.tensors import history
from dicache.tensors.mac_meter import Meter
from dicache.types import Action, Reason, Timetable
from helpers.stepping import LINE, Says, a_config, a_run, a_step, inside, numbers, rows
from helpers.toy import histories_at

FACTOR = st.floats(0.01, 10)
ERRORS = st.lists(st.one_of(st.floats(1e-6, 10), st.just(math.inf)), min_size=3, max_size=3)
ALL = torch.ones(2, dtype=torch.bool)


def priced(error, *, share=None, coefficient=0.1, scale=1.0, survives=1.0, watched=False, within=False):
    """What skipping one sample costs."""
    config = (inside if within else a_config)("=", (error, error))
    remains = None if survives is None else numbers(survives)
    guided = Guided(surviving_share=remains, watched=watched)
    known = {"step": a_step(coefficient=coefficient), "scale": None if scale is None else numbers(scale)}
    run = a_run(config, 1, guided=guided, **known)
    run.states[0].share = None if share is None else numbers(share)
    return cost_of_best(config.actions, standing_of(run, run.states[0]), *[numbers(error, error)[None]] * 2)[1].item()


# The price.


@given(error=FACTOR, share=FACTOR, coefficient=FACTOR, scale=FACTOR, survives=FACTOR)
def test_the_price_is_the_product_of_error_share_reach_scale_and_what_survives(
    error, share, coefficient, scale, survives
):
    cost = priced(error, share=share, coefficient=coefficient, scale=scale, survives=survives)
    assert cost == pytest.approx(error * share * coefficient * scale * survives)


def test_a_price_worked_by_hand():
    """2 % of an output three times as long as the final latent, of which a tenth is added and half stays."""
    assert priced(0.02, coefficient=0.1, scale=3.0, survives=0.5) == pytest.approx(0.003)
    assert priced(0.02, share=0.25, coefficient=0.1, scale=3.0, survives=0.5) == pytest.approx(0.00075)


def test_an_evaluation_is_all_of_its_output_and_a_part_of_unknown_share_has_no_price():
    assert priced(0.02) == pytest.approx(0.002)
    assert math.isinf(priced(0.02, within=True))
    assert priced(0.02, within=True, share=0.5) == pytest.approx(0.001)


def test_before_guidance_was_measured_the_price_is_that_without_guidance():
    assert priced(0.02, survives=None) == pytest.approx(0.002 * REMAINS)


@given(survives=st.floats(0.01, 3))
def test_in_a_watched_loop_nothing_counts_as_forgotten(survives):
    assert priced(0.02, survives=survives, watched=True) == pytest.approx(0.002 * max(survives, 1.0))


@pytest.mark.parametrize("factor", ["error", "share", "coefficient", "scale", "survives"])
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_nothing_is_free_for_want_of_a_number(factor, value):
    facts = {"error": 0.02, "share": 1.0, "coefficient": 0.1, "scale": 1.0, "survives": 1.0, factor: value}
    assert priced(**facts) == math.inf
    assert priced(0.02, scale=None) == math.inf


@given(first=ERRORS, second=ERRORS)
def test_what_is_quoted_is_the_least_error_and_the_action_of_who_makes_it(first, second):
    config = a_config("===")
    run, predicted = a_run(config, 3), numbers(*first, *second).view(2, 3).T
    errors, _, actions = cost_of_best(config.actions, standing_of(run, run.states[0]), predicted, predicted)
    for error, action, one, two in zip(errors.tolist(), actions.tolist(), first, second, strict=True):
        assert error == min(one, two)
        assert action == (Action.EXTRAPOLATE if two < one else Action.REUSE)


# Who fills in.


@given(first=ERRORS, second=ERRORS, actions=st.lists(st.sampled_from([0, 1, 2, 3]), min_size=3, max_size=3))
def test_who_fills_in_has_the_action_that_was_decided_on_or_errs_least_where_none_has(first, second, actions):
    decided = torch.tensor(actions)[:, None]
    best = choose_approximator(a_config("==="), numbers(*first, *second).view(2, 3).T, decided).tolist()
    for index, action, one, two in zip(best, actions, first, second, strict=True):
        if action in (Action.REUSE, Action.EXTRAPOLATE):
            assert LINE[index].action == action
        else:
            assert index == int(two < one)


def test_of_two_of_one_action_the_better_fills_in_even_where_one_is_unknown():
    config = a_config("=", approximators=(Extrapolate(), Reuse(), Extrapolate()))
    line = torch.tensor([[int(Action.EXTRAPOLATE)]])
    assert choose_approximator(config, numbers(0.3, 0.1, 0.2)[None], line).item() == 2
    assert choose_approximator(config, numbers(0.3, 0.1, math.inf)[None], line).item() == 0
    assert choose_approximator(config, numbers(math.inf, 0.1, math.inf)[None], line).item() in (0, 2)


def test_those_that_fill_in_are_named_once_and_nobody_before_the_decision():
    config = a_config("===", (0.1, 0.2), (0.2, 0.1), (0.1, 0.2))
    run = a_run(config, 3)
    assert approximators_to_fill(run.states[0]) == []
    run.states[0].judgement, _ = decide_site(config, run, run.states[0], no_evidence(config, run))
    assert approximators_to_fill(run.states[0]) == [0, 1]


# One site, all sites, and again.


def test_a_site_is_judged_with_the_state_that_it_was_asked_in():
    config = a_config("=#", (0.1, 0.2), (0.2, 0.1))
    run = a_run(config)
    judgement, after = decide_site(config, run, run.states[0], no_evidence(config, run))
    assert judgement.controller_before == () and len(after) == 1 and run.states[0].judgement is None
    assert judgement.computed.tolist() == [False, True] and judgement.stored.tolist() == [True, True]
    assert judgement.decision.action.tolist() == [[Action.REUSE], [Action.COMPUTE]]


def test_who_reads_more_than_is_remembered_is_unknown():
    config = a_config("==", (0.2, 0.1), (0.2, 0.1))
    run = a_run(config)
    for depth, expected in ((None, [0.1, 0.1]), (2, [0.1, 0.1]), (1, [0.2, 0.2]), (0, [math.inf, math.inf])):
        run.states[0].depth = depth
        judgement, _ = decide_site(config, run, run.states[0], no_evidence(config, run))
        assert judgement.quote.error.tolist() == expected


def test_a_value_that_is_not_to_be_remembered_is_computed():
    config = a_config("=#", (0.1, 0.2), (0.1, 0.2))
    object.__setattr__(config.controller, "action", Action.UNSTORED)
    run = a_run(config)
    state = run.states[0]
    state.judgement, _ = decide_site(config, run, state, no_evidence(config, run))
    assert state.judgement.computed.tolist() == [True, True] and state.judgement.stored.tolist() == [False, True]
    assert rows_to_remember(run, state, rows("####")).tolist() == [False, True, False, True]
    assert rows_to_remember(run, state, rows("#=##")).tolist() == [False, False, False, True]


@given(grids=st.lists(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), min_size=2, max_size=4))
def test_sites_that_are_decided_together_go_by_the_mean_of_what_is_predicted_of_them(grids):
    class Each(Says):
        def predict(self, evidence, state):
            return numbers(*grids[state]).view(2, 2)

    config = inside("==", estimator=Each(()))
    run = a_run(config, sites=len(grids))
    for i, state in enumerate(run.states):
        state.estimator, state.share = i, numbers(1.0, 1.0)
    evidences = [no_evidence(config, run)._replace(typical=float(i)) for i in range(len(grids))]
    judgements, after = decide_together(config, run, evidences)
    mean = torch.tensor(grids, dtype=torch.float64).mean(0).view(2, 2)
    for evidence, judgement in zip(evidences, judgements, strict=True):
        assert judgement.evidence is evidence
        torch.testing.assert_close(judgement.predicted, mean)
        torch.testing.assert_close(judgement.quote.error, mean.amin(1))
    assert len(after) == 1, "one rule is asked once"


def test_a_sample_whose_draft_failed_is_decided_again_from_the_state_before():
    config = inside("==", (0.1, 0.2), (0.1, 0.2), controller=Interval(9))
    run = a_run(config)
    state = run.states[0]
    state.controller = state.controller._replace(left=numbers(0, 0), since=numbers(2, 2))
    judgement, after = decide_site(config, run, state, no_evidence(config, run))
    assert not judgement.computed.any() and after.since.tolist() == [3, 3]
    state.controller = after
    again, settled = decide_rejected(run, state, judgement, rows("=#"))
    assert again.computed.tolist() == [False, True] and settled.since.tolist() == [3, 0]
    assert again.decision.reason.tolist() == [[Reason.SCHEDULED], [Reason.REJECTED]]
    assert again.evidence is judgement.evidence and state.controller is after


# What is known.


@given(seed=st.integers(0, 99), sigma=st.floats(0.05, 0.4))
def test_the_laws_are_asked_in_the_time_in_which_models_turn_evenly(seed, sigma):
    generator = torch.Generator().manual_seed(seed)
    past, newest, now = sorted((torch.rand(3, generator=generator, dtype=torch.float64) * 4).tolist())
    outputs = history.empty(2, 2)
    for value, time in ((0.9, past), (0.5, newest)):
        outputs = history.push(outputs, torch.ones(2, 4), value, ALL, time)
    config = a_config("==")
    run = a_run(config, step=a_step(sigma=sigma, half_log_snr=now), time=now)
    nothing = history.empty(2, 2)
    evidence = evidence_of(config, run, Meter(), Histories(outputs, nothing, nothing), Target(sigma, None))
    tau, span = now - newest, newest - past
    torch.testing.assert_close(evidence.growth, numbers(tau, tau * (tau + span)).expand(2, 2))
    assert evidence.typical == pytest.approx(error_rate(now))


def test_what_was_computed_once_has_a_law_for_holding_alone():
    config = a_config("==")
    run = a_run(config, step=a_step(sigma=0.5), time=0.5)
    evidence = evidence_of(config, run, Meter(), histories_at([0.7], lambda s: torch.ones(2, 4)), Target(0.5, None))
    assert evidence.growth[:, 0].tolist() == pytest.approx([0.2, 0.2]) and evidence.growth[:, 1].isnan().all()
    assert evidence.guess(0) is not None and evidence.guess(1) is None
    never = evidence_of(config, run, Meter(), None, Target(0.5, None))
    assert never.growth.isnan().all() and never.growth.shape == (2, 2) and never.typical is None


def test_under_new_noise_errors_grow_with_the_root_of_time_whatever_fills_in():
    timetable = Timetable((1.0, 0.8, 0.5, 0.2), (0.25,) * 4, (-2.0, -1.0, 0.5, 2.0), 0, random=True)
    config = a_config("==")
    run = a_run(config, step=a_step(2, 4, half_log_snr=0.5, timetable=timetable), time=0.5)
    outputs = history.empty(2, 2)
    for i in (0, 1):
        computed = torch.tensor([True, i == 0])  # the second sample has one value
        outputs = history.push(outputs, torch.ones(2, 4), timetable.sigmas[i], computed, timetable.half_log_snrs[i])
    nothing = history.empty(2, 2)
    evidence = evidence_of(config, run, Meter(), Histories(outputs, nothing, nothing), Target(0.5, None))
    torch.testing.assert_close(evidence.growth[0], numbers(1.5**0.5, 1.5**0.5))
    assert evidence.growth[1, 0].item() == pytest.approx(2.5**0.5) and evidence.growth[1, 1].isnan()
    assert evidence.typical == error_rates(timetable)[2]


def test_the_probe_is_held_against_its_own_line():
    """A feature on the line surprises nobody; one that is 5 where 4 was due is off by a fifth of it."""
    config = a_config("==", estimator=ClosedLoop(trust=1.0))
    run = a_run(config, step=a_step(sigma=0.4), time=0.4)

    def feature(sigma):
        return torch.full((2, 3), 10 * (0.8 - sigma), dtype=torch.float64)

    histories = histories_at([0.8, 0.6], lambda s: torch.ones(2, 4), feature)
    for value, moved in ((4.0, 0.0), (5.0, 0.2)):
        target = Target(0.4, torch.full((2, 3), value, dtype=torch.float64))
        evidence = evidence_of(config, run, Meter(), histories, target)
        assert evidence.innovation.tolist() == pytest.approx([moved, moved], abs=1e-6)
        assert evidence.innovation_growth.tolist() == pytest.approx([0.08, 0.08])
        assert evidence.feature is not None and evidence.latent.shape == (2, 4)
    assert evidence_of(a_config("=="), run, Meter(), histories, target).innovation.isnan().all(), "nobody reads it"


def test_only_those_guess_that_have_enough_values():
    config, target = a_config("=="), Target(0.4, None)
    histories = histories_at([0.8], lambda s: torch.full((2, 4), s))
    assert set(guesses(config, Meter(), histories, target, [0, 1])) == {0}
    both = guesses(config, Meter(), histories_at([0.8, 0.6], lambda s: torch.full((2, 4), s)), target, [0, 1])
    torch.testing.assert_close(both[0], torch.full((2, 4), 0.6))
    torch.testing.assert_close(both[1], torch.full((2, 4), 0.4))


# Rows.


@given(marks=st.text("#=", min_size=2, max_size=2), past=st.lists(st.booleans(), min_size=4, max_size=4))
def test_a_row_computes_where_its_sample_does_or_its_branch_has_too_short_a_past(marks, past):
    """Two chunks of two samples, filled in from two values; some rows have only one."""
    config = a_config(marks, (0.2, 0.1), (0.2, 0.1))
    run = a_run(config, chunks=2)
    state = run.states[0]
    state.judgement, _ = decide_site(config, run, state, no_evidence(config, run))
    state.judgement = state.judgement._replace(best=torch.tensor([1, 1]))
    outputs = history.push(history.empty(2, 4), torch.ones(4, 4), 0.9, torch.ones(4, dtype=torch.bool))
    outputs = history.push(outputs, torch.ones(4, 4), 0.8, torch.tensor(past))
    state.histories["main"] = Histories(outputs, history.empty(2, 4), history.empty(2, 4))
    expected = [mark == "#" or not enough for mark, enough in zip(2 * marks, past, strict=True)]
    computed = rows_to_compute(config, run, state, "main")
    assert (computed is None) if all(expected) else computed.tolist() == expected
    assert rows_to_compute(config, run, state, "another branch") is None
    run.samples = 0
    assert rows_to_compute(config, run, state, "main") is None


@given(miss=st.floats(0, 4), value=st.floats(0.1, 4), output=st.floats(0.1, 4))
def test_errors_are_relative_to_the_value_and_shares_to_the_output(miss, value, output):
    sums = torch.tensor([[miss**2, math.nan, value**2, output**2]], dtype=torch.float64)
    errors, share = realised_errors(sums, 2)
    assert errors[0, 0].item() == pytest.approx(miss / value) and errors[0, 1].isnan()
    assert share.item() == pytest.approx(min(value / output, 1.0))


def test_a_site_whose_output_is_nothing_is_all_of_it():
    _, share = realised_errors(torch.tensor([[0.0, 4.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64), 1)
    assert share.tolist() == [1.0, 1.0]
