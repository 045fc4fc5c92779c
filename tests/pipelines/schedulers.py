"""Every scheduler of diffusers that makes pictures from noise in a continuous space, with the options that pipelines
use.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import diffusers
from diffusers.schedulers import scheduling_ltx_euler_ancestral_rf, scheduling_minimax_h3


class Case(NamedTuple):
    scheduler: type
    options: dict[str, Any]
    times: dict[str, Any]
    """What `set_timesteps` takes beside the number of steps."""

    def make(self) -> Any:
        return self.scheduler(**self.options)

    def set_times(self, scheduler: Any, steps: int) -> None:
        """A grid of its own has its own number of steps."""
        scheduler.set_timesteps(
            **({} if self.times.keys() & {"sigmas", "timesteps"} else {"num_inference_steps": steps}), **self.times
        )

    @property
    def name(self) -> str:
        told = {name: value for name, value in self.options.items() if name not in STABLE}
        name = self.scheduler.__name__.replace("Scheduler", "")
        return " ".join([name, *(f"{key}={value}" for key, value in {**told, **self.times}.items())])


STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V, X = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
GRIDS = ({"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})
FREE = {"clip_sample": False}
SDE = {"algorithm_type": "sde-dpmsolver++"}
ENDING = {"final_sigmas_type": "sigma_min"}

DISCRETE: dict[str, tuple[dict[str, Any], ...]] = {
    "DDIMScheduler": (FREE, {**FREE, **V}, {**FREE, **X}, {**FREE, **ZERO}),
    "DDIMParallelScheduler": (FREE,),
    "DDPMScheduler": (FREE, {**FREE, **V}, {**FREE, **X}, {**FREE, **ZERO}),
    "DDPMParallelScheduler": (FREE,),
    "EulerDiscreteScheduler": ({}, V, X, *GRIDS, {**GRIDS[0], **V}, ZERO, ENDING),
    "EulerAncestralDiscreteScheduler": ({}, V, ZERO),
    "HeunDiscreteScheduler": ({}, V, *GRIDS),
    "KDPM2DiscreteScheduler": ({}, V, *GRIDS),
    "KDPM2AncestralDiscreteScheduler": ({}, V, *GRIDS),
    "LMSDiscreteScheduler": ({}, V, *GRIDS),
    "PNDMScheduler": ({}, V, {"skip_prk_steps": True}, {"skip_prk_steps": True, **V}),
    "DPMSolverMultistepScheduler": (
        *({}, V, X, *GRIDS, FLOW, {**FLOW, "flow_shift": 3.0}, ENDING),
        *({"solver_order": 1}, {"solver_order": 3}, {"solver_type": "heun"}, {"euler_at_final": True}),
        *({"use_lu_lambdas": True}, {"algorithm_type": "dpmsolver", **ENDING}),
        *(SDE, {**SDE, "solver_order": 1}, {**SDE, **V}, {**SDE, **FLOW}),
    ),
    "DPMSolverSinglestepScheduler": (
        *({}, V, X, *GRIDS, FLOW, ENDING, {"solver_order": 1}, {"solver_order": 3}),
        {"algorithm_type": "dpmsolver", **ENDING},
    ),
    "DEISMultistepScheduler": ({}, V, X, *GRIDS, FLOW, {"solver_order": 1}, {"solver_order": 3}),
    "UniPCMultistepScheduler": ({}, V, X, *GRIDS, FLOW, ENDING, {"solver_order": 1}, {"solver_order": 3}),
    "SASolverScheduler": ({}, V, X, *GRIDS, {"tau_func": None}),
    "LCMScheduler": ({}, V),
    "TCDScheduler": ({},),
    "CogVideoXDDIMScheduler": ({}, V),
}
CONTINUOUS: dict[str, tuple[dict[str, Any], ...]] = {
    "IPNDMScheduler": ({},),
    "EDMEulerScheduler": ({}, V),
    "EDMDPMSolverMultistepScheduler": ({}, V, SDE),
    "CMStochasticIterativeScheduler": ({},),
    "FlowMatchEulerDiscreteScheduler": (
        *({}, {"shift": 3.0}, *GRIDS, {"shift_terminal": 0.1}, {"invert_sigmas": True}),
        *({"use_dynamic_shifting": True}, {"stochastic_sampling": True}),
    ),
    "FlowMatchHeunDiscreteScheduler": ({}, {"shift": 3.0}),
    "FlowMatchLCMScheduler": ({},),
}
TIMES: dict[str, tuple[dict[str, Any], ...]] = {
    "DDPMScheduler": ({"timesteps": [999, 900, 800, 700, 600, 450, 300, 200, 100, 50, 20, 0]},),
    "EulerDiscreteScheduler": ({"sigmas": [14.0, 9.0, 6.0, 4.0, 2.5, 1.5, 1.0, 0.6, 0.3, 0.1, 0.0]},),
    "FlowMatchEulerDiscreteScheduler": (
        {"sigmas": [1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]},
        {"sigmas": [1.0, 0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1]},
    ),
}


def cases() -> Iterator[Case]:
    for table, common in ((DISCRETE, STABLE), (CONTINUOUS, {})):
        for name, options in table.items():
            for each in options:
                shifted = {"mu": 0.8} if each.get("use_dynamic_shifting") else {}
                yield Case(getattr(diffusers, name), {**common, **each}, shifted)
    for name, grids in TIMES.items():
        for grid in grids:
            yield Case(getattr(diffusers, name), {**STABLE, **FREE} if name == "DDPMScheduler" else {}, grid)
    yield Case(scheduling_ltx_euler_ancestral_rf.LTXEulerAncestralRFScheduler, {}, {})
    yield Case(scheduling_minimax_h3.MiniMaxH3Scheduler, {}, {})
