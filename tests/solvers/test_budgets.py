"""A budget is one of the final latent under every scheduler of diffusers and in loops written by hand, on a denoiser
that is exact at every noise. What is drawn and measured is told by rows; the laws are of all of them.
"""

import inspect
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import dicache
from dicache.solvers.play import play
from dicache.solvers.prediction import path_of
from helpers.fuzzing import LONG
from pipelines.exact import Run, draw, pipeline, scales
from pipelines.loops import LOOPS, noise
from pipelines.schedulers import Case, cases

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),  # of diffusers' DPM2
    pytest.mark.long,
]
BUDGETS = (0.001, 0.01, 0.05, 0.2)
STEPS = (20, 50, 8, 4) if LONG > 1 else (20,)
SAMPLES = 16 if LONG > 1 else 8
ROUNDED = 1e-6


class Row(NamedTuple):
    """One run with a budget."""

    name: str
    budget: float
    steps: int
    random: bool
    errors: Tensor
    """True ones, (B,)."""
    estimates: Tensor
    report: dicache.Report
    work: float
    """Rows that the blocks ran for, over those of the uncached run."""
    calls: tuple[int, int]
    """Of the denoiser: with the cache, and uncached."""

    @property
    def engaged(self) -> bool:
        return self.report.compute_speedup > 1

    @property
    def notes(self) -> str:
        return " ".join(self.report.to_dict()["warnings"])


def measured(name: str, net: Any, target: Any, drawn: Any, budgets: Any, steps: int, random: bool) -> list[Row]:
    def ran() -> tuple[Tensor, int, int]:
        net.calls = net.blocks[-1].rows = 0
        return drawn(), net.calls, net.blocks[-1].rows

    plain, calls, worked = ran()
    rows = []
    for budget in budgets:
        with dicache.enable(target, error_budget=budget) as cache:
            latents, own_calls, own_rows = ran()
            report = cache.report()
        errors = (latents - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)
        estimates = torch.tensor([sample["estimated_error"] for sample in report.to_dict()["samples"]])
        if budget == 0:
            assert torch.equal(latents, plain), f"{name}: budget 0 changes the result"
            continue
        made = (own_calls, calls)
        rows.append(Row(name, budget, steps, random, errors, estimates, report, own_rows / worked, made))
    return rows


def of_case(case: Case, steps: int, budgets: Any) -> list[Row]:
    scheduler = case.make()

    def reset(scheduler: Any) -> None:
        case.set_times(scheduler, steps)

    reset(scheduler)
    responses, takes = play(scheduler), "generator" in inspect.signature(scheduler.step).parameters
    run = Run(reset, path_of(responses), responses.scales.tolist(), takes, scales(scheduler))
    pipe = pipeline(scheduler)

    def drawn() -> Tensor:
        return draw(pipe, run, range(SAMPLES))

    calls = len(responses.times)
    return measured(case.name, pipe.transformer, pipe, drawn, budgets, calls, responses.random)


@pytest.fixture(scope="module")
def scheduled() -> list[Row]:
    """Of every scheduler; in the short form each with two of the budgets."""
    rows = []
    for number, (case, steps) in enumerate(product(cases(), STEPS)):
        some = (0.0, *BUDGETS) if LONG > 1 else (BUDGETS[number % 3], BUDGETS[3]) if number % 4 else (0.0, BUDGETS[3])
        rows += of_case(case, steps, some)
    return rows


@pytest.fixture(scope="module")
def looped() -> list[Row]:
    rows = []
    for name, loop in LOOPS.items():
        net, first = loop.make(), noise(range(SAMPLES))

        def drawn(loop=loop, net=net, first=first) -> Tensor:
            with torch.no_grad():
                return loop.run(net, first, 24)

        rows += measured(name, net, net, drawn, (0.0, *BUDGETS), 24, False)
    return rows


@pytest.fixture(scope="module", params=["scheduled", "looped"])
def rows(request: pytest.FixtureRequest) -> list[Row]:
    return request.getfixturevalue(request.param)


def share(rows: list[Row], holds: Any) -> float:
    return float(torch.cat([holds(row) for row in rows]).float().mean())


def test_a_true_error_is_what_was_estimated_or_not_far_above(rows):
    engaged = [row for row in rows if row.engaged]
    assert share(engaged, lambda row: row.errors <= 2 * row.estimates + ROUNDED) >= 0.9
    far = [(row.name, row.budget) for row in engaged if (row.errors > 4 * row.estimates + ROUNDED).any()]
    assert not far


def test_a_budget_is_hardly_ever_passed_twice_over(rows):
    assert share(rows, lambda row: row.errors <= 2 * row.budget) >= 0.95


def test_an_estimate_is_not_far_above_the_true_error(rows):
    ratios = [row.estimates / row.errors.clamp(min=1e-12) for row in rows if row.engaged and row.steps >= 20]
    assert float(torch.cat(ratios)[torch.cat(ratios) > 0].median()) <= 3


def test_where_it_engages_it_saves(rows):
    wide = [row for row in rows if row.engaged and row.budget == 0.2 and row.steps >= 20 and not row.random]
    assert wide and not {row.name: row.work for row in wide if row.work > 0.6}


def test_calls_and_work_are_those_that_happened(rows):
    for row in rows:
        assert row.calls[0] == row.calls[1], row.name
        told = row.report.to_dict()
        if row.name != "beginning anew":  # what is told is of the last run
            assert 1 / row.report.compute_speedup == pytest.approx(row.work, rel=0.005), row.name
        assert told["complete"] and len(told["samples"]) == SAMPLES


def test_every_scheduler_is_cached(scheduled):
    assert not {row.name for row in scheduled if row.budget == 0.2 and row.steps >= 20 and not row.engaged}


def test_a_loop_whose_levels_are_declared_is_planned_ahead():
    loop, steps, first = LOOPS["flow up"], 24, noise(range(SAMPLES))
    net, times = loop.make(), torch.linspace(0, 1, steps + 1).tolist()[:-1]
    family = dicache.Family(
        model="ExactDenoiser",
        stacks=("blocks",),
        noise_schedule=lambda t: (t, 1 - t),
        prediction="flow_prediction, reversed",
        times=times,
    )
    with torch.no_grad():
        plain = loop.run(net, first, steps)
        with dicache.enable(net, error_budget=0.05, family=family) as cache:
            cached, run = loop.run(net, first, steps), cache.session.run
    told = cache.report().to_dict()
    assert run.step.timetable is not None and len(told["steps"]) == steps and told["complete"]
    errors = (cached - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)
    assert bool((errors <= 0.1).all()) and told["compute_speedup"] > 1.5


def test_a_loop_that_cannot_be_watched_computes_and_says_why(looped):
    for row in looped:
        refused = LOOPS[row.name].refused
        assert not (row.engaged and refused), row.name
        assert row.engaged or refused or row.budget < 0.2, row.name
        assert refused in row.notes, row.name
