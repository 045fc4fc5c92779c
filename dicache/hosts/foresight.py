"""What the denoiser is going to compute, asked for before it is called: a network that feeds it alone (a ControlNet)
need not run for rows that will read nothing of what it gives.

A step then begins where the first such network is called, not where the denoiser is: latent and time are the same, so
the step before is ended with what it would have been ended with, and the decision is the one that would have been
taken. It can be taken here where a whole evaluation is decided on by what is remembered alone; a probe that looks into
the denoiser, and sites inside it, know later. What comes differently after all (weights written to in between, a branch
that was never seen) computes, and whoever did not run is run then.
"""

from collections.abc import Mapping
from threading import get_ident

import torch
from torch import Tensor

from dicache.runtime.decide import rows_to_compute
from dicache.runtime.end_of_step import begin_anew
from dicache.runtime.evaluation_site import EvaluationSite
from dicache.runtime.module_call import RowsToRun
from dicache.runtime.run_state import Call, Run
from dicache.runtime.session import Session
from dicache.tensors.tree import Tree
from dicache.types import Rows


def begin_step(
    session: Session, latent: Tensor, timestep: Tensor | float | None, network: str, conditions: Mapping[str, Tree]
) -> Run | None:
    """The run, gone on to the step of this latent, (R, ...), and time; None where the call that comes may be no more of
    it. `conditions` are what else the `network` is called with: where they have changed, what is remembered says
    nothing, and `Run.anew` says so.
    """
    run = session.run
    if run is None or not _goes_on(session, run):
        return None
    reading, latent = session.clock.read(timestep), run.as_begun(latent)
    ahead = reading.step.index - run.step.index
    if reading.run is not run.key or ahead not in (0, 1) or _kind(latent) != _kind(run.latent):
        return None
    session.go_on(run, reading, latent)
    if run.samples == 0:  # the first step is not over
        return None
    if changed := [f"{network}.{name}" for name in run.conditions.changed(network, conditions)]:
        branch = next((branch for state in run.states for branch in state.histories), "")
        session.note(*begin_anew(session.config, run, branch, changed), of_run=True)
    return run


def samples_to_compute(session: Session, run: Run) -> Rows | None:
    """Which samples the denoiser computes at the step that has begun, (B,) bool; None where that is not known."""
    strategy, state = session.strategy, run.states[0]
    if type(strategy) is not EvaluationSite or strategy.depth or strategy.probing.looks:
        return None
    if run.anew or run.apart or not state.histories:
        return None
    if state.judgement is None:
        first = next(iter(state.histories))
        strategy.decide(Call(run, first, run.latent, (), RowsToRun(len(run.latent)), first=True))
    if state.judgement is None:
        return None
    rows = [rows_to_compute(session.config, run, state, branch) for branch in state.histories]
    seen = [each.view(-1, run.samples).any(0) for each in rows if each is not None]
    return torch.stack(seen).any(0) if len(seen) == len(rows) else None


def _goes_on(session: Session, run: Run) -> bool:
    """Whether the next call may be one more of this run."""
    ended = run.complete or run.gone or run.apart or torch.is_grad_enabled()
    return (
        bool(run.guided.outputs or run.samples)
        and not ended
        and session.call is None
        and session.owner.thread == get_ident()
    )


def _kind(latent: Tensor) -> tuple[object, ...]:
    return latent.shape, latent.dtype, latent.device
