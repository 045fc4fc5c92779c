"""Schedules that people write or edit, and what a report says that a schedule is worth."""

import json
import math

import numpy as np
import pytest

import dicache
from dicache.errors import ScheduleError
from dicache.finders.law_plan import Law
from dicache.finders.multistep import Multistep
from dicache.measuring.schedule_measurements import Calibration
from dicache.regressions.fit_coefficients import fit
from dicache.schedules.action_table import lines_of
from dicache.schedules.pareto import ParetoSet
from dicache.schedules.schedule import Schedule
from dicache.sites import Evaluation, Spans
from helpers.calibrating import PROMPTS, Captioned

LETTERS, CALL = "##=#/=##", {"guidance": 4.0}


@pytest.fixture(scope="module")
def pipe():
    return Captioned()


@pytest.fixture(scope="module")
def written(pipe):
    return Schedule.from_letters(pipe, LETTERS, PROMPTS[:2], call=CALL)


@pytest.fixture(scope="module")
def fitted(pipe):
    calibration = Calibration(PROMPTS[:2], len(LETTERS), call=CALL)
    return Multistep(ridge=1).find(pipe, Evaluation(), calibration, cost=0.75)


def warnings_of(pipe, schedule, steps=8, guidance=4.0):
    with dicache.enable(pipe, schedule=schedule) as cache:
        pipe.draw([0, 1], steps, guidance)
    return cache.report().warnings


