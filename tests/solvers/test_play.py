"""What playing a scheduler on a few numbers says of it, for every scheduler of diffusers that draws from noise."""

import functools
import itertools
import re
from copy import deepcopy

import diffusers
import numpy as np
import pytest
import torch

from dicache.solvers.output_influence import influence, reach, steps_of, velocity_gain
from dicache.solvers.play import LINEAR, NotPlayedError, play
from dicache.solvers.prediction import CLOSE, path_of
from dicache.solvers.timeline import half_log_snr, timeline
from pipelines.controls import draw_unet, make_unet
from pipelines.schedulers import STABLE, Case, cases

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers' DPM2

CASES = {case.name: case for case in cases()}
AVERAGED = (
    "PNDM prediction_type=v",
    "PNDM skip_prk_steps=True p",
    "IPNDM",
    "DEISMultistep use_flow",
    "SASolver",
    "CMStoch",
)
"""These average velocities of several times, or end beside their last time: not even exact outputs lead to data."""


def ready(case: Case, steps: int = 12):
    scheduler = case.make()
    case.set_times(scheduler, steps)
    return scheduler


def predicted(case: Case) -> str:
    name, usual = case.scheduler.__name__, "epsilon"
    if name.startswith(("FlowMatch", "LTX", "MiniMax")):
        turned = name.startswith("MiniMax") or case.options.get("invert_sigmas", False)
        return "flow_prediction, reversed" if turned else "flow_prediction"
    if name.startswith(("EDM", "CMStochastic")):
        return "edm" if case.options.get("prediction_type") == "v_prediction" else "edm, reversed"
    if name.startswith("IPNDM"):
        return "v_prediction"
    return case.options.get("prediction_type", usual)


@pytest.mark.parametrize("name", CASES)
def test_a_linear_scheduler_shows_what_its_denoiser_predicts(name):
    responses = play(ready(CASES[name]))
    path = path_of(responses)
    assert responses.bend < LINEAR and path.miss < CLOSE
    assert path.prediction == predicted(CASES[name])


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(AVERAGED)])
def test_all_outputs_together_reach_as_far_as_the_noise_goes(name):
    """A velocity that is off by the same everywhere misses the end by all of the way, whatever solves and predicts."""
    responses = play(ready(CASES[name]))
    path = path_of(responses)
    shares = path.levels[:, 1] / path.levels.sum(1)
    way = abs(float((reach(responses, path) * velocity_gain(path)).sum()))
    if not responses.random:
        assert way == pytest.approx(shares[0] - shares[-1], rel=1e-3)
    assert shares[0] - shares[-1] - 1e-3 <= way <= 1 + 1e-3


@pytest.mark.parametrize(
    "name", [name for name in CASES if name.startswith(("DDIM", "EulerDiscrete", "FlowMatchEuler"))]
)
def test_a_call_of_a_first_order_solver_reaches_as_far_as_it_goes(name):
    responses = play(ready(CASES[name]))
    if responses.random:
        return
    path = path_of(responses)
    shares = path.levels[:, 1] / path.levels.sum(1)
    ways = np.abs(reach(responses, path)) * velocity_gain(path)
    np.testing.assert_allclose(ways, np.abs(np.diff(shares)), atol=1e-6)


