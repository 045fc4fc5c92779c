"""Controllers, alone and around others: unknown errors, windows of noise, rules per site; and approximators of the
methods that use them.
"""

import math
import re
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler, PNDMScheduler
from hypothesis import given
from numpy.polynomial import chebyshev

import dicache
from dicache.approximators.base import Histories, Target
from dicache.approximators.gained import Gained
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.approximators.noise import ExtrapolateNoise
from dicache.config import Config
from dicache.controllers.base import Controller, refused
from dicache.controllers.budgeted import Budgeted
from dicache.controllers.by_kind import ByKind
from dicache.controllers.clip import Clip
from dicache.controllers.interval import Interval
from dicache.controllers.noise_window import NoiseWindow, level
from dicache.controllers.planned import Planned
from dicache.controllers.threshold import Threshold
from dicache.errors import ModeError, UnsupportedModelError
from dicache.presets.parts.bwcache import Stretch
from dicache.presets.parts.delta_dit import Staged
from dicache.presets.parts.fastercache import Bands
from dicache.presets.parts.racer import Chebyshev, Disagreement, Repaid, Shrunk
from dicache.solvers.clock import timeline_of
from dicache.solvers.loop_clock import LoopClock
from dicache.tensors import history
from dicache.types import Action, Kind, Quote, Site
from helpers.fuzzing import examples
from helpers.toy import SIGMAS, TIMETABLE, UNEVEN, N, histories_at, step
from pipelines.tiny import PIPELINES, STEPS, make_flux

RULES: dict[str, Controller[Any]] = {
    "interval": Interval(4),
    "threshold": Threshold(0.06),
    "budgeted": Budgeted(0.4),
    "clipped": Clip(Budgeted(0.6), first=0.1, longest=2),
    "planned": Planned(0.4),
    "stretch": Stretch(0.06, tail=0.0),
    "repaid": Repaid(0.06, 3),
    "within": NoiseWindow(Interval(3), 0.2, 0.8),
}
FLUX = PIPELINES["two streams and one (flux)"]


def driven(
    rule: Controller[Any], seeds: list[int], refusals: frozenset[int] = frozenset()
) -> tuple[list[str], list[str], list[float], Any]:
    """Over a run, one sample for each seed: strips of actions, of reasons, what was spent, and the last state. At the
    steps that are refused no error is known.
    """
    drawn = [np.random.default_rng(seed).uniform(0, 0.1, (N, 2)) for seed in seeds]
    state, strips, reasons, spent = rule.init(len(seeds)), [""] * len(seeds), [""] * len(seeds), []
    for i in range(N):
        cost = torch.tensor([d[i, 0] if i > 1 else math.inf for d in drawn], dtype=torch.float64)
        quote = Quote(cost, cost, torch.full((len(seeds),), int(Action.REUSE)))
        quote = refused(quote, torch.full((len(seeds),), i in refusals))
        decision, state = rule.decide(quote, step(i), state)
        computed = decision.action[:, 0] == Action.COMPUTE
        ratio = torch.tensor([10 * d[i, 1] for d in drawn], dtype=torch.float64)
        state = rule.settle(ratio, computed, state)
        strips = [s + "=#"[c] for s, c in zip(strips, computed.tolist(), strict=True)]
        reasons = [s + "0123456789"[r] for s, r in zip(reasons, decision.reason[:, 0].tolist(), strict=True)]
        spent = decision.spent.tolist()
    return strips, reasons, spent, state


SEEDS = st.lists(st.integers(0, 99), min_size=1, max_size=4)
REFUSALS = st.frozensets(st.integers(0, N - 1))


@examples(12)
@given(seeds=SEEDS, refusals=REFUSALS)
@pytest.mark.parametrize("name", RULES)
def test_steps_of_unknown_error_compute_and_the_rule_goes_on_from_there(name, seeds, refusals):
    strips, _, _, _ = driven(RULES[name], seeds, refusals)
    plain, _, _, _ = driven(RULES[name], seeds)
    for strip, usual in zip(strips, plain, strict=True):
        assert all(strip[i] == "#" for i in refusals)
        first = min(refusals, default=N)
        assert strip[:first] == usual[:first]
    everything, _, _, _ = driven(RULES[name], seeds, frozenset(range(N)))
    assert set("".join(everything)) == {"#"}


