"""What goes to `logging`: the report's warnings, once when a run is over, and nothing is printed."""

import logging
import subprocess
import sys
from typing import Any

import pytest

import dicache
from dicache.reporting.log import LOGGER, log
from dicache.reporting.notes import Alarm, audits
from dicache.reporting.report import Report
from pipelines.neighbours import quiet
from pipelines.tiny import draw_flux, make_flux
from pipelines.videos import VIDEOS

STEPS = 8


def lines(caplog: Any) -> list[str]:
    return [record.getMessage().partition(": ")[2] for record in caplog.records if record.name == "dicache"]


def test_every_warning_of_a_run_is_logged_once_when_it_is_over(caplog):
    caplog.set_level(logging.INFO, "dicache")
    pipe = quiet(make_flux())
    with dicache.enable(pipe, error_budget=0.5) as cache:
        for _ in range(2):
            caplog.clear()
            draw_flux(pipe, [1, 2], STEPS)
            assert lines(caplog) == cache.report().warnings != []
            str(cache.report())
        caplog.clear()
    cache.report()
    assert lines(caplog) == []
    with dicache.enable(pipe, error_budget=0.5) as cache, pytest.raises(KeyError):
        draw_flux(pipe, [1], STEPS, callback_on_step_end=lambda *_: {}["stop"])
    assert lines(caplog) == []


def test_what_passed_a_budget_or_broke_a_promise_is_a_warning_and_the_rest_is_information(caplog):
    caplog.set_level(logging.INFO, "dicache")
    pipe = quiet(make_flux())
    with dicache.enable(pipe, error_budget=0.5) as cache:
        draw_flux(pipe, [1, 2], STEPS)
    report = cache.report()
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    caplog.clear()
    log(Report(report.trace, report.budget * 0 + 1e-6, ["noted"], None, None, {0: 0.5}))
    levels = {message: record.levelno for message, record in zip(lines(caplog), caplog.records, strict=True)}
    assert {m for m, level in levels.items() if level == logging.WARNING} == {m for m in levels if "passed" in m}
    assert sum("passed" in message for message in levels) == 2 and levels["noted"] == logging.INFO
    drifted = {"samples": 5, "within": 0.2, "drift": True}
    assert [isinstance(note, Alarm) for note in (*audits(drifted), *audits({**drifted, "drift": False}))] == [
        True,
        False,
    ]


def test_the_end_of_a_run_waits_no_more_for_the_device_than_the_step_does(monkeypatch):
    """Whatever is told at the end is what the host knew."""
    pipe, looked = quiet(make_flux()), []
    with dicache.enable(pipe, config=dicache.presets.fora(3)) as cache:
        draw_flux(pipe, [1, 2], STEPS)
        run = cache.session.run
        assert run.complete
        monkeypatch.setattr(type(run), "look", lambda self: looked.append(self))
        draw_flux(pipe, [1, 2], STEPS)
        assert not looked
        cache.report()
        assert looked


def test_a_library_prints_nothing_of_its_own():
    assert any(isinstance(handler, logging.NullHandler) for handler in LOGGER.handlers)
    code = "import dicache.reporting.log as l; l.LOGGER.warning('a budget was passed')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "budget" not in done.stdout + done.stderr


def test_a_run_of_two_denoisers_is_logged_when_both_are_through(caplog):
    caplog.set_level(logging.INFO, "dicache")
    pair = VIDEOS["Wan 2.2, two experts"]
    pipe = quiet(pair.make())
    with dicache.enable(pipe, error_budget=0.5) as cache:
        pair.draw(pipe, [1], STEPS)
        assert lines(caplog) == cache.report().warnings