def expected_steps(case: Case, calls: int) -> list[int]:
    name = case.scheduler.__name__
    if name.startswith(("Heun", "KDPM2", "FlowMatchHeun")):
        return [call // 2 for call in range(calls)]
    if name.startswith("PNDM"):
        begin = [0, 0] if case.options.get("skip_prk_steps") else [0] * 4 + [1] * 4 + [2] * 4
        return begin + [begin[-1] + 1 + i for i in range(calls - len(begin))]
    if name.startswith("DPMSolverSinglestep") and case.options.get("algorithm_type") == "dpmsolver":
        return [call // 2 for call in range(calls)]
    return list(range(calls))


@pytest.mark.parametrize("name", CASES)
def test_calls_that_go_back_to_where_a_step_began_belong_to_it(name):
    responses = play(ready(CASES[name]))
    assert list(steps_of(responses, path_of(responses))) == expected_steps(CASES[name], len(responses.times))


def test_a_flow_is_read_to_the_last_bit():
    for options in ({}, {"shift": 3.0}, {"use_karras_sigmas": True}):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
        scheduler.set_timesteps(28)
        sigmas, told = scheduler.sigmas.tolist(), timeline(scheduler).timetable
        assert told.sigmas == tuple(sigmas[:-1]) and set(told.gains) == {1.0}
        assert told.coefficients == tuple(abs(b - a) for a, b in itertools.pairwise(sigmas))
        assert told.half_log_snrs == tuple(half_log_snr(1 - s, s) for s in sigmas[:-1])


@pytest.mark.parametrize("name", ["DPMSolverMultistep algorithm_type=sde-dpmsolver++", "PNDM", "LMSDiscrete"])
def test_playing_changes_nothing_of_the_users(name):
    scheduler = ready(CASES[name])
    before, seed = deepcopy(vars(scheduler)), torch.get_rng_state()
    play(scheduler)
    assert torch.equal(seed, torch.get_rng_state())
    assert str(before) == str(vars(scheduler))


class Cubic(diffusers.DDIMScheduler):
    """Bends of itself."""

    def step(self, model_output, *args, **kwargs):
        return super().step(model_output + model_output**3, *args, **kwargs)


BENT = {
    "clipping": diffusers.DDIMScheduler(**STABLE),
    "thresholding": diffusers.DPMSolverMultistepScheduler(thresholding=True, **STABLE),
    "both": diffusers.DDIMScheduler(thresholding=True, clip_sample=True, **STABLE),
    "variances that are learned": diffusers.UnCLIPScheduler(),
    "no option": Cubic(clip_sample=False, **STABLE),
}
CUT = {
    "clipping": r"\(clip_sample=True; .* set clip_sample=False\)",
    "thresholding": r"\(thresholding=True; .* set thresholding=False\)",
    "both": r"\(clip_sample=True and thresholding=True; .* set clip_sample=False, thresholding=False\)",
    "variances that are learned": r"\(clip_sample=True; .* set clip_sample=False\)",
    "no option": "twice the output is not twice the change",
}


@pytest.mark.parametrize("name", BENT)
def test_a_map_that_is_not_linear_is_known_by_a_number(name):
    BENT[name].set_timesteps(12)
    assert play(BENT[name]).bend > 0.01
    assert re.search(f"is not linear: .*{CUT[name]}", timeline(BENT[name]).reason)


def test_a_step_that_needs_other_things_is_not_played():
    scheduler = diffusers.CogVideoXDPMScheduler()
    scheduler.set_timesteps(12)
    with pytest.raises(NotPlayedError, match="CogVideoXDPMScheduler cannot be played"):
        play(scheduler)
    assert "cannot be played" in timeline(scheduler).reason


def test_a_step_that_is_wrapped_is_played_without_the_wrapper_and_the_users_scheduler_stays():
    plain, wrapped, steps = *(diffusers.FlowMatchEulerDiscreteScheduler() for _ in range(2)), []
    original = wrapped.step

    @functools.wraps(original)
    def noted(*args, **kwargs):
        steps.append(args)
        return original(*args, **kwargs)

    wrapped.step = noted
    for scheduler in (plain, wrapped):
        scheduler.set_timesteps(12)
    assert timeline(wrapped) == timeline(plain)
    assert wrapped.step_index is None and not steps and wrapped.step is noted


def test_a_step_that_was_replaced_by_something_else_is_not_played():
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(12)
    scheduler.step = lambda output, time, latent, return_dict=False: (latent - output,)
    with pytest.raises(NotPlayedError, match="step of this DDIMScheduler was replaced"):
        play(scheduler)
    assert "was replaced" in timeline(scheduler).reason


TEN = (
    *("DDIM clip_sample=False", "EulerDiscrete", "EulerDiscrete prediction_type=v_prediction", "HeunDiscrete"),
    *("KDPM2Discrete", "LMSDiscrete", "PNDM skip_prk_steps=True", "DPMSolverMultistep", "DPMSolverSinglestep"),
    *("DEISMultistep", "UniPCMultistep", "EulerAncestralDiscrete", "DPMSolverMultistep algorithm_type=sde-dpmsolver++"),
)


@pytest.mark.parametrize("name", TEN)
def test_influence_is_what_a_changed_output_does_through_the_real_pipeline(name):
    """All other outputs are what they were before."""
    pipe, bumped, outputs = make_unet(), None, []

    def fixed(module, args, output):
        call = len(outputs)
        outputs.append(call)
        value = torch.randn(output[0].shape, generator=torch.Generator().manual_seed(call))
        return (value + (call == bumped),)

    pipe.scheduler = CASES[name].make()
    pipe.unet.register_forward_hook(fixed)

    def drawn(call):
        nonlocal bumped
        bumped = call
        outputs.clear()
        return draw_unet(pipe, [1], 8, guidance_scale=1.0).double()

    plain = drawn(None)
    pipe.scheduler.set_timesteps(8)
    told = influence(play(pipe.scheduler))
    for call in range(len(told)):
        moved = drawn(call) - plain
        torch.testing.assert_close(moved, torch.full_like(moved, told[call]), rtol=1e-4, atol=1e-4 * abs(told).max())
