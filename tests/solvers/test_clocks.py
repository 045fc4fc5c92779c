"""Where a run stands: counting the calls of a scheduler that does not, and of a loop that nobody knows."""

import math
from itertools import pairwise
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler
from hypothesis import given

from dicache.solvers.clock import Loop, Order, SchedulerClock, solver, timeline_of
from dicache.solvers.loop_clock import BARELY, DeclaredClock, LoopClock
from dicache.solvers.timeline import DECIDING, half_log_snr

STEPS = st.integers(3, 30)
MEANT = {"as the scheduler counts": lambda t: t, "from 0 to 1": lambda t: t / 1000, "forwards": lambda t: 1000 - t}


def falling(steps: int) -> tuple[float, ...]:
    """Times of an even run, none of which is another one's 1000 - t."""
    return tuple(round(990 - 970 * i / steps, 3) + 0.001 for i in range(steps))


# Counting calls.


@given(steps=STEPS, data=st.data())
@pytest.mark.parametrize("meant", MEANT)
def test_a_call_is_known_by_its_time_however_models_want_it_and_wherever_the_run_begins(meant, steps, data):
    times, first = falling(steps), data.draw(st.integers(0, steps - 1))
    order = Order(times)
    assert [order.next(MEANT[meant](t)) for t in times[first:]] == list(range(first, steps))


@given(steps=STEPS)
def test_the_branches_of_a_step_are_one_call_and_a_time_that_comes_again_is_the_next_one(steps):
    times = falling(steps)
    order = Order(times)
    assert [order.next(t) for t in times for _ in range(3)] == [i for i in range(steps) for _ in range(3)]
    twice = Order(tuple(t for t in times for _ in range(2)))  # solvers of second order come to a time twice
    assert twice.next(times[0]) == 0 and twice.next(times[1]) == 2 and twice.next(times[0]) in (0, 1)


def test_a_run_that_begins_anew_is_counted_from_where_it_begins():
    order = Order(falling(10))
    for time in (*order.times[:5], *order.times[2:5]):
        call = order.next(time)
    assert call == 4


def test_a_time_that_is_none_of_the_schedulers_is_the_next_call():
    order = Order((900.0, 500.0, 100.0))
    assert [order.next(t) for t in (900.0, 777.0, 333.0)] == [0, 1, 2]
    assert Order((900.0, 500.0)).next(123.0) == 0, "nor does a run begin there"


def test_a_scheduler_that_knows_its_next_call_is_believed():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(6)
    clock, latent = SchedulerClock(lambda: scheduler), torch.zeros(1, 4)
    for i, time in enumerate(scheduler.timesteps):
        assert clock.read(time).step.index == i
        latent = scheduler.step(torch.ones(1, 4), time, latent, return_dict=False)[0]
    before = clock.read(time).run
    scheduler.set_timesteps(6)
    again = clock.read(scheduler.timesteps[0])
    assert again.run is not before and again.step.index == 0


def test_the_branches_of_a_first_step_are_one_call_also_where_the_model_is_told_no_time():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(6)
    clock = SchedulerClock(lambda: scheduler)
    assert [clock.read(None).step.index for _ in range(3)] == [0, 0, 0]
    scheduler.step(torch.ones(1, 4), scheduler.timesteps[0], torch.zeros(1, 4))
    assert [clock.read(None).step.index for _ in range(2)] == [1, 1]


def test_a_scheduler_that_counts_its_steps_is_asked_where_it_began():
    scheduler = SimpleNamespace(timesteps=torch.tensor([900.0, 600.0, 300.0]), counter=0, config={})
    clock = SchedulerClock(lambda: scheduler)
    assert clock.read(600.0).step.index == 1
    scheduler.counter = 1
    assert clock.read(300.0).step.index == 2
    assert "cannot be played" in clock.reason


def test_a_second_denoiser_takes_over_where_the_first_one_stopped():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(6)
    first, second = SchedulerClock(lambda: scheduler), SchedulerClock(lambda: scheduler)
    first.read(scheduler.timesteps[0])
    for time in scheduler.timesteps[:3]:
        scheduler.step(torch.ones(1, 4), time, torch.zeros(1, 4))
    reading = second.read(scheduler.timesteps[3])
    assert reading.step.index == 3 and reading.run is first.read(scheduler.timesteps[3]).run
    assert reading.step.timetable is first.timeline.timetable, "worked out once"


