"""The parts by themselves, against plain Python."""

import math
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dicache.approximators.alignment import Align
from dicache.approximators.base import Histories, Target
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.approximators.newton import Newton
from dicache.controllers.budgeted import Budgeted
from dicache.controllers.clip import Clip
from dicache.controllers.fixed import centred, every, masks
from dicache.errors import BudgetError, DicacheError, ModeError
from dicache.estimators.base import Evidence
from dicache.estimators.closed_loop import ClosedLoop
from dicache.estimators.relative_change import RelativeChange
from dicache.extension import residual_sums
from dicache.planning.budget import MOST, per_sample, validate
from dicache.runtime.guidance import chunks_of
from dicache.solvers.clock import SchedulerClock
from dicache.solvers.loop_clock import LoopClock, time_of
from dicache.solvers.mixture import fit
from dicache.solvers.timeline import DECIDING
from dicache.tensors import history
from dicache.tensors.norms import length, relative_change, relative_change_l1
from dicache.tensors.tree import scatter, shapes_of, stand_in, take
from dicache.types import Action, Quote, Reason, Step

ROWS = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8)


def step(index: int, total: int = 10) -> Step:
    return Step(index, total, 1 - index / total, 1 / total, (index + 1) / total, (1.0, 0.0))


def quote(cost):
    return Quote(cost, cost, torch.full(cost.shape, int(Action.REUSE)))


def past_of(outputs, features=None):
    nothing = history.empty(*outputs.sigmas.shape)
    return Histories(outputs, features or nothing, nothing)


@given(pattern=ROWS)
def test_the_history_holds_the_last_exact_values_of_every_row(pattern):
    past, expected = history.empty(2, 3), [[], [], []]
    for i, computed in enumerate(pattern):
        value = torch.full((3, 2), float(i)) + torch.tensor([[0.1], [0.2], [0.3]])
        past = history.push(past, value, float(i), torch.tensor(computed))
        for row, is_computed in enumerate(computed):
            expected[row] = [(float(i), value[row].clone()), *expected[row]][:2] if is_computed else expected[row]
        value.zero_()  # models add in place
    for row, entries in enumerate(expected):
        for k in range(2):
            assert bool(past.sigmas[k, row].isnan()) == (k >= len(entries))
        for k, (sigma, value) in enumerate(entries):
            assert past.sigmas[k, row] == sigma and torch.equal(past.values[k][row], value)


@given(sigmas=st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3, unique_by=lambda s: round(s, 3)))
def test_extrapolation_is_exact_on_lines_at_uneven_times_and_reuse_on_constants(sigmas):
    newest_last = sorted(sigmas, reverse=True)
    slope, offset = torch.randn(2, 4), torch.randn(2, 4)
    past = history.empty(2, 2)
    for sigma in newest_last[:2]:
        past = history.push(past, offset + sigma * slope, sigma, torch.ones(2, dtype=torch.bool))
    histories, target = past_of(past), Target(newest_last[2], None)
    torch.testing.assert_close(
        Extrapolate().guess(histories, target), offset + newest_last[2] * slope, rtol=1e-3, atol=1e-3
    )
    guess = Reuse().guess(histories, target)
    guess.zero_()
    assert not torch.equal(past.values[0], guess), "the history itself must never be handed out"


@given(order=st.integers(1, 3), sigmas=st.lists(st.integers(1, 40), min_size=5, max_size=5, unique=True))
def test_newton_is_exact_on_polynomials_of_its_order(order, sigmas):
    times = [s / 20 for s in sorted(sigmas, reverse=True)]
    coefficients = torch.randn(order + 1, 2, 3, dtype=torch.float64)

    def value(sigma):
        return sum(c * sigma**k for k, c in enumerate(coefficients))

    past = history.empty(order + 1, 2)
    for sigma in times[: order + 1]:
        past = history.push(past, value(sigma), sigma, torch.ones(2, dtype=torch.bool))
    guess = Newton(order).guess(past_of(past), Target(times[order + 1], None))
    torch.testing.assert_close(guess, value(times[order + 1]), rtol=1e-6, atol=1e-6)


def test_a_fixed_schedule_computes_when_due_or_unknown():
    controller = masks([[True, True, False], [True, False, False]])
    state, strips = controller.init(2), ["", ""]
    for i, cost in enumerate((math.inf, 0.1, 0.1)):
        costs = torch.full((2,), cost, dtype=torch.float64)
        decision, state = controller.decide(quote(costs), step(i, 3), state)
        strips = [strip + "#="[a] for strip, a in zip(strips, decision.action[:, 0].tolist(), strict=True)]
    assert strips == ["##=", "#=="]
    assert sorted(every(3, 10).computed[0]) == [0, 1, 4, 7]


