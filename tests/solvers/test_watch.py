"""What is read off a loop by watching it, step by step, on paths that are known."""

import math
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from dicache.approximators.noise import predicted
from dicache.solvers.loop_clock import ROWS_APART, DeclaredClock, LoopClock
from dicache.solvers.prediction import PREDICTIONS
from dicache.solvers.timeline import first_order, half_log_snr, noise_share, timeline
from dicache.solvers.watch import UNDECIDED, LoopPath, path_of_loop, seen, unseen

PATHS = {
    "straight": lambda u: (1 - u, u),
    "circle": lambda u: (math.cos(u * math.pi / 2), math.sin(u * math.pi / 2)),
    "exploding": lambda u: (1.0, math.exp(6 * u) / 10),
}
READ = [
    ("straight", "flow_prediction"),
    ("straight", "flow_prediction, reversed"),
    ("circle", "epsilon"),
    ("circle", "sample"),
    ("circle", "v_prediction"),
    ("exploding", "epsilon"),
]
"""Paths with what may be predicted on them."""


def steps_along(path: str, prediction: str, grid: list[float], dtype=torch.float32, rows: int = 2):
    """Steps of first order through levels, as `seen` gets them."""
    generator = torch.Generator().manual_seed(0)
    clean, eps = torch.randn(2, rows, 16, 16, generator=generator, dtype=torch.float64)
    levels = [PATHS[path](u) for u in grid]
    latents = [(a * clean + s * eps).to(dtype) for a, s in levels]
    times = [s for _, s in levels] if path == "exploding" else grid  # as large as the noise, or any other
    for q, (level, between) in enumerate(zip(levels, pairwise(times), strict=False)):
        data, noise = PREDICTIONS[prediction](*level)
        yield seen(latents[q], (data * clean + noise * eps).to(dtype), latents[q + 1], between)


@pytest.mark.parametrize(("path", "prediction"), READ)
@given(steps=st.integers(5, 30), bend=st.floats(0.5, 2.0))
def test_a_path_is_read_off_its_steps(path, prediction, steps, bend):
    grid = [float(u) ** bend for u in np.linspace(1, 0.02, steps + 1)]
    read = path_of_loop(list(steps_along(path, prediction, grid)))
    assert isinstance(read, LoopPath), read
    # In pure noise an output that is that noise tells nothing: then the path begins one step on.
    assert len(read.levels) >= steps
    for (signal, noise), u in zip(read.levels, grid[-len(read.levels) :], strict=True):
        a, s = PATHS[path](u)
        assert noise / (signal + noise) == pytest.approx(s / (a + s), abs=0.03)
    got, (a, s) = read.mixture(read.levels[-2]), PATHS[path](grid[-2])
    data, eps = PREDICTIONS[prediction](a, s)
    assert got[0] * eps == pytest.approx(got[1] * data, abs=0.1), "the same output, up to its size"


def test_one_step_decides_nothing_and_what_is_left_over_is_a_reason():
    first, second, *_ = steps_along("straight", "flow_prediction", [1.0, 0.8, 0.6, 0.4])
    assert path_of_loop([first]) == UNDECIDED
    assert isinstance(path_of_loop([first, second]), LoopPath)
    assert "0.5 of it is left over" in path_of_loop([first, second._replace(left=0.5)])
    odd = second._replace(from_latent=1.7)
    assert path_of_loop([first, odd]) == "what the loop makes of an output is none of the ways known"


def test_what_follows_a_step_of_which_nothing_was_told_counts():
    steps = list(steps_along("straight", "flow_prediction", [1.0, 0.8, 0.6, 0.4, 0.2]))
    read = path_of_loop([unseen((1.0, 0.8)), *steps[1:]])
    assert isinstance(read, LoopPath)
    np.testing.assert_allclose(read.levels, [(1 - u, u) for u in (0.8, 0.6, 0.4, 0.2)], atol=1e-4)


def test_noise_drawn_anew_is_left_over():
    latent, output = torch.randn(2, 2, 8, 8)
    assert seen(latent, output, 0.9 * latent - 0.1 * output, (1.0, 0.9)).left < 1e-5
    assert seen(latent, output, 0.9 * latent + 0.3 * torch.randn(2, 8, 8), (1.0, 0.9)).left > 0.1
    nothing = seen(latent, 2 * latent, 0.5 * latent, (1.0, 0.9))
    assert math.isnan(nothing.from_latent), "of an output along the latent nothing can be told"


def test_parts_that_nothing_moves_are_left_out():
    """A picture to go by stands beside the latent, and the loop leaves it as it is."""
    latent, output = torch.randn(2, 2, 8, 8)
    after = latent + 0.1 * output
    after[:, :3] = latent[:, :3]
    step = seen(latent, output, after, (1.0, 0.9))
    assert step.left < 1e-5 and step.from_output == pytest.approx(0.1, rel=1e-4)


def test_a_clock_without_latents_knows_no_price_and_rows_apart_are_a_reason():
    clock = LoopClock()
    assert math.isinf(clock.read(torch.tensor([[0.2], [0.9]])).step.coefficient)
    assert clock.reason == ROWS_APART


def test_a_watching_clock_prices_the_way_that_a_step_may_go():
    clock, grid = LoopClock(), [1.0, 0.9, 0.8, 0.7, 0.6]
    clean, eps = torch.randn(2, 2, 16, 16, dtype=torch.float64)
    clock.read(grid[0])
    for u, after in pairwise(grid):
        clock.read(after)
        step = clock.watched((1 - u) * clean + u * eps, eps - clean, (1 - after) * clean + after * eps)
    assert not clock.reason
    assert step.sigma == pytest.approx(0.6) and step.half_log_snr == pytest.approx(half_log_snr(0.4, 0.6))
    assert 0.1 <= step.coefficient <= 0.15 and step.progress == pytest.approx(0.5, abs=1e-3)
    x = 0.4 * clean + 0.6 * eps
    torch.testing.assert_close(step.clean[0] * x + step.clean[1] * (eps - clean), clean, rtol=1e-3, atol=1e-3)
    assert clock.axis[1.0][0] == pytest.approx(1.0) and len(clock.axis) == 5
    clock.read(1.0)
    assert clock.axis == {} and clock.index == 0, "time moved back: another run"


def test_what_a_user_declares_is_what_playing_a_scheduler_says():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(12)
    played, sigmas = timeline(scheduler), scheduler.sigmas[:-1].tolist()
    declared = first_order(sigmas, [(1 - s, s) for s in sigmas], "flow_prediction")
    for name in ("sigmas", "coefficients", "half_log_snrs"):
        np.testing.assert_allclose(getattr(declared.timetable, name), getattr(played.timetable, name), atol=1e-6)
    np.testing.assert_allclose(declared.clean, played.clean, atol=1e-5)
    clock = DeclaredClock(lambda t: (1 - t, t), "flow_prediction", sigmas)
    first = clock.read(sigmas[0])
    assert [clock.read(s).step.index for s in sigmas] == list(range(12)) and clock.read(sigmas[3]).run is not first.run


@given(st.floats(0.01, 0.99))
def test_the_share_of_noise_comes_back(noise):
    assert noise_share(half_log_snr(1 - noise, noise)) == pytest.approx(noise, abs=1e-9)


def test_learned_variances_are_no_prediction():
    latent, output = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 8, 8)
    assert predicted(output, latent).shape == latent.shape
    assert predicted(latent, latent) is latent and predicted(output[:, :5], latent).shape[1] == 5
