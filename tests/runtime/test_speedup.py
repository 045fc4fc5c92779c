"""A cost instead of a budget: `speedup` is so many computed steps, for every sample and in the mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dicache
from dicache.controllers.base import FinishedRun, refused
from dicache.controllers.counted import Counted, Evaluations, dealt
from dicache.errors import BudgetError, ModeError
from dicache.planning.law_plan import Plan
from dicache.types import Action, Quote, RunFacts, Step, Timetable
from helpers.calibrating import STEPS, Captioned
from helpers.fuzzing import examples

LONG = 28
BALANCES = tuple(math.log((i + 0.5) / (LONG - i)) for i in range(LONG))
TIMETABLE = Timetable(tuple(1 - i / LONG for i in range(LONG)), (1 / LONG,) * LONG, BALANCES, 0)


def strip(speedup, steps=LONG, first=0, timetable=None, rule=None, weights=(1.0,)):
    """What one sample gets that is known from its third step on."""
    rule, marks = rule or Counted(float(speedup)), ""
    state = rule.init(1)
    for i in range(first, steps):
        cost = torch.tensor([0.01 if marks.count("#") > 1 else math.inf], dtype=torch.float64)
        quote = Quote(cost, cost, torch.tensor([int(Action.EXTRAPOLATE)]))
        step = Step(i, steps, 1 - i / steps, 1 / steps, (i + 1) / steps, (1.0, 0.0), (0.0, 1.0), timetable, weights)
        decision, state = rule.decide(quote, step, state)
        marks += "#" if decision.action.item() == Action.COMPUTE else "/"
    return marks


@examples(8)
@given(speedup=st.floats(1.0, 2.6))
def test_a_speedup_is_so_many_computed_steps(speedup):
    pipe = Captioned()
    with dicache.enable(pipe, speedup=speedup) as cache:
        pipe.draw([1, 2, 3])
    for i in range(3):
        assert abs(cache.report().strip(i).count("#") - STEPS / speedup) < 1


@given(speedup=st.floats(1.0, 3.5), seed=st.integers(0, 99))
def test_a_speedup_that_is_no_whole_number_of_steps_is_met_in_the_mean(speedup, seed):
    """Over samples whose costs differ as little as those of one model do."""
    plan = Plan(TIMETABLE, longest=8, last=1)
    lots = np.random.default_rng(seed).lognormal(-9, 0.3, 4000)
    counts = [dealt(plan, speedup, float(lot)) for lot in lots]
    assert max(counts) - min(counts) <= 1 and np.mean(counts) == pytest.approx(28 / speedup, rel=0.005)


def test_samples_are_dealt_their_number_of_steps_by_themselves():
    """Two thirds of them 7 of 10 steps, the others 6."""
    pipe, samples = Captioned(), range(24)
    with dicache.enable(pipe, speedup=1.5) as cache:
        pipe.draw(samples)
        together = [cache.report().strip(i) for i in samples]
        for i in (0, 5, 11):
            pipe.draw([i])
            assert cache.report().strip(0) == together[i]
    counts = [marks.count("#") for marks in together]
    assert set(counts) == {6, 7} and np.mean(counts) == pytest.approx(STEPS / 1.5, abs=0.3)


@given(speedup=st.floats(1.0, 5.0), first=st.integers(0, LONG // 2))
def test_what_a_run_computes_at_its_beginning_is_paid_from_its_count_wherever_it_begins(speedup, first):
    marks = strip(speedup, first=first, timetable=TIMETABLE)
    fewest = Plan(TIMETABLE, longest=8, last=1).fewest(first)
    assert abs(marks.count("#") - max(len(marks) / speedup, fewest)) < 1 and marks[-1] == "#"


@given(speedup=st.one_of(st.integers(1, 12), st.floats(1.0, 12.0)), steps=st.integers(20, 80))
def test_without_a_course_the_share_of_computed_steps_is_met(speedup, steps):
    marks = strip(speedup, steps)
    assert "/" * 9 not in marks
    assert marks.count("#") == max(math.ceil(steps / speedup - 1e-9), 2) or speedup > 8


def test_a_step_that_was_computed_after_all_is_paid_from_the_count():
    """What conditions that change, or a draft that does not stand, make of a skip."""
    rule, everything = Counted(2.0), torch.ones(1, dtype=torch.bool)

    def draw(refused_at):
        state, marks = rule.init(1), ""
        for i in range(LONG):
            cost = torch.tensor([0.01 if i > 1 else math.inf], dtype=torch.float64)
            quote = Quote(cost, cost, torch.tensor([int(Action.EXTRAPOLATE)]), fills=torch.tensor([i > 0]))
            quote = refused(quote, everything) if i == refused_at else quote
            step = Step(i, LONG, 1 - i / LONG, 1 / LONG, (i + 1) / LONG, (1.0, 0.0), (0.0, 1.0), TIMETABLE)
            decision, state = rule.decide(quote, step, state)
            marks += "#" if decision.action.item() == Action.COMPUTE else "/"
        return marks

    plain = draw(None)
    skipped = plain.index("/", LONG // 2)
    again = draw(skipped)
    assert again[:skipped] == plain[:skipped] and again[skipped] == "#"
    assert again.count("#") == plain.count("#") == LONG / 2


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_speedup_that_so_few_steps_cannot_reach_is_said_to_be_missed(steps):
    pipe = Captioned()
    with dicache.enable(pipe, speedup=2.0) as cache:
        pipe.draw([1], steps)
    assert any("did not reach their speedup: 2 asked for, 1" in warning for warning in cache.report().warnings)
    with dicache.enable(pipe, speedup=1.0) as cache:
        pipe.draw([1], steps)
    assert not any("did not reach" in warning for warning in cache.report().warnings)


def test_every_sample_may_have_its_own_speedup_and_hears_where_it_was_not_reached():
    pipe = Captioned()
    with dicache.enable(pipe, speedup=[1.0, 2.5]) as cache:
        pipe.draw([1, 2])
        assert [cache.report().strip(i).count("#") for i in range(2)] == [STEPS, STEPS / 2.5]
        (uncalibrated,) = cache.report().warnings
        assert "without calibration" in uncalibrated
        with pytest.raises(BudgetError, match="speedup has 2 entries but this run has 3 samples"):
            pipe.draw([1, 2, 3])
    with dicache.enable(pipe, speedup=[1.0, 20.0]) as cache:
        pipe.draw([1, 2])
    missed, _ = cache.report().warnings
    assert missed.startswith("samples [1] did not reach their speedup: 20 asked for, 3.")
    assert cache.report().to_dict()["samples"][1]["budget"] is None


# A number in the place of a ratio.


@examples(6)
@given(evaluations=st.integers(5, STEPS))
def test_so_many_evaluations_are_so_many_computed_steps(evaluations):
    pipe = Captioned()
    with dicache.enable(pipe, evaluations=evaluations) as cache:
        pipe.draw([1, 2, 3])
    assert [cache.report().strip(i).count("#") for i in range(3)] == [evaluations] * 3


def test_each_sample_has_its_own_number_and_more_than_there_are_steps_is_all():
    pipe = Captioned()
    with dicache.enable(pipe, evaluations=[6, 8, 100]) as cache:
        pipe.draw([1, 2, 3])
    assert [cache.report().strip(i).count("#") for i in range(3)] == [6, 8, STEPS]


@given(evaluations=st.integers(6, LONG), first=st.integers(0, LONG // 2))
def test_a_run_that_begins_half_way_has_its_number_and_a_second_denoiser_its_share(evaluations, first):
    begun = TIMETABLE._replace(begin=first)
    fewest = Plan(TIMETABLE, longest=8, last=1).fewest(first)
    marks = strip(0, first=first, timetable=begun, rule=Evaluations(float(evaluations)))
    assert marks.count("#") == min(max(evaluations, fewest), len(marks))
    marks = strip(0, first=first, timetable=TIMETABLE, rule=Evaluations(float(evaluations)))
    share = len(marks) * min(1, evaluations / LONG)
    assert abs(marks.count("#") - max(share, fewest)) < 1


def test_a_solver_that_calls_twice_makes_two_evaluations_a_step():
    marks = strip(0, timetable=TIMETABLE, rule=Evaluations(20.0), weights=(0.5, 0.5))
    assert marks.count("#") == 10


def test_fewer_than_always_compute_is_said():
    pipe = Captioned()
    with dicache.enable(pipe, evaluations=1) as cache:
        pipe.draw([1])
    assert any("computed more than the evaluations asked for" in note for note in cache.report().to_dict()["warnings"])


def test_what_runs_at_every_step_does_not_count_as_more_and_a_list_of_another_length_is_named():
    rule = Evaluations(14.0)
    steps, computed = 56, torch.tensor([14.0, 15.0])
    (note,) = rule.notes(FinishedRun(torch.tensor([0.3, 0.3]), steps, RunFacts(None), computed))  # a twentieth around
    assert "samples [1] computed more" in note and "15 for 14" in note
    pipe = Captioned()
    with dicache.enable(pipe, evaluations=[6, 8]), pytest.raises(BudgetError, match="evaluations has 2 entries"):
        pipe.draw([1, 2, 3])


def test_what_is_no_number_of_evaluations_is_one_error():
    pipe = Captioned()
    for odd in (0, -1, 2.5, "14", [], [3, 1.5], True, float("inf")):
        with pytest.raises(ModeError, match="evaluations"):
            dicache.enable(pipe.pipe, evaluations=odd)
    with pytest.raises(ModeError, match="exactly one"):
        dicache.enable(pipe.pipe, evaluations=3, speedup=2.0)
