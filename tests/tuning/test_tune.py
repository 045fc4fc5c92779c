"""Tuning: as much is drawn as was said, what was found runs alike and errs less on others than the default, a budget
takes the least work that keeps it, and what cannot be tuned is refused.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dicache
from dicache.errors import DicacheWarning, ScheduleError
from dicache.finders.multistep import FINALISTS, RACED_ON, Multistep
from dicache.measuring.schedule_measurements import Calibration
from dicache.planning.placements import placements, spaced
from dicache.sites import Evaluation
from dicache.types import Timetable
from helpers.calibrating import PROMPTS, Captioned
from pipelines.exact import ExactDenoiser, pictures
from pipelines.loops import ddim, sampled

STEPS = 10
QUIET = {"steps": STEPS, "batch": 4, "call": {"guidance": 4.0}, "progress": False}
SIGMAS = tuple(1 - k / 28 for k in range(28))
TIMETABLE = Timetable(SIGMAS, (1 / 28,) * 28, tuple(float(np.log((1.001 - s) / s)) for s in SIGMAS), 0)


@pytest.fixture(scope="module")
def sampler():
    return dicache.Sampler(ExactDenoiser(pictures()), ddim(), sampled)


@given(st.data())
@settings(deadline=None)
def test_steps_that_are_spaced_evenly_are_as_many_as_asked_for(data):
    steps = data.draw(st.integers(2, 60))
    last = data.draw(st.integers(0, min(3, steps - 1)))
    computed = data.draw(st.integers(last + 1, steps))
    gaps = data.draw(st.lists(st.floats(1e-4, 3.0), min_size=steps, max_size=steps))
    way = spaced(np.cumsum(gaps), computed, last)
    assert len(way) == computed and way[0] == 0 and all(np.diff(way) > 0)
    assert way[computed - last :] == list(range(steps - last, steps))


def test_even_steps_are_every_other_one_and_even_times_differ():
    assert spaced(np.arange(9.0), 5, 1) == [0, 2, 4, 6, 8]
    ways = placements(TIMETABLE, 14, 8, 1)
    assert len(set(ways.values())) >= 6 and ways["even steps"] != ways["even half log SNR"]
    for name, way in ways.items():
        assert len(way) == 14 and way[0] == 0 and way[-1] == 27 and max(np.diff(way)) <= 9, name
        assert ("two first" in name) <= (way[1] == 1)
    assert all(max(np.diff([*way, 28])) <= 4 for way in placements(TIMETABLE, 10, 3, 1).values())


def test_as_much_is_drawn_as_was_said_and_on_those_that_were_agreed_to(capsys):
    plans, pipe = [], Captioned()

    def approve(plan):
        plans.append(plan)
        return 9

    options = QUIET | {"progress": True, "approve": approve, "speedup": 2}
    schedule = dicache.tune(pipe, PROMPTS, **options)
    said, (plan,) = capsys.readouterr().err, plans
    drawn = plan.of(9)
    assert plan.prompts == 12 and plan.exact and schedule.origin.prompts == 9
    assert pipe.runs == 1 + drawn.runs, "the first batch tells the steps"
    assert f"for {4 + drawn.samples} samples" in said
    assert f"12 prompts (yours): {plan.samples} samples to go, in {plan.runs} runs, about" in said
    assert "the default with as many computed steps errs" in said
    assert schedule.work <= 0.5 and schedule.origin.finder == "multistep"


@pytest.mark.parametrize("prompts", [3, 13])
def test_agreeing_to_what_there_is_not_is_an_error(prompts):
    with pytest.raises(ScheduleError, match=f"{prompts} prompts were agreed to. Expected 4 or more, of the 12"):
        dicache.tune(Captioned(), PROMPTS, **QUIET, speedup=2, approve=lambda plan: prompts)


def test_what_was_tuned_errs_less_than_the_default_on_others(sampler):
    """Three and a half times less here; a fifth is asked for."""
    names = [str(k) for k in range(16)]
    schedule = dicache.tune(sampler, names, steps=28, batch=16, speedup=2.5, progress=False)
    unseen = [torch.Generator().manual_seed(1000 + k) for k in range(16)]

    def drawn():
        return sampler(names, 28, [torch.Generator().manual_seed(g.initial_seed()) for g in unseen])[0].flatten(1)

    plain, errors = drawn(), []
    for mode in ({"schedule": schedule}, {"speedup": 1 / schedule.work}):
        with dicache.enable(sampler, **mode) as cache:
            errors.append(((drawn() - plain).norm(dim=1) / plain.norm(dim=1)).mean())
        assert cache.report().compute_speedup >= 2.4
    assert errors[0] < 0.8 * errors[1]
    assert errors[0] == pytest.approx(schedule.error, rel=1.0), "what it says of itself holds for others too"


def test_a_budget_takes_the_fewest_steps_that_keep_it(sampler):
    names = [str(k) for k in range(8)]
    by_speed = dicache.tune(sampler, names, steps=20, speedup=2, progress=False)
    by_budget = dicache.tune(sampler, names, steps=20, error_budget=by_speed.error, progress=False)
    assert by_budget.error <= by_speed.error and by_budget.work <= by_speed.work
    with pytest.warns(DicacheWarning, match="nothing can be skipped within a budget of 0"):
        everything = dicache.tune(sampler, names, steps=20, error_budget=0.0, progress=False)
    assert everything.letters == "#" * 20 and everything.work == 1


def test_the_winner_of_the_race_is_fitted_on_more_and_is_no_worse_than_any(sampler):
    calibration = Calibration([str(k) for k in range(12)], 20, batch=12)
    measurements, finder = calibration.on(sampler, Evaluation()), Multistep()
    ranked = finder.race(measurements, 8)
    assert [error for error, _, _ in ranked] == sorted(error for error, _, _ in ranked) and len(ranked) > FINALISTS
    assert {key[2] for key in measurements.slopes} == {RACED_ON}
    schedule = finder.find(sampler, Evaluation(), calibration, cost=8 / 20)
    assert {key[2] for key in measurements.slopes} == {RACED_ON, 12}
    finalists = [table for _, _, table in ranked[:FINALISTS]]
    errors = [measurements.errors([t], finder.coefficients(measurements, t)).mean() for t in finalists]
    assert schedule.error == min(errors) and any(np.array_equal(schedule.table, table) for table in finalists)


def test_workers_find_the_same(sampler):
    options = {"steps": STEPS, "batch": 4, "speedup": 2, "progress": False}
    here = dicache.tune(sampler, PROMPTS, **options)
    with ThreadPoolExecutor(2) as threads:
        there = dicache.tune(sampler, PROMPTS, **options, executor=threads)
    assert np.array_equal(here.table, there.table) and here.error == there.error


def test_a_default_that_errs_less_is_said(sampler, monkeypatch):
    monkeypatch.setattr("dicache.tuning.tune.default_error", lambda measurements, schedule: 0.0)
    with pytest.warns(DicacheWarning, match="the default errs less on these prompts"):
        dicache.tune(sampler, PROMPTS, steps=STEPS, speedup=2, progress=False)


def test_what_cannot_be_tuned_is_refused_by_name(sampler):
    for pipe, prompts, options, message in (
        (sampler, PROMPTS, {}, "one of speedup and error_budget"),
        (sampler, PROMPTS, {"speedup": 2, "error_budget": 0.1}, "one of speedup and error_budget"),
        (sampler, PROMPTS, {"speedup": 0.5}, "speedup is 0.5. Expected a finite number from 1 on"),
        (sampler, PROMPTS, {"error_budget": float("nan")}, "error_budget is nan"),
        (sampler, PROMPTS[:3], {"speedup": 2}, "3 prompts are too few to tune on. Expected 4 or more"),
        (sampler, "a text", {"speedup": 2}, "prompts is the text"),
        (sampler.transformer, PROMPTS, {"speedup": 2}, "the loop as a dicache.Sampler"),
        (sampler, PROMPTS, {"speedup": 50}, "multistep found nothing that executes 0.02 of the work"),
    ):
        with pytest.raises(ScheduleError, match=message):
            dicache.tune(pipe, prompts, steps=STEPS, progress=False, **options)
    assert "step" not in vars(sampler.scheduler) and not sampler.transformer._forward_hooks