def test_alignment_is_the_published_formula():
    outputs, features = history.empty(2, 1), history.empty(2, 1)
    everything = torch.ones(1, dtype=torch.bool)
    for sigma, scale in ((1.0, 1.0), (0.9, 2.0)):
        outputs = history.push(outputs, torch.full((1, 4), scale), sigma, everything)
        features = history.push(features, torch.full((1, 4), scale), sigma, everything)
    for feature, gamma in ((2.25, 1.25), (9.0, 1.5), (1.5, 1.0)):
        guess = Align().guess(past_of(outputs, features), Target(0.8, torch.full((1, 4), feature)))
        assert guess[0, 0] == pytest.approx(1.0 + gamma)


@pytest.mark.parametrize(("along", "gamma"), [(1.4, 1.4), (0.3, 0.3), (-0.5, 0.0), (3.0, 1.5)])
def test_signed_alignment_is_least_squares_on_the_way_of_the_probe(along, gamma):
    """What the probe does across its last way changes nothing."""
    torch.manual_seed(0)
    before, way, values = torch.randn(1, 6), torch.randn(1, 6), torch.randn(2, 1, 4)
    across = torch.randn(1, 6)
    across -= (across * way).sum() / (way * way).sum() * way
    outputs, features = history.empty(2, 1), history.empty(2, 1)
    for sigma, value, feature in ((1.0, values[0], before), (0.9, values[1], before + way)):
        outputs = history.push(outputs, value, sigma, torch.ones(1, dtype=torch.bool))
        features = history.push(features, feature, sigma, torch.ones(1, dtype=torch.bool))
    target = Target(0.8, before + along * way + across)
    guess = Align(signed=True).guess(past_of(outputs, features), target)
    torch.testing.assert_close(guess, values[0] + gamma * (values[1] - values[0]), rtol=1e-4, atol=1e-4)
    still = past_of(outputs, history.push(features, features.values[0], 0.85, torch.ones(1, dtype=torch.bool)))
    assert torch.isfinite(Align(signed=True).guess(still, Target(0.8, features.values[0]))).all()


def test_of_two_features_one_decides_and_the_other_is_aligned_along():
    torch.manual_seed(1)
    stream, added, values = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4), torch.randn(2, 2, 5, 3)
    both, every_row = torch.stack([stream, added], dim=2), torch.ones(2, dtype=torch.bool)

    def past(features):
        kept = [history.empty(2, 2), history.empty(2, 2)]
        for sigma, value, feature in zip((1.0, 0.9), values, features, strict=False):
            kept = [history.push(h, x, sigma, every_row) for h, x in zip(kept, (value, feature), strict=True)]
        return past_of(*kept)

    for signed in (False, True):
        guess = Align(signed=signed, part=1).guess(past(both), Target(0.8, both[2]))
        assert torch.equal(guess, Align(signed=signed).guess(past(added), Target(0.8, added[2])))
    nothing = torch.full((2,), torch.nan, dtype=torch.float64)
    predictions = []
    for rule, features in ((RelativeChange(part=0), both), (RelativeChange(), stream)):
        evidence = [Evidence(nothing[:, None], nothing, nothing, feature=feature) for feature in features]
        state = rule.observe(nothing[:, None], evidence[0], every_row, rule.init(2, 1))
        predictions.append(rule.predict(evidence[1], state))
    assert torch.equal(*predictions) and predictions[0].isfinite().all()


@given(steps=st.integers(2, 60), data=st.data())
def test_a_centred_schedule_computes_so_many_steps_and_most_near_its_centre(steps, data):
    computed, centre = data.draw(st.integers(1, steps)), data.draw(st.integers(0, steps))
    power = data.draw(st.floats(1, 3))
    (due,) = centred(steps, computed, centre, power).computed
    assert len(due) == computed and min(due) == 0 and max(due) < steps


def test_centred_schedules_are_deepcaches():
    """By hand for 6 of 30 steps around step 10 with p = 2: roots from -sqrt(10) to sqrt(20), in six parts."""
    low, high = -math.sqrt(10), math.sqrt(20)
    ways = [low + k / 6 * (high - low) for k in range(6)]
    expected = {math.floor(10 + math.copysign(way**2, way) + 1e-9) for way in ways}
    assert centred(30, 6, 10, 2.0).computed == (frozenset(expected),) and len(expected) == 6
    assert sorted(centred(30, 6, 10, 1.0).computed[0]) == [0, 5, 10, 15, 20, 25]
    gaps = [later - step for step, later in pairwise(sorted(expected))]
    assert min(gaps) == gaps[2] or min(gaps) == gaps[1]
    for wrong in ((30, 0, 10), (30, 31, 10), (30, 6, 31), (30, 6, 10, 0.5)):
        with pytest.raises(ModeError, match="centred"):
            centred(*wrong)