@examples(12)
@given(seeds=SEEDS, refusals=REFUSALS)
@pytest.mark.parametrize("name", RULES)
def test_rules_do_not_depend_on_batch_mates(name, seeds, refusals):
    together = driven(RULES[name], seeds, refusals)
    for b, one in enumerate(seeds):
        alone = driven(RULES[name], [one], refusals)
        assert [part[b] for part in together[:3]] == [part[0] for part in alone[:3]]


def test_the_rule_knows_that_a_step_of_unknown_error_was_computed():
    for seed in range(8):
        refusals = frozenset(i for i in range(N) if np.random.default_rng([seed, i]).random() < 0.3)
        (strip,), _, _, _ = driven(Interval(4), [1], refusals)
        (clipped,), _, _, _ = driven(Clip(Threshold(9.0), first=0.0, longest=3), [1], refusals)
        assert clipped == strip  # both: three skips after any computed step
        for gap in re.finditer("=+#", strip):
            assert len(gap[0]) == 4 or gap.end() - 1 in refusals
    everything = frozenset(range(N))
    _, _, spent, state = driven(Budgeted(9.0), [1], everything)
    assert spent == [0.0] and not state.pending.any() and not state.settled.any()
    _, _, _, way = driven(Planned(9.0), [1], everything)
    assert way.last.item() == N - 1 and way.before.item() == N - 2 and not way.account.spent.any()


@given(seeds=SEEDS, threshold=st.floats(0.02, 0.1), interval=st.integers(2, 6))
def test_what_is_computed_out_of_turn_is_paid_back_and_nothing_risky_is_skipped(seeds, threshold, interval):
    strips, _, _, state = driven(Repaid(threshold, interval, first=2), seeds)
    scheduled = 2 + sum((i - 1) % interval == 0 for i in range(2, N))
    for seed, strip, owed in zip(seeds, strips, state.owed.tolist(), strict=True):
        error = np.random.default_rng(seed).uniform(0, 0.1, (N, 2))[:, 0]
        assert owed >= 0 and strip.count("#") == scheduled + owed
        assert all(strip[i] == "#" for i in range(2, N) if error[i] >= threshold)


# Windows and sites.


@given(low=st.floats(0, 0.9), width=st.floats(0.05, 1))
def test_outside_its_window_everything_computes_and_inside_the_rule_decides(low, width):
    (strip,), _, _, _ = driven(NoiseWindow(Threshold(9.0), low, low + width), [1])
    assert strip == "".join("=#"[not low < sigma <= low + width or i < 2] for i, sigma in enumerate(SIGMAS))


def test_the_level_of_noise_is_the_time_left_with_and_without_a_course():
    assert [level(step(i)) for i in range(N)] == SIGMAS
    clock = LoopClock()
    times = [1000.0, 900.0, 700.0, 400.0, 200.0]
    levels = [level(clock.read(time).step) for time in times]
    assert levels[1:] == pytest.approx([0.9, 0.7, 0.4, 0.2])


@pytest.mark.parametrize(
    "scheduler",
    [DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler, PNDMScheduler],
    ids=lambda s: s.__name__,
)
def test_the_level_of_noise_is_the_timestep_where_models_predict_noise(scheduler):
    scheduler = scheduler(clip_sample=False) if scheduler is DDIMScheduler else scheduler()
    scheduler.set_timesteps(20)
    timeline = timeline_of(scheduler)
    readings = [timeline.reading(None, call) for call in range(len(timeline.steps))]
    levels = {reading.step.index: level(reading.step) for reading in readings}
    times = [float(time) / 1000 for time in scheduler.timesteps]
    first = [times[timeline.steps.index(index)] for index in levels]
    assert list(levels.values()) == pytest.approx(first)
    assert max(levels.values()) <= 1 and min(levels.values()) >= 0


