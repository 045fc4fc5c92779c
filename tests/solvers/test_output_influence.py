"""How far outputs reach: the impulses of `dicache.solvers.play` against what a change does."""

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

from dicache.solvers.output_influence import influence
from dicache.solvers.play import play
from dicache.solvers.timeline import timeline

SCHEDULERS = {
    "flow euler": FlowMatchEulerDiscreteScheduler(),
    "ddim": DDIMScheduler(clip_sample=False),
    "flow dpm++": DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    "dpm++, v": DPMSolverMultistepScheduler(prediction_type="v_prediction"),
    "unipc": UniPCMultistepScheduler(),
    "heun": HeunDiscreteScheduler(),
    "euler ancestral": EulerAncestralDiscreteScheduler(),
}


@given(steps=st.integers(4, 24), data=st.data())
@pytest.mark.parametrize("name", SCHEDULERS)
def test_influence_is_what_a_changed_output_does_to_the_final_latent(name, steps, data):
    scheduler = SCHEDULERS[name]
    scheduler.set_timesteps(steps)
    told, calls = influence(play(scheduler)), len(scheduler.timesteps)
    at = data.draw(st.integers(0, calls - 1))
    outputs = torch.randn(calls, 1, 1, 2, 2, generator=torch.Generator().manual_seed(steps))
    drawn = []
    for change in (0.0, 0.1):
        scheduler.set_timesteps(steps)
        torch.manual_seed(0)
        latent = torch.ones(1, 1, 2, 2)
        for i, t in enumerate(scheduler.timesteps):
            latent = scheduler.step(outputs[i] + change * (i == at), t, latent, return_dict=False)[0]
        drawn.append(latent)
    moved = (drawn[1] - drawn[0]) / 0.1
    torch.testing.assert_close(moved, torch.full_like(moved, told[at]), rtol=2e-3, atol=2e-4 * abs(told).max())


def test_a_first_order_step_moves_the_latent_by_its_coefficient():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(12)
    coefficients = timeline(scheduler).timetable.coefficients
    assert influence(play(scheduler)).tolist() == [-h for h in coefficients]