@given(constant=st.floats(0.01, 10), gap=st.integers(1, 5))
def test_the_closed_loop_predicts_what_follows_its_law(constant, gap):
    loop = ClosedLoop(trust=0.0)
    growth = torch.tensor([[float(gap)]], dtype=torch.float64)
    nothing = torch.full((1,), torch.nan, dtype=torch.float64)
    state = loop.init(1, 1)
    assert loop.predict(Evidence(growth, nothing, nothing), state).isinf().all()
    state = loop.observe(constant * growth, Evidence(growth, nothing, nothing), torch.tensor([True]), state)
    assert loop.predict(Evidence(growth * 2, nothing, nothing), state).item() == pytest.approx(2 * gap * constant)


def test_the_closed_loop_rises_at_once_falls_slowly_and_skips_what_is_not_finite():
    loop, nothing, one = (
        ClosedLoop(0.0),
        torch.full((1,), torch.nan, dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
    )
    evidence, state, factors = Evidence(one, nothing, nothing), None, []
    state = loop.init(1, 1)
    for realised in (1.0, 4.0, 0.0, math.nan):
        state = loop.observe(one * realised, evidence, torch.tensor([True]), state)
        factors.append(loop.predict(evidence, state).item())
    assert factors == [1.0, 4.0, 2.0, 2.0]


@given(costs=st.lists(st.floats(0, 0.2), min_size=10, max_size=10), budget=st.floats(0, 0.3))
def test_the_estimate_never_passes_what_was_released_of_the_budget(costs, budget):
    controller = Budgeted(budget)
    state = controller.init(1)
    for i, cost in enumerate(costs):
        decision, state = controller.decide(quote(torch.tensor([cost], dtype=torch.float64)), step(i), state)
        assert decision.spent.item() <= budget * math.sqrt((i + 1) / 10) + 1e-12
        assert budget > 0 or decision.reason.item() == Reason.NO_BUDGET
        state = controller.settle(torch.ones(1), decision.action[:, 0] == Action.COMPUTE, state)


def test_a_gap_that_turned_out_worse_costs_more():
    controller, cost = Budgeted(1.0), torch.tensor([0.1], dtype=torch.float64)
    _, state = controller.decide(quote(cost), step(8), controller.init(1))
    state = controller.settle(torch.tensor([3.0]), torch.tensor([True]), state)
    assert state.spent.item() == pytest.approx(0.3)


def test_clip_computes_the_first_and_last_steps_and_bounds_gaps_from_where_the_run_begins():
    clip = Clip(Budgeted(1e9), first=0.25, last=1, longest=2)
    state, strip = clip.init(1), ""
    for i in range(4, 16):  # a run that begins at step 4 of 16
        decision, state = clip.decide(quote(torch.zeros(1, dtype=torch.float64)), step(i, 16), state)
        strip += "#" if decision.action.item() == Action.COMPUTE else "="
    assert strip == "###==#==#==#"


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=4))
def test_budgets_are_finite_and_not_negative_or_refused(entries):
    good = bool(entries) and all(0 <= e <= MOST for e in entries)
    if good:
        assert per_sample(validate(entries), len(entries)).tolist() == entries
        with pytest.raises(BudgetError, match="one per sample"):
            per_sample(validate(entries), len(entries) + 1)
    else:
        with pytest.raises(BudgetError):
            validate(entries)


@given(scale=st.floats(1.1, 9.0), h=st.floats(-0.5, -0.01))
def test_the_mixture_of_a_linear_step_is_found(scale, h):
    generator = torch.Generator().manual_seed(0)
    before, cond, uncond = (torch.randn(2, 4, 8, generator=generator) for _ in range(3))
    after = before + h * (uncond + scale * (cond - uncond))
    mixture = fit(before, after, [cond, uncond])
    torch.testing.assert_close(
        mixture, torch.tensor([[scale] * 2, [1 - scale] * 2], dtype=torch.float64), rtol=1e-3, atol=1e-3
    )
    assert torch.equal(fit(before, after, [torch.cat([cond, cond]), uncond]), torch.ones(2, 2, dtype=torch.float64))


def test_guidance_in_one_batch_is_told_from_two_samples_of_one_seed():
    first, second, output = torch.randn(2, 3), torch.randn(2, 3), torch.randn(4, 3)
    assert chunks_of([torch.cat([first, first]), torch.cat([second, second])], [output]) == 2
    assert chunks_of([torch.cat([first, first]), torch.cat([second, second + 1])], [output]) == 1
    assert chunks_of([first.repeat(3, 1)], [torch.randn(6, 3)]) == 3