def test_every_site_gets_the_rule_of_its_kind_and_its_share_of_a_budget():
    rule = NoiseWindow(ByKind({Kind.ATTENTION: Interval(2), Kind.SPAN: Budgeted(0.2)}, otherwise=Interval(5)), 0.1, 0.9)
    assert rule.at(Site("a", Kind.ATTENTION), 4) == NoiseWindow(Interval(2), 0.1, 0.9)
    assert rule.at(Site("a", Kind.SPAN), 4) == NoiseWindow(Budgeted(0.1), 0.1, 0.9)
    assert rule.at(Site("a", Kind.FEED_FORWARD), 4) == NoiseWindow(Interval(5), 0.1, 0.9)
    assert driven(ByKind({}, Interval(5)), [1]) == driven(Interval(5), [1])


@pytest.mark.parametrize(
    ("share", "zones"), [(0.25, "ffnnnnrr"), (0.5, "ffffrrrr"), (0.75, "ffbbbbrr"), (1.0, "bbbbbbbb")]
)
def test_rear_blocks_are_for_the_outline_and_front_blocks_for_the_details(share, zones):
    rule = Staged(Interval(2), share, 0.4)
    expected = {
        "f": NoiseWindow(Interval(2), 0.0, 0.4),
        "r": NoiseWindow(Interval(2), 0.4, 1.0),
        "b": Interval(2),
        "n": Interval(1),
    }
    assert [rule.at(Site(str(i), Kind.SPAN, index=i), 8) for i in range(8)] == [expected[zone] for zone in zones]