def test_what_is_written_runs_costs_and_loses_what_it_says(pipe, written, tmp_path):
    with dicache.enable(pipe, schedule=written) as cache:
        latents = pipe.draw([0, 1], len(LETTERS))
    assert cache.report().strip(0) == written.letters == LETTERS and (cache.trace.executed == written.macs).all()
    exact = pipe.draw([0, 1], len(LETTERS))
    lost = ((latents - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).mean()
    assert written.error == pytest.approx(float(lost), rel=1e-3) and written.origin.finder == "hand"
    written.save(tmp_path / "s.json")
    assert Schedule.load(tmp_path / "s.json").letters == LETTERS
    inner = Schedule.from_letters(pipe, ["#####", "#=#=#", "#####"], PROMPTS[:1], sites=Spans(), call=CALL, steps=3)
    assert inner.letters == "##### #=#=# #####" and inner.work < 1


@pytest.mark.parametrize(
    ("letters", "message"),
    [
        ("=#=#", "does not compute its first step"),
        ("##x#", "'x' is no action"),
        ("", "is no schedule"),
        (["##", "#="], r"Expected \(2, 1\): steps, sites"),
        ("##=?", "need `dynamic`"),
        ("##=*", "need fitted coefficients"),
    ],
)
def test_what_is_no_schedule_is_refused_by_name(pipe, letters, message):
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_letters(pipe, letters, PROMPTS[:1], call=CALL)
    with pytest.raises(ScheduleError, match="5 letters for 6 steps"):
        Schedule.from_letters(pipe, "##=#=", PROMPTS[:1], steps=6, call=CALL)


@pytest.mark.parametrize(
    "edit",
    [
        lambda facts: facts.update(actions=list("##====##")),
        lambda facts: facts.update(actions=list("##/#==##")),
        lambda facts: facts["predicted"].update(macs=1.0),
        lambda facts: (facts.update(actions=list("##/#==##")), facts["predicted"].pop("macs")),
    ],
    ids=["cheaper", "as dear", "other MACs", "no MACs"],
)
def test_an_edited_file_runs_and_forgets_what_was_predicted_of_others(pipe, written, tmp_path, edit):
    path = tmp_path / "s.json"
    written.save(path)
    facts = json.loads(path.read_text())
    edit(facts)
    path.write_text(json.dumps(facts))
    edited = Schedule.load(path)
    assert lines_of(edited.table) == facts["actions"] and edited.error is None
    with dicache.enable(pipe, schedule=edited) as cache:
        pipe.draw([0], len(LETTERS))
    assert (cache.trace.executed == edited.macs).all()
    assert [note for note in cache.report().warnings if "edited in its file" in note]
    edited.save(path)
    assert not Schedule.load(path).edited


def test_what_a_file_predicts_and_who_found_it_may_be_left_out(pipe, written, tmp_path):
    path = tmp_path / "s.json"
    written.save(path)
    facts = json.loads(path.read_text())
    del facts["predicted"], facts["finder"]
    path.write_text(json.dumps(facts))
    bare = Schedule.load(path)
    assert (bare.macs, bare.error, bare.edited) == (written.macs, None, False)
    assert not [note for note in warnings_of(pipe, bare) if "schedule" in note]


def test_a_report_says_what_the_schedule_lost_where_it_was_found(pipe, written, fitted):
    for schedule in (written, fitted):
        (note,) = [note for note in warnings_of(pipe, schedule) if "this schedule erred by" in note]
        assert f"erred by {schedule.error:.3g} in the mean on the 2 prompts" in note


def test_coefficients_at_another_guidance_are_noted_and_only_they(pipe, written, fitted):
    (note,) = [note for note in warnings_of(pipe, fitted, guidance=2.0) if note.startswith("guidance")]
    assert "fitted at 4, this run has 2" in note
    assert not [n for n in warnings_of(pipe, fitted) + warnings_of(pipe, written, guidance=2.0) if "fitted at" in n]


def test_what_is_moved_to_other_steps_was_not_measured_there(pipe, written):
    notes = warnings_of(pipe, written.resampled(), steps=4)
    assert [n for n in notes if "made at 8, this run has 4" in n and "not measured" in n]
    assert not [n for n in notes if "erred by" in n]
    assert [n for n in warnings_of(pipe, written.resampled()) if "erred by" in n]


@pytest.mark.parametrize(("kind", "moves"), [("ridge", True), ("scale_shift", False), ("affine", False)])
def test_only_what_was_not_fitted_step_by_step_is_moved(pipe, kind, moves):
    coefficients = fit(pipe, PROMPTS[:2], steps=8, kind=kind, progress=False, guidance=4.0)
    basis = Calibration(PROMPTS[:2], 8, call=CALL).on(pipe, Spans()).basis
    table = np.zeros(basis.shape, np.uint8)
    table[1::2] = 4
    plan = Schedule(basis, table, Schedule.from_letters(pipe, "##", PROMPTS[:1], call=CALL).origin, fitted=coefficients)
    if moves:
        assert plan.resampled().resample
        return
    with pytest.raises(ScheduleError, match="cannot be moved"):
        plan.resampled()


def test_a_run_of_other_steps_is_not_told_to_move_what_cannot_be(pipe, written, fitted):
    for schedule, told in ((written, True), (fitted, False)):
        with pytest.raises(ScheduleError, match="made at 8, this run has 5") as raised:
            warnings_of(pipe, schedule, steps=5)
        assert ("resampled" in str(raised.value)) is told
    with pytest.raises(ScheduleError, match="cannot be moved to others"):
        fitted.resampled()


def test_a_path_of_nothing_and_arrays_that_are_lost_say_what_to_do(fitted, tmp_path):
    with pytest.raises(ScheduleError, match=r"Give the path of a schedule.*from_letters") as raised:
        dicache.enable(Captioned(), schedule="##=#=#=#")
    assert "ind it again" not in str(raised.value)
    fitted.save(tmp_path / "s.json")
    (tmp_path / "s.safetensors").unlink()
    with pytest.raises(ScheduleError, match=r"s\.json and s\.safetensors belong together"):
        Schedule.load(tmp_path / "s.json")


def test_a_schedule_and_a_front_print_in_lines_that_are_read(pipe, written):
    assert (
        repr(written)
        == f"<dicache.Schedule {LETTERS}: {written.work:.3f} of the work, error {written.error:.4f} (hand)>"
    )
    front = Law().find(pipe, Evaluation(), Calibration(PROMPTS[:2], len(LETTERS), call=CALL))
    assert isinstance(front, ParetoSet)
    first, *rows = str(front).splitlines()
    assert first.startswith(f"ParetoSet of {len(front.members)}") and len(rows) == len(front.members)
    assert all(member.letters in row for member, row in zip(front.members, rows, strict=True))


def test_of_a_front_no_more_is_taken_than_was_asked_for(pipe):
    front = Law().find(pipe, Evaluation(), Calibration(PROMPTS[:2], len(LETTERS), call=CALL))
    assert front.at(0.49).work <= 0.49
    half = front.at(0.5)
    assert half.letters.count("#") == 4 and half.work == pytest.approx(0.5) and math.isfinite(half.error)