def test_one_prompt_and_seed_twice_are_two_samples():
    latent, output = torch.randn(1, 3), torch.randn(1, 3)
    assert chunks_of([latent.repeat(2, 1), latent.repeat(2, 1)], [output.repeat(2, 1)]) == 1


@given(rows=st.sets(st.integers(0, 4), min_size=1))
def test_running_some_rows_gives_those_rows(rows):
    index = torch.tensor(sorted(rows))
    hidden, temb, rotary = torch.randn(5, 3, 2), torch.randn(5, 2), (torch.randn(5, 2), torch.randn(5, 2))
    args, kwargs = take((hidden,), {"temb": temb, "image_rotary_emb": rotary, "scale": 2.0}, index, 5)
    assert torch.equal(args[0], hidden[index]) and torch.equal(kwargs["temb"], temb[index])
    assert kwargs["image_rotary_emb"][0] is rotary[0] and kwargs["scale"] == 2.0
    spread = scatter((None, args[0]), index, 5)
    assert spread[0] is None and torch.equal(spread[1][index], hidden[index])
    shaped = stand_in(shapes_of((None, hidden, torch.zeros(5, 7))), (hidden,), {})
    assert shaped[0] is None and shaped[1] is hidden and shaped[2].shape == (5, 7)


def test_norms_are_those_of_torch_per_sample():
    a, b = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    torch.testing.assert_close(relative_change(a, b), (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))
    torch.testing.assert_close(relative_change_l1(a, b), (a - b).flatten(1).abs().sum(1) / b.flatten(1).abs().sum(1))
    torch.testing.assert_close(length(a), a.flatten(1).norm(dim=1))
    a[1, 0, 0] = torch.nan
    assert residual_sums(a, b)[1, 0].isnan() and residual_sums(a, b)[0].isfinite().all()
    with pytest.raises(DicacheError, match="one shape"):
        residual_sums(a, b[:2])


def test_a_bare_modules_clock_counts_steps_and_begins_again_when_time_goes_back():
    clock = LoopClock()
    indices = [clock.read(t).step.index for t in (1000.0, 1000.0, 750.0, 500.0, 1000.0, 750.0)]
    assert indices == [0, 0, 1, 2, 0, 1]
    rising = LoopClock()
    assert [rising.read(t).step.index for t in (0.0, 0.5, 0.9, 0.1, 0.2)] == [0, 1, 2, 0, 1]
    assert math.isinf(clock.read(500.0).step.coefficient), "nothing was seen of the latents"


def test_the_time_of_a_call_is_that_of_all_its_rows():
    assert time_of(torch.tensor([[0.0, 0.7, 0.7], [0.0, 0.7, 0.7]])) == pytest.approx(0.7)
    assert time_of(torch.tensor([3, 3])) == 3 and time_of(4) == 4
    assert math.isnan(time_of(None)) and math.isnan(time_of(torch.tensor([[0.5], [0.7]])))


def test_progress_is_measured_from_where_the_run_begins():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(6)
    reading = SchedulerClock(lambda: scheduler).read(scheduler.timesteps[6])
    assert reading.step.index == 6 and reading.step.progress == pytest.approx(reading.share)


def test_a_time_from_0_to_1_is_not_taken_for_one_of_1000():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(8)
    assert scheduler.timesteps[-1] == 1
    clock = SchedulerClock(lambda: scheduler)
    assert clock.read(scheduler.timesteps[0] / 1000).step.index == 0
    assert len(clock.timeline.timetable.coefficients) == 8 and not clock.reason


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_solver_coefficient_is_what_a_change_of_the_output_does_to_the_final_latent(prediction):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(10)
    index, latent, output = 4, torch.randn(1, 8, dtype=torch.float64), torch.randn(1, 8, dtype=torch.float64)
    step = SchedulerClock(lambda: scheduler).read(scheduler.timesteps[index]).step
    change = torch.full_like(output, 1e-3)
    one, other = (scheduler.step(v, scheduler.timesteps[index], latent).prev_sample for v in (output, output + change))
    alpha_after = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index + 1])]) ** 0.5
    straight = alpha_after + (1 - alpha_after**2) ** 0.5  # data and noise of a latent move by this much of it
    alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])]) ** 0.5
    noise = (1 - alpha**2) ** 0.5
    further = 1 + DECIDING * (noise / (alpha + noise)) ** 4  # early errors go further off the straight path
    assert float((other - one).norm() / change.norm()) / straight == pytest.approx(step.coefficient / further, rel=1e-6)
    clean = scheduler.step(output, scheduler.timesteps[index], latent).pred_original_sample
    torch.testing.assert_close(step.clean[0] * latent + step.clean[1] * output, clean, rtol=1e-4, atol=1e-4)
