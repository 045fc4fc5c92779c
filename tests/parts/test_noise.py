"""What is read off the noise: lines along half log SNR, and the newest noise held."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicache.approximators.base import Histories, Target
from dicache.approximators.hold import Reuse
from dicache.approximators.noise import ExtrapolateNoise, HoldNoise, noise_of
from dicache.planning.error_law import GUIDED_FROM
from dicache.tensors import history
from dicache.types import Timetable

LEVELS = st.lists(st.floats(-2.5, 2.5), min_size=3, max_size=3, unique=True).filter(
    lambda levels: min(abs(a - b) for i, a in enumerate(levels) for b in levels[:i]) > 0.05
)
ALL = torch.ones(1, dtype=torch.bool)


def signal_and_noise(level):
    """Variance preserving: c^2 + s^2 = 1, level = log(c / s)."""
    signal = (1 / (1 + math.exp(-2 * level))) ** 0.5
    return signal, (1 - signal**2) ** 0.5


def remembered(levels, noises, data):
    """Histories of a network that predicts v, and the target at the last level with what v is there."""
    outputs = held = history.empty(2, 1)
    for level, eps in zip(levels, noises, strict=True):
        c, s = signal_and_noise(level)
        x, v = c * data + s * eps, c * eps - s * data
        target = Target(s, None, x, (s, c), time=level)
        if level == levels[-1]:
            return Histories(outputs, history.empty(0, 1), held), target, v
        outputs = history.push(outputs, v, s, ALL, level)
        held = history.push(held, noise_of(x, v, (s, c)), s, ALL, level)
    raise AssertionError


@given(levels=LEVELS)
def test_a_noise_that_follows_a_line_along_half_log_snr_is_extrapolated_exactly(levels):
    start, slope, data = torch.randn(3, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    histories, target, v = remembered(levels, [start + slope * level for level in levels], data)
    guess = ExtrapolateNoise(math.inf, evenly=True).guess(histories, target)
    torch.testing.assert_close(guess, v, rtol=1e-3, atol=1e-3)


def test_along_sigma_it_is_another_line():
    levels = [-1.0, 0.0, 1.5]
    start, slope, data = torch.randn(3, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    histories, target, v = remembered(levels, [start + slope * level for level in levels], data)
    assert (ExtrapolateNoise(math.inf).guess(histories, target) - v).norm() > 0.1 * v.norm()


@given(levels=LEVELS)
def test_the_newest_noise_is_what_a_solver_with_fewer_steps_goes_on_with(levels):
    """Noise and data of the last computed step, read as v at the new one; the output itself would be another."""
    eps, data = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    histories, target, v = remembered(levels, [eps] * 3, data)
    torch.testing.assert_close(HoldNoise().guess(histories, target), v, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(Reuse().guess(histories, target), v, atol=1e-2)


def test_under_new_noise_a_line_stands_still():
    levels = [-1.0, 0.0, 1.0]
    start, slope, data = torch.randn(3, 1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    histories, target, _ = remembered(levels, [start + slope * level for level in levels], data)
    noisy = Timetable((0.9, 0.5, 0.1), (0.3,) * 3, (-1.0, 0.0, 1.0), 0, random=True)
    target = target._replace(timetable=noisy)
    line = ExtrapolateNoise(math.inf, evenly=True).guess(histories, target)
    assert torch.equal(line, HoldNoise().guess(histories, target))


@pytest.mark.parametrize(
    ("scale", "reach", "weight"),
    [(1.0, 0.5, 2.5), (1.0, 5.0, 2.5), (3.5, 0.3, 1.0), (3.5, 0.6, 1.0), (3.5, 0.8, 0.75), (3.5, 4.0, 0.5)],
)
def test_holding_counts_more_without_guidance_and_less_the_longer_a_guided_gap(scale, reach, weight):
    times = torch.tensor([[0.2], [0.0]], dtype=torch.float64)
    weighed = HoldNoise().weigh(times, reach, torch.tensor([scale], dtype=torch.float64))
    assert weighed.item() == pytest.approx(weight)
    assert ExtrapolateNoise().weigh(times, reach, torch.tensor([GUIDED_FROM])).item() == 1.0
