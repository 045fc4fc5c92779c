"""Paying back drift: the effects of outputs, and a correction that is exact where its law is."""

import hypothesis.strategies as st
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given

import dicache
from dicache.approximators.linear import Extrapolate
from dicache.approximators.pay_back import PayBack
from dicache.controllers.fixed import every
from dicache.errors import ModeError
from dicache.sites import Spans
from dicache.solvers.clock import timeline
from dicache.solvers.output_influence import influence
from dicache.tensors import history
from dicache.types import Timetable
from pipelines.tiny import PIPELINES

FLUX = PIPELINES["two streams and one (flux)"]
SCHEDULERS = {
    "flow euler": FlowMatchEulerDiscreteScheduler(),
    "ddim": DDIMScheduler(clip_sample=False),
    "flow dpm++": DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    "dpm++, v": DPMSolverMultistepScheduler(prediction_type="v_prediction"),
    "unipc": UniPCMultistepScheduler(),
}


@given(steps=st.integers(4, 24), data=st.data())
@pytest.mark.parametrize("name", SCHEDULERS)
def test_effects_are_what_a_changed_output_does_to_the_final_latent(name, steps, data):
    scheduler, at = SCHEDULERS[name], data.draw(st.integers(0, steps - 1))
    scheduler.set_timesteps(steps)
    found = influence(scheduler)
    outputs = torch.randn(steps, 1, 1, 2, 2, generator=torch.Generator().manual_seed(steps))
    drawn = []
    for change in (0.0, 0.1):
        scheduler.set_timesteps(steps)
        latent = torch.ones(1, 1, 2, 2)
        for i, t in enumerate(scheduler.timesteps):
            latent = scheduler.step(outputs[i] + change * (i == at), t, latent, return_dict=False)[0]
        drawn.append(latent)
    moved = (drawn[1] - drawn[0]) / 0.1
    torch.testing.assert_close(moved, torch.full_like(moved, found[at]), rtol=2e-3, atol=2e-4)


def test_a_first_order_step_moves_the_latent_by_its_coefficient():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(12)
    assert influence(scheduler) == pytest.approx([-h for h in timeline(scheduler).timetable.coefficients], rel=1e-4)


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler(), EulerAncestralDiscreteScheduler()])
def test_nothing_is_claimed_of_other_solvers(scheduler):
    scheduler.set_timesteps(10)
    assert influence(scheduler) == ()


@given(sigmas=st.lists(st.floats(0.02, 1.0), min_size=5, max_size=8, unique_by=lambda s: round(s, 2)))
def test_drift_is_paid_back_in_full_where_the_error_is_quadratic(sigmas):
    """A line through the first two steps guesses the others; the last one computes. Outputs are quadratic in time."""
    sigmas = sorted(sigmas, reverse=True)
    timetable = Timetable(tuple(sigmas), tuple(a - b for a, b in zip(sigmas, [*sigmas[1:], 0.0], strict=True)), (), 0)
    timetable = timetable._replace(influence=timetable.coefficients)
    value = lambda s: torch.full((2, 3), 1.0 + 2 * s - 3 * s * s, dtype=torch.float64)  # noqa: E731
    known = history.empty(2, 2)
    for s in sigmas[:2]:
        known = history.push(known, value(s), s, torch.ones(2, dtype=torch.bool))
    last = len(sigmas) - 1
    guesses = [
        known.values[0] + (known.values[0] - known.values[1]) * (s - sigmas[1]) / (sigmas[1] - sigmas[0])
        for s in sigmas
    ]
    drift = sum(timetable.influence[q] * (value(sigmas[q]) - guesses[q]) for q in range(2, last))
    weight = PayBack(trust=1.0).weight(known, Extrapolate(), timetable, last)
    paid = PayBack().corrected(value(sigmas[last]), guesses[last], weight, torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close((paid - value(sigmas[last])) * timetable.influence[last], drift, rtol=1e-6, atol=1e-9)


def test_a_step_after_no_gap_is_left_alone():
    timetable = Timetable((1.0, 0.8, 0.5), (0.2, 0.3, 0.5), (), 0, (0.2, 0.3, 0.5))
    known = history.push(history.empty(2, 1), torch.ones(1, 2), 1.0, torch.tensor([True]))
    known = history.push(known, torch.ones(1, 2), 0.8, torch.tensor([True]))
    assert PayBack().weight(known, Extrapolate(), timetable, 2).tolist() == [0.0]


def test_it_changes_what_a_schedule_draws_and_not_what_it_skips():
    drawn, strips = [], []
    for corrector in (None, PayBack()):
        pipe = FLUX.make()
        rule = dicache.Config(every(3, 10), approximators=(Extrapolate(),), corrector=corrector)
        with dicache.enable(pipe, config=rule) as cache:
            drawn.append(FLUX.draw(pipe, [1, 2], 10))
        strips.append(cache.report().strip(0))
    assert strips[0] == strips[1] and not torch.equal(*drawn)


def test_the_report_says_where_nothing_could_be_paid_back():
    pipe = PIPELINES["one stream, batched guidance, learned variance (pixart)"].make()
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    with dicache.enable(pipe, config=dicache.Config(every(2, 8), corrector=PayBack())) as cache:
        PIPELINES["one stream, batched guidance, learned variance (pixart)"].draw(pipe, [1], 8)
    assert any("no drift was paid back" in warning for warning in cache.report().warnings)


@pytest.mark.parametrize("trust", [0.0, 1.5, float("nan")])
def test_a_trust_that_makes_no_sense_is_refused(trust):
    with pytest.raises(ModeError):
        PayBack(trust=trust)


def test_a_corrector_on_parts_of_an_evaluation_is_refused():
    with pytest.raises(ModeError):
        dicache.Config(every(2, 8), corrector=PayBack(), sites=Spans())
