"""What denoisers predict, what latents are mixed of, and what is known of a run from both."""

import math
from itertools import pairwise
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from dicache.solvers.exact import Exact
from dicache.solvers.output_influence import velocity_gain
from dicache.solvers.play import Responses
from dicache.solvers.prediction import CLOSE, PREDICTIONS, path_of
from dicache.solvers.same_steps import differs
from dicache.solvers.timeline import (
    DECIDING,
    LEAST,
    Timeline,
    estimates,
    first_order,
    half_log_snr,
    noise_share,
    timeline,
)
from dicache.types import Timetable
from helpers.fuzzing import examples

CURVES = {
    "straight": lambda u: (1 - u, u),
    "circle": lambda u: (math.cos(u * math.pi / 2), math.sin(u * math.pi / 2)),
    "exploding": lambda u: (1.0, math.exp(4 * u) - 1),
}
GRIDS = st.lists(st.floats(0.05, 0.95), min_size=3, max_size=8, unique_by=lambda u: round(u, 2)).map(
    lambda us: sorted(us, reverse=True)
)
NAMES = list(PREDICTIONS)
PLAIN = [name for name in NAMES if "reversed" not in name]
LEVELS = st.tuples(st.floats(0.05, 2), st.floats(0.05, 2))


def solvable(prediction: str, level: tuple[float, float]) -> bool:
    """Whether data and noise can be told from latent and output."""
    data, eps = PREDICTIONS[prediction](*level)
    return abs(level[0] * eps - level[1] * data) > 1e-3


def first_order_responses(levels: list[tuple[float, float]], prediction: str) -> Responses:
    """Of a solver that goes from level to level by x' = p x + c v."""
    n = len(levels) - 1
    starts, outputs, latents = np.ones(n + 1), np.zeros((n + 1, n)), np.zeros((n + 1, n))
    for q, (level, following) in enumerate(pairwise(levels)):
        mixture = PREDICTIONS[prediction](*level)
        p, c = np.linalg.solve(np.array([level, mixture]).T, np.array(following))
        starts[q + 1], outputs[q + 1], latents[q + 1] = p * starts[q], p * outputs[q], p * latents[q]
        outputs[q + 1, q], latents[q + 1, q] = c, p
    nothing = np.zeros((n + 1, n))
    return Responses(np.arange(n, 0, -1.0), np.ones(n), np.array(levels), starts, outputs, latents, nothing, 0.0)


# Predictions.


def test_predictions_by_hand():
    assert PREDICTIONS["v_prediction"](0.6, 0.8) == pytest.approx((-0.8, 0.6))
    assert PREDICTIONS["v_prediction"](3.0, 4.0) == pytest.approx((-0.8, 0.6)), "only the angle counts"
    assert PREDICTIONS["edm"](1.0, 0.5) == pytest.approx((-2 * 0.5 / math.hypot(0.5, 0.5), 0.5 / math.hypot(0.5, 0.5)))
    assert PREDICTIONS["flow_prediction"](0.3, 0.7) == (-1.0, 1.0)
    assert PREDICTIONS["sample, reversed"](0.3, 0.7) == (-1.0, 0.0)


