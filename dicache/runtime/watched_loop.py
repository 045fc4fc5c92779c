"""What the latents of a loop show of it, where nobody tells: what its steps make of outputs (`dicache.solvers.watch`),
whether calls of one step belong to the same samples, and what is to be told of a run that does not say that it is over.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dicache.approximators.base import Histories
from dicache.config import Config
from dicache.runtime.end_of_step import end_step
from dicache.runtime.run_state import Run
from dicache.solvers.loop_clock import LoopClock
from dicache.solvers.mixture import denoised
from dicache.solvers.timeline import Clock
from dicache.tensors import history
from dicache.types import Step


def step_seen(config: Config, run: Run, clock: LoopClock, latent: Tensor) -> Step:
    """The step that begins at `latent`, (R, ...): what a hand-written loop made of the one that is over says where it
    stands. Once that is known what was remembered by time alone is renamed, and what was learned along it begins anew.
    """
    was_known, samples = bool(clock.axis), run.samples
    output = next(iter(run.guided.outputs.values()))
    before, after = (denoised(t[:samples], output) for t in (run.latent, latent))
    step = clock.watched(before, run.guided.made_of(samples), after)
    if not was_known and clock.axis:
        for state in run.states:
            state.histories = {
                branch: Histories(*(history.renamed(each, clock.axis) for each in histories))
                for branch, histories in state.histories.items()
            }
            state.estimator = config.estimator.init(samples, len(config.approximators))
    return step


def is_resized(run: Run, latent: Tensor, ahead: int) -> str:
    """What is to be noted where the latent is of another size, kind or device than that of the run, so many steps
    later; empty where it is not.
    """
    before, after = _rows_of_both(run, latent) if ahead == 0 else (run.latent, latent)
    if (before.shape, before.dtype, before.device) == (after.shape, after.dtype, after.device):
        return ""
    sizes = f"from {tuple(run.latent.shape)} to {tuple(latent.shape)}"
    return f"the batch changed {sizes} half-way: the cache began anew there."


def share_latent(run: Run, latent: Tensor) -> bool:
    """Whether this call of the step holds what the first one did, as far as both go."""
    before, after = _rows_of_both(run, latent)
    return torch.equal(after, before)


def _rows_of_both(run: Run, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Calls of one step may differ in their rows."""
    return run.latent[: len(latent)], latent[: len(run.latent)]


def holds_others(run: Run, latent: Tensor) -> bool:
    """Whether a later call of a step holds other samples than the first: guidance branches share their latent, tiles
    and windows do not.
    """
    if run.apart or not run.guided.outputs:
        return False
    output, rows = next(iter(run.guided.outputs.values())), min(len(latent), len(run.latent))
    one, other = (denoised(t[:rows], output) for t in (latent, run.latent))
    return one.shape != other.shape or not torch.equal(one, other)


def tries_a_step(run: Run, clock: Clock, latent: Tensor) -> bool:
    """Whether a branch comes twice at one time because the solver of a hand-written loop tries a step; else the loop
    begins anew.
    """
    return isinstance(clock, LoopClock) and run.step.index > 0 and not torch.equal(latent, run.latent)


def broken_off(run: Run | None, key: object) -> list[str]:
    """What is to be noted where a call of the loop of this key goes on with no run; `run` is that of the one before."""
    if run is None or key is None:
        return []
    if key is run.key and not run.complete:
        return ["the loop began anew before it was through: only what followed is reported."]
    within = "another run came within this one, which began anew after it: only what followed is reported."
    return [within] if key is run.displaced else []


def as_it_stands(config: Config, run: Run) -> Run:
    """A copy of the run, ended: hand-written loops do not say that they are over."""
    run = replace(run, states=[replace(state) for state in run.states], records=[*run.records], complete=True)
    end_step(config, run, None)
    return run