@pytest.mark.parametrize(
    "make",
    [
        lambda: NoiseWindow(Interval(2), 0.5, 0.5),
        lambda: Staged(Interval(2), share=0.0),
        lambda: Stretch(0.1, share=0.0),
        lambda: Repaid(0.1, 0),
        lambda: Chebyshev(order=4, window=4),
        lambda: Chebyshev(ridge=0.0),
        lambda: Shrunk(Reuse(), 0.0),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(make):
    with pytest.raises(ModeError, match="expected"):
        make()


# Approximators.


@given(times=UNEVEN, order=st.integers(1, 3), timetable=st.booleans())
def test_a_chebyshev_fit_with_hardly_a_ridge_is_exact_on_polynomials_at_uneven_times(times, order, timetable):
    coefficients = torch.randn(order + 1, 2, 3, dtype=torch.float64)

    def value(sigma):
        return sum(c * sigma**k for k, c in enumerate(coefficients))

    target = Target(times[4], None, timetable=TIMETABLE._replace(sigmas=(2.0, 1.0, 0.0)) if timetable else None)
    for count in range(order + 1, 5):
        guess = Chebyshev(order, 1e-18, window=5).guess(histories_at(times[:count], value), target)
        torch.testing.assert_close(guess, value(times[4]), rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 99), ridge=st.floats(1e-3, 10), order=st.integers(1, 4))
def test_a_chebyshev_fit_is_the_ridge_regression_of_every_row_at_its_own_times(seed, ridge, order):
    generator = np.random.default_rng(seed)
    past, computed_values = history.empty(8, 2), [[], []]
    for i in range(12):
        value = torch.tensor(generator.standard_normal((2, 3)))
        computed = torch.tensor([True, i % 3 != 1])
        past = history.push(past, value, SIGMAS[i], computed)
        for row in computed.nonzero().flatten().tolist():
            computed_values[row] = [(SIGMAS[i], value[row].numpy()), *computed_values[row]][:8]
    guess = Chebyshev(order, ridge, 8).guess(Histories(past, past, past), Target(SIGMAS[14], None, timetable=TIMETABLE))
    for row in range(2):
        low, high = min(SIGMAS), max(SIGMAS)
        times, values = np.array([t for t, _ in computed_values[row]]), np.array([v for _, v in computed_values[row]])
        basis = chebyshev.chebvander(2 * (times - low) / (high - low) - 1, order)
        fitted = np.linalg.solve(basis.T @ basis + ridge * np.eye(order + 1), basis.T @ values)
        here = chebyshev.chebvander(np.array([2 * (SIGMAS[14] - low) / (high - low) - 1]), order)
        np.testing.assert_allclose(guess[row], (here @ fitted)[0], rtol=1e-6, atol=1e-8)


def test_racers_parts_compose_and_the_window_is_what_is_kept():
    pipe = make_flux()
    n_approximators = (Shrunk(Chebyshev(order=2, window=5), 0.8), Extrapolate())
    with dicache.enable(pipe, config=Config(Threshold(0.5), Disagreement(), n_approximators)) as cache:
        drawn = FLUX.draw(pipe, [1, 2], STEPS)
    assert cache.trace.planned_bytes == 5 * drawn.nbytes
    assert cache.report().compute_speedup > 1.0
    used = torch.stack([record.action for record in cache.trace.records])
    assert set(used.unique().tolist()) == {int(Action.COMPUTE), int(Action.EXTRAPOLATE)}


@given(times=UNEVEN, kappa=st.floats(0.01, 1.0))
def test_a_shrunk_guess_lies_between_the_newest_value_and_the_guess(times, kappa):
    offset, slope = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    histories, target = histories_at(times[:2], lambda sigma: offset + sigma * slope), Target(times[2], None)
    newest, base = histories.outputs.values[0], Extrapolate().guess(histories, target)
    guess = Shrunk(Extrapolate(), kappa).guess(histories, target)
    torch.testing.assert_close(guess - newest, kappa * (base - newest))
    growth = Shrunk(Extrapolate(), kappa).growth(histories.outputs.sigmas, target.sigma)
    like = Extrapolate() if kappa == 1 else Reuse()
    assert torch.equal(growth, like.growth(histories.outputs.sigmas, target.sigma))
    assert Shrunk(ExtrapolateNoise(), kappa).reads_noise and Shrunk(Chebyshev(), kappa).history_depth == 10


def test_a_gain_holds_in_its_part_of_the_run_and_elsewhere_the_value_is_held():
    histories = histories_at(SIGMAS[8:10], lambda sigma: torch.full((2, 3), sigma, dtype=torch.float64))
    newest, before = histories.outputs.values[:2]
    for i, inside in ((11, False), (12, True), (17, True), (18, False)):
        guess = Gained(1.2, 0.5, 0.75).guess(histories, Target(SIGMAS[i], None, timetable=TIMETABLE))
        torch.testing.assert_close(guess, newest + 1.2 * (newest - before) if inside else newest)
    torch.testing.assert_close(Gained(1.2, 0.5).guess(histories, Target(SIGMAS[12], None)), newest)
    torch.testing.assert_close(Gained(0.3).guess(histories, Target(SIGMAS[12], None)), newest + 0.3 * (newest - before))


@examples(20)
@given(height=st.integers(5, 12), width=st.integers(5, 12), seed=st.integers(0, 99))
def test_bands_are_the_same_of_tokens_and_of_pictures_and_add_up(height, width, seed):
    x = torch.randn(2, height * width, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bands = Bands(size=(height, width))
    coarse = bands.coarse(x)
    picture = x.mT.unflatten(2, (height, width))
    torch.testing.assert_close(bands.coarse(picture).flatten(2).mT, coarse)
    torch.testing.assert_close(bands.coarse(coarse), coarse)  # a projection
    torch.testing.assert_close(coarse.mean(1), x.mean(1))
    row = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width).flatten() / height
    wave = torch.stack([(2 * math.pi * k * row).cos() for k in (1, height // 2)], dim=1)[None]
    filtered = bands.coarse(wave)
    torch.testing.assert_close(filtered[..., 0], wave[..., 0])
    assert filtered[..., 1].abs().max() < 1e-9


def test_bands_hold_where_there_is_no_difference_or_no_course():
    histories = histories_at((1.0,), lambda sigma: torch.randn(2, 25, 3))
    for target in (Target(0.5, None, timetable=TIMETABLE), Target(0.5, None, difference=True)):
        assert torch.equal(Bands().guess(histories, target), histories.outputs.values[0])
    with pytest.raises(UnsupportedModelError, match="size"):
        Bands(size=(4, 4)).guess(histories, Target(0.5, None, timetable=TIMETABLE, difference=True))
