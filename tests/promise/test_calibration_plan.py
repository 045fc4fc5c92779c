"""What is said of a calibration beforehand: runs exactly, and what the test allows."""

import numpy as np
import pytest

from dicache.cli.plans import worth
from dicache.errors import ProfileError
from dicache.measuring.calibrate import calibrate
from dicache.measuring.calibration_plan import CalibrationPlan, TimedRun, expected_use, planned_work, seconds_of, works
from dicache.promise.choose_profile import SHIPPED
from dicache.promise.profile import load_profile
from dicache.types import Timetable
from helpers.calibrating import GUIDED, LEVELS, PROMPTS, STEPS, Captioned

QUIET = {"steps": STEPS, "batch": 4, "levels": LEVELS, "call": GUIDED, "progress": False}
SIGMAS = tuple(1 - k / 28 for k in range(28))
TIMETABLE = Timetable(
    SIGMAS,
    (1 / 28,) * 28,
    tuple(float(np.log((1 - s) / s)) if s < 1 else -4.0 for s in SIGMAS),
    0,
)


@pytest.mark.parametrize(("prompts", "confidence", "misses"), [(64, 0.9, 2), (480, 0.9, 39), (21, 0.9, -1)])
def test_what_may_miss_is_what_the_test_allows(prompts, confidence, misses):
    assert CalibrationPlan(prompts, 18, 8).misses(confidence) == misses


def test_the_next_number_of_prompts_that_buys_a_miss_is_said():
    *_, last = worth(CalibrationPlan(64, 18, 8))
    assert last.startswith("From 65 prompts on one more may miss at 0.9"), "of 65 it is three"
    assert CalibrationPlan(65, 18, 8).misses(0.9) == 3
    *_, last = worth(CalibrationPlan(11, 18, 8))
    fewest = next(n for n in range(12, 40) if CalibrationPlan(n, 18, 8).misses(0.8) == 1)
    assert f"From {fewest} prompts on one more may miss at 0.8" in last


def test_as_much_is_drawn_as_was_said_and_those_that_were_agreed_to():
    plans, pipe = [], Captioned()

    def approve(plan):
        plans.append(plan)
        return 9

    profile = calibrate(pipe, PROMPTS, **QUIET, approve=approve)
    (plan,) = plans
    assert (plan.runs, plan.samples, plan.batches, plan.undrawn) == (4, 48, 12, 40) and plan.remaining > 0
    assert profile.prompts == 9 and pipe.runs == plan.of(9).batches == 12
    assert profile.about["cost"]["samples"] == plan.of(9).samples == 36
    assert 0 < profile.about["cost"]["macs"] < profile.about["cost"]["uncached macs"]
    whole = calibrate(Captioned(), PROMPTS, **QUIET)
    assert all(np.array_equal(whole.arrays[key][:8], profile.arrays[key][:8]) for key in ("work", "loss.latent"))


@pytest.mark.parametrize("prompts", [0, 7, 13])
def test_agreeing_to_what_there_is_not_is_an_error(prompts):
    with pytest.raises(ProfileError, match=f"{prompts} prompts were agreed to. Expected 8 or more, of the 12"):
        calibrate(Captioned(), PROMPTS, **QUIET, approve=lambda plan: prompts)


def test_what_a_checkpoint_holds_is_neither_drawn_nor_counted(tmp_path):
    plans = []

    def approve(plan):
        plans.append(plan)
        return plan.prompts

    calibrate(Captioned(), PROMPTS, **QUIET, checkpoint=tmp_path, approve=approve)
    calibrate(Captioned(), PROMPTS, **QUIET, checkpoint=tmp_path, approve=approve)
    assert [plan.undrawn for plan in plans] == [40, 0] and plans[1].remaining == 0


def test_more_prompts_use_more_of_a_budget_and_too_few_none():
    profile = load_profile(SHIPPED / "reference-28-guided.json")
    few, many = (expected_use(profile, n, 0.9) for n in (22, 480))
    assert 0 < few < many < 1 and expected_use(profile, 21, 0.9) is None


def test_a_larger_budget_is_planned_with_less_work_and_a_larger_amplitude_with_more():
    shares = [planned_work(TIMETABLE, level, 0.5) for level in (0.001, 0.01, 0.1, 1.0)]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.7 and shares[-1] < 0.3
    assert planned_work(TIMETABLE, 0.03, 2.0) > planned_work(TIMETABLE, 0.03, 0.2)


def test_the_law_is_scaled_to_the_work_that_was_seen():
    levels = (0.005, 0.02, 0.08)
    seen = planned_work(TIMETABLE, levels[1], 0.8)
    shares, own = works(TIMETABLE, levels, 1, seen)
    assert shares == pytest.approx([planned_work(TIMETABLE, level, 0.8) for level in levels], abs=0.08)
    assert all(0 <= alone < share for alone, share in zip(own, shares, strict=True)), "the first two steps are shared"
    assert works(TIMETABLE, (0.02, 0.02), 1, seen)[1][1] == 0


def test_time_is_a_line_in_what_runs_or_that_of_the_middle_where_nothing_is_known_of_it():
    uncached = TimedRun(10.0, 1.0, 1.0)
    assert seconds_of(uncached, TimedRun(4.0, 0.5, 0.4), None, (0.1, 0.2), 1) == 18.0
    levels = (0.005, 0.02, 0.08)
    _, own = works(TIMETABLE, levels, 1, 0.6)
    expected = 10 + sum(2 + 8 * share for share in own)
    assert seconds_of(uncached, TimedRun(6.0, 0.6, 0.5), TIMETABLE, levels, 1) == pytest.approx(expected)
