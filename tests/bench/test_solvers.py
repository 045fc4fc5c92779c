"""The baselines without a cache: solvers and grids, on equations whose answer is known; the line along half log SNR."""

import math

import numpy as np
import pytest
import torch

from dicache.approximators.base import Histories, Target
from dicache.bench.arms.lines import HalfLogSnrLine
from dicache.bench.arms.solvers import ONWARD, sharp_grid, sharpness, steps_of
from dicache.bench.models.adams_bashforth import AdamsBashforth2
from dicache.bench.models.reference import Setting, scheduler, unshifted
from dicache.tensors.history import History
from dicache.types import Timetable


def solved(solver, steps, shift=1.0):
    """dx / dsigma = cos(3 sigma) from sigma = 1 to 0, from x = sin(3) / 3; the truth is 0."""
    solver.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    x = torch.full((1, 1), math.sin(3) / 3, dtype=torch.float64)
    for sigma, time in zip(solver.sigmas, solver.timesteps, strict=False):
        x = solver.step(torch.cos(3 * sigma.double()).reshape(1, 1), time, x.float(), return_dict=False)[0]
    return float(x.abs())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_adams_bashforth_is_of_second_order_on_any_grid_and_starts_anew_every_run(shift):
    solver = AdamsBashforth2(shift=shift)
    few, more = solved(solver, 16), solved(solver, 64)
    assert more < few / 10, "four times the steps: a sixteenth of the error, and a quarter of Euler's"
    assert solved(solver, 16) == few
    assert few < solved(scheduler(Setting(solver="euler", shift=shift)), 16) / 2


def test_a_grid_fitted_to_sharpness_is_even_where_nothing_turns_and_dense_where_it_does():
    sigmas = torch.linspace(1, 0, 101, dtype=torch.float64)
    even = sharpness((sigmas**2)[:, None, None], sigmas)
    assert even[1] == pytest.approx(2.0) and len(even[0]) == 99, "dv / dsigma of x = sigma^2"
    assert sharp_grid(*even, 4) == pytest.approx((1.0, 0.75, 0.5, 0.25))
    turning = (sigmas**6)[:, None, None]  # |dv / dsigma|^(1/2) ~ sigma^2, whose share above s is 1 - s^3
    wanted = [(1 - i / 4) ** (1 / 3) for i in range(4)]
    assert sharp_grid(*sharpness(turning, sigmas), 4) == pytest.approx(wanted, abs=0.02)


def test_a_grid_arrives_at_the_scheduler_as_it_was_meant():
    solver, wanted = scheduler(Setting(shift=3.0)), [1.0, 0.7, 0.2]
    solver.set_timesteps(sigmas=unshifted(wanted, 3.0))
    assert solver.sigmas[:-1].tolist() == pytest.approx(wanted)


def test_no_sweep_asks_for_fewer_than_two_steps():
    assert [steps_of(share, Setting(steps=28)) for share in ONWARD] == [7, 6, 4, 3, 2]
    assert steps_of(0.1, Setting(steps=8)) == 2


def test_the_line_goes_along_half_log_snr_and_along_sigma_where_times_are_unknown():
    sigmas, times = (1.0, 0.75, 0.5), (-1.0, -0.5, 1.0)
    past = torch.tensor([[0.75], [1.0]], dtype=torch.float64)
    outputs = History(past, (torch.tensor([[3.0]]), torch.tensor([[2.0]])), past)
    histories = Histories(outputs, outputs, outputs)
    table = Timetable(sigmas, (1.0, 1.0, 1.0), times, 0)
    line = HalfLogSnrLine()
    assert float(line.guess(histories, Target(0.5, None, timetable=table))) == pytest.approx(3 + (1.5 / 0.5))
    assert float(line.guess(histories, Target(0.5, None))) == pytest.approx(4.0)
