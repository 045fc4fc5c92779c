"""How far an output moves the final latent: what a changed output does, through every solver that is linear."""

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

from dicache.solvers.clock import timeline
from dicache.solvers.output_influence import influence

SCHEDULERS = {
    "flow euler": FlowMatchEulerDiscreteScheduler(),
    "ddim": DDIMScheduler(clip_sample=False),
    "flow dpm++": DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    "dpm++, v": DPMSolverMultistepScheduler(prediction_type="v_prediction"),
    "unipc": UniPCMultistepScheduler(),
}


@given(steps=st.integers(4, 24), data=st.data())
@pytest.mark.parametrize("name", SCHEDULERS)
def test_influence_is_what_a_changed_output_does_to_the_final_latent(name, steps, data):
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