def test_a_loop_of_fewer_calls_than_times_is_over_earlier():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(8)
    whole, short = timeline_of(scheduler), timeline_of(scheduler, 0, Loop(calls=5))
    assert len(whole.steps) == 8 and len(short.steps) == 5
    assert short.timetable.sigmas == whole.timetable.sigmas[:5]
    assert timeline_of(scheduler) is whole and timeline_of(scheduler, 0, Loop(options={"s_noise": 1.0})) is not whole


def test_a_solver_is_named_with_what_changes_its_results():
    assert solver(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)) == (
        "FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)"
    )
    assert "prediction_type=v_prediction" in solver(HeunDiscreteScheduler(prediction_type="v_prediction"))


# Loops that nobody knows.


@given(steps=st.integers(2, 40), rising=st.booleans(), long=st.booleans())
def test_a_loop_on_an_even_grid_shows_after_two_calls_how_many_steps_there_are(steps, rising, long):
    unit, clock = 1000.0 if long else 1.0, LoopClock()
    times = [(i / steps if rising else 1 - i / steps) * unit for i in range(steps)]
    read = [clock.read(time).step for time in times]
    assert [step.index for step in read] == list(range(steps))
    expected = [1 - i / steps for i in range(steps)]
    assert [step.time_left for step in read[1:]] == pytest.approx(expected[1:])
    assert [step.total for step in read[1:]] == [steps] * (steps - 1)
    assert [step.progress for step in read[1:]] == pytest.approx([(i + 1) / steps for i in range(1, steps)], abs=BARELY)
    assert all(math.isinf(step.coefficient) for step in read), "no price without latents"


@given(
    shares=st.lists(st.floats(0.1, 0.9), min_size=2, max_size=3, unique_by=lambda u: round(u, 2)),
    seed=st.integers(0, 9),
)
def test_a_step_may_go_as_far_as_the_one_before_or_further_by_as_much_as_that_one_did(shares, seed):
    """On a straight path; the first two steps lead from pure noise."""
    grid = [1.0, *sorted(shares, reverse=True)]
    if min(a - b for a, b in pairwise(grid)) < 0.02:
        return
    generator = torch.Generator().manual_seed(seed)
    clean, eps = torch.randn(2, 2, 16, 16, generator=generator, dtype=torch.float64)
    clock = LoopClock()
    clock.read(grid[0])
    for u, after in pairwise(grid):
        clock.read(after)
        step = clock.watched((1 - u) * clean + u * eps, eps - clean, (1 - after) * clean + after * eps)
    ways = [a - b for a, b in pairwise(grid)]
    expected = min(grid[-1], max(ways[-1], ways[-1] ** 2 / ways[-2]))
    further = 1 + DECIDING / 2 * grid[-1] ** 4
    assert step.coefficient == pytest.approx(expected * further, rel=1e-4)
    assert step.progress == pytest.approx(1 - (grid[-1] - expected), rel=1e-4)
    assert step.half_log_snr == pytest.approx(half_log_snr(1 - grid[-1], grid[-1]), abs=1e-4) and step.timetable is None


def test_outputs_of_another_shape_cannot_be_watched_and_that_is_the_reason_from_then_on():
    clock = LoopClock()
    clock.read(1.0)
    clock.read(0.9)
    latent = torch.randn(2, 4)
    assert math.isinf(clock.watched(latent, torch.randn(2, 8), latent).coefficient)
    assert "have not the shape of the latents" in clock.reason
    before = clock.reason
    clock.watched(latent, latent, latent)
    assert clock.reason == before and clock.steps == []


def test_a_loop_that_turns_back_begins_anew_with_nothing_known():
    clock = LoopClock()
    for time in (1.0, 0.8, 0.6):
        clock.read(time)
    clock.reason = "something"
    assert clock.read(0.9).step.index == 0 and clock.reason == "" and clock.rises is None
    assert clock.read(0.95).step.index == 1 and clock.rises, "the second call shows which way it goes"


# Loops that are declared.


@given(steps=STEPS)
def test_a_declared_loop_is_read_at_its_times_and_begins_a_run_where_it_goes_back(steps):
    times = tuple(1 - i / steps for i in range(steps))
    clock = DeclaredClock(lambda t: (1 - t, t), "flow_prediction", times)
    first, second = ([clock.read(torch.tensor([t])) for t in times] for _ in range(2))
    for readings in (first, second):
        assert [r.step.index for r in readings] == list(range(steps)) and len({id(r.run) for r in readings}) == 1
        assert readings[-1].step.progress == pytest.approx(1.0)
    assert first[0].run is not second[0].run and not clock.reason