@examples(5)
@given(level=LEVELS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_prediction_the_other_way_round_is_its_opposite(name, level):
    data, eps = PREDICTIONS[name](*level)
    assert PREDICTIONS[f"{name}, reversed"](*level) == (-data, -eps)


@examples(10)
@given(level=LEVELS, scale=st.floats(0.1, 4), x=st.floats(-2, 2), eps=st.floats(-2, 2))
@pytest.mark.parametrize("name", NAMES)
def test_data_and_noise_come_back_from_latent_and_output(name, level, scale, x, eps):
    if not solvable(name, level):
        return
    mixture = PREDICTIONS[name](*level)
    latent, output = scale * (level[0] * x + level[1] * eps), mixture[0] * x + mixture[1] * eps
    clean, noise = estimates(np.array([level]), np.array([mixture]), np.array([scale]))
    assert clean[0] @ (latent, output) == pytest.approx(x, abs=1e-6)
    assert noise[0] @ (latent, output) == pytest.approx(eps, abs=1e-6)


@examples(6)
@given(grid=GRIDS)
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_predicted_shows_in_what_a_solver_makes_of_it(curve, name, grid):
    levels = [*map(CURVES[curve], grid), (1.0, 0.0)]
    if not all(solvable(name, level) for level in levels[:-1]):
        return
    path = path_of(first_order_responses(levels, name))
    assert path.miss < CLOSE and path.levels == pytest.approx(np.array(levels), abs=0.05)
    exactly = path_of(first_order_responses(levels, name), name)
    assert exactly.prediction == name and exactly.miss < 1e-8
    np.testing.assert_allclose(exactly.levels, levels, atol=1e-8)
    np.testing.assert_allclose(exactly.mixtures, [PREDICTIONS[name](*level) for level in levels[:-1]], atol=1e-8)


def test_a_scheduler_that_counts_the_other_way_draws_what_others_call_data():
    levels = [*map(CURVES["straight"], (0.9, 0.6, 0.3)), (1.0, 0.0)]
    plain = first_order_responses(levels, "flow_prediction")
    turned = plain._replace(levels=plain.levels[:, ::-1])
    np.testing.assert_allclose(path_of(turned).levels, levels, atol=1e-8)


@given(level=LEVELS)
def test_an_output_moves_as_far_as_the_velocity_that_it_stands_for(level):
    """A velocity that is off by d moves the data by -s d / (a + s), and the noise by a d / (a + s)."""
    signal, noise = level
    for name in NAMES:
        data, eps = mixture = PREDICTIONS[name](*level)
        path = SimpleNamespace(levels=np.array([level, (1.0, 0.0)]), mixtures=np.array([mixture]))
        moved = (-noise * data + signal * eps) / (signal + noise)
        assert velocity_gain(path)[0] == pytest.approx(abs(moved))


# What is known of a run.


@given(grid=GRIDS)
def test_a_loop_on_a_straight_path_reaches_as_far_as_it_goes(grid):
    known = first_order(grid, [(1 - u, u) for u in grid], "flow_prediction")
    np.testing.assert_allclose(known.timetable.coefficients, -np.diff([*grid, 0.0]), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(known.timetable.sigmas, grid, rtol=1e-6)
    assert known.timetable.gains == pytest.approx([1.0] * len(grid)) and not known.reason


@examples(10)
@given(grid=GRIDS)
@pytest.mark.parametrize("name", ["epsilon", "sample", "v_prediction"])
def test_errors_made_in_noise_reach_further_off_the_straight_path_and_none_less_than_half_its_way(name, grid):
    levels = [CURVES["circle"](u) for u in grid]
    known = first_order(grid, levels, name).timetable
    shares = np.array([s / (a + s) for a, s in levels] + [0.0])
    ways = np.abs(np.diff(shares)) / known.gains
    assert (np.array(known.coefficients) >= LEAST * ways - 1e-9).all()
    np.testing.assert_allclose(known.coefficients, ways * (1 + DECIDING * shares[:-1] ** 4), rtol=1e-4)


@examples(10)
@given(grid=GRIDS, seed=st.integers(0, 99))
@pytest.mark.parametrize("name", ["epsilon", "v_prediction, reversed", "flow_prediction"])
def test_what_a_solver_is_known_to_make_of_latent_and_output_leads_to_the_next_level(name, grid, seed):
    levels = [CURVES["circle"](u) for u in grid]
    if not all(solvable(name, level) for level in levels):
        return
    known = first_order(grid, levels, name)
    x, eps = np.random.default_rng(seed).standard_normal(2)
    for q, ((a, s), (after, noise)) in enumerate(pairwise([*levels, (1.0, 0.0)])):
        data, own = PREDICTIONS[name](a, s)
        latent, output = a * x + s * eps, data * x + own * eps
        p, c = known.solved[q]
        assert p * latent + c * output == pytest.approx(after * x + noise * eps, abs=1e-5)
        assert known.clean[q] @ np.array([latent, output]) == pytest.approx(x, abs=1e-4)
        assert known.weights[q] == (1.0,)


def a_timeline(**facts) -> Timeline:
    """Three steps of which the second makes two calls."""
    timetable = Timetable((3.0, 2.0, 1.0), (0.1, 0.3, 0.2), (-1.0, 0.0, 1.0), 0)
    ways = [(float(i), 0.0) for i in range(4)]
    usual = {"clean": ways, "noise": ways, "steps": (0, 1, 1, 2), "weights": ((1.0,), (0.4, 0.6), (1.0,))}
    return Timeline(timetable._replace(**facts), **{name: tuple(value) for name, value in usual.items()})


def test_calls_of_one_step_are_one_step_and_shares_add_up_to_all_of_the_run():
    readings = [a_timeline().reading("run", call) for call in range(4)]
    assert [reading.step.index for reading in readings] == [0, 1, 1, 2] and [r.part for r in readings] == [0, 0, 1, 0]
    assert [r.step.progress for r in readings] == pytest.approx([1 / 6, 4 / 6, 4 / 6, 1.0])
    assert [r.share for r in readings] == pytest.approx([1 / 6, 3 / 6, 3 / 6, 2 / 6])
    assert readings[2].step.clean == (1.0, 0.0) and readings[2].step.noise == (2.0, 0.0)
    assert readings[2].step.weights == (0.4, 0.6) and readings[2].step.half_log_snr == 0.0
    assert a_timeline().reading("run", 99) == readings[3], "a call too many is the last one"


def test_the_way_of_a_run_is_counted_in_velocities_from_where_it_begins():
    later = a_timeline(begin=1, gains=(1.0, 2.0, 1.0))
    assert later.reading("run", 1).step.progress == pytest.approx(0.6 / 0.8)
    assert later.reading("run", 3).step.progress == pytest.approx(1.0)
    assert later.reading("run", 1).step.gain == 2.0


def test_where_nothing_is_known_no_price_is_finite_and_every_step_counts_alike():
    scheduler = SimpleNamespace(timesteps=torch.tensor([900.0, 500.0, 100.0]))
    unknown = timeline(scheduler)
    assert "SimpleNamespace cannot be played on numbers" in unknown.reason
    readings = [unknown.reading("run", call) for call in range(3)]
    assert all(math.isinf(r.step.coefficient) and r.step.timetable is None for r in readings)
    assert [r.step.progress for r in readings] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert [r.step.sigma for r in readings] == [900.0, 500.0, 100.0] and readings[0].step.half_log_snr is None


@given(level=LEVELS)
def test_the_time_of_a_level_is_the_opposite_of_that_of_its_mirror_and_finite_at_either_end(level):
    assert half_log_snr(*level) == pytest.approx(-half_log_snr(*level[::-1]), abs=1e-12)
    assert half_log_snr(0.0, level[1]) == pytest.approx(math.log(0.02 / 1.02))
    assert half_log_snr(*level) == pytest.approx(half_log_snr(3 * level[0], 3 * level[1])), "of any size"
    assert noise_share(half_log_snr(*level)) == pytest.approx(level[1] / sum(level))


# The same steps.


def test_runs_are_the_same_where_count_beginning_solver_and_times_are():
    sigmas = (1.0, 0.6, 0.2)
    run = Timetable(sigmas, (0.4,) * 3, (), 0, solver="Euler()")
    assert differs(run, sigmas, "Euler()") is None
    assert differs(run, tuple(s + 0.9e-4 for s in sigmas), "Euler()") is None, "rounding"
    assert "made at 2, this run has 3" in differs(run, sigmas[:2], "Euler()")
    assert "begins at step 1" in differs(run._replace(begin=1), sigmas, "Euler()")
    assert "found with Heun(), this run has Euler()" in differs(run, sigmas, "Heun()", "found")
    assert "this run has none" in differs(run._replace(solver=""), sigmas, "Heun()")
    assert "up to 0.05 apart" in differs(run, (1.0, 0.65, 0.2), "Euler()")


# Double precision.


def test_a_schedulers_own_code_runs_in_double_precision_with_numbers_that_are_said_beforehand():
    third = torch.tensor(1 / 3, dtype=torch.float64)
    before = torch.get_rng_state()
    with Exact() as exact:
        exact.noise = torch.full((2, 1), 7.0, dtype=torch.float64)
        assert third.to(torch.float32).dtype == torch.float64 and torch.equal(third.to(torch.float32), third)
        assert torch.equal(third.half(), third), "not by way of the lower precision"
        assert torch.ones(2, dtype=torch.float32).dtype == torch.float64
        assert torch.arange(3).dtype == torch.int64, "what counts stays as it is"
        assert torch.randn((2, 3)).tolist() == torch.randn(2, 3).tolist() == [[7.0] * 3] * 2
        assert torch.randn_like(torch.zeros(2, 1)).tolist() == [[7.0], [7.0]]
        with pytest.raises(NotImplementedError, match="not a standard normal"):
            torch.normal(torch.zeros(2), torch.ones(2))
    assert torch.equal(torch.get_rng_state(), before), "the user's generators stay where they are"
    assert torch.ones(2, dtype=torch.float32).dtype == torch.float32
