"""What one request remembers: histories, estimator, rule, budget, and the step it is at. A session of its own, so it
decides as it would alone; only what its rows compute runs together with the rows of others.
"""

import time
from collections.abc import Hashable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from dicache.config import Config
from dicache.errors import ModeError
from dicache.hosts.denoiser_call import (
    latent_of,
    marks_of,
    prediction_of,
    returned,
    timestep_of,
)
from dicache.models.conditioning import conditions_of, fingerprint
from dicache.models.family import Family
from dicache.planning.budget import Budget
from dicache.reporting.callbacks import Callbacks
from dicache.reporting.of_sessions import Reported
from dicache.runtime.evaluation_site import EvaluationSite, PricedEvidence
from dicache.runtime.module_call import RowsToRun
from dicache.runtime.owner import Owner
from dicache.runtime.run_state import Inputs
from dicache.runtime.session import Session
from dicache.slots.call_form import CallForms
from dicache.slots.joint_calls import CallRows, Layout, rows_apart, spread
from dicache.slots.joint_prices import Asking
from dicache.solvers.timeline import Clock
from dicache.tensors.tree import Tree, filled
from dicache.types import Kind, Site

DENOISER = (Site("", Kind.EVALUATION, ("",)),)
"""The denoiser, which is the one module that a slot runs or does not."""


class Unowned(Owner):
    """A slot's calls are made one after another, by whichever thread."""

    def claim(self) -> bool:
        return False

    @property
    def elsewhere(self) -> bool:
        return False


class Slot(Reported):
    """One request; made by `Cache.join`. Also a context manager: leaving it leaves the batch."""

    family: Family
    on: bool

    def __init__(
        self, family: Family, config: Config, clock: Clock, budget: Budget | None, callbacks: Callbacks | None = None
    ) -> None:
        self._session = Session(config, clock, DENOISER, Unowned())
        strategy = self._session.strategy
        if type(strategy) is not EvaluationSite or strategy.depth or strategy.probing.looks:
            raise ModeError(
                "a slot holds whole evaluations, decided on by what it remembers; sites and probes inside the denoiser "
                "are for a batch in step. Give an error_budget, a speedup or evaluations, or a Config with "
                "sites=Evaluation() and no probe."
            )
        super().__init__([self._session], family.model, budget, callbacks)
        self.family = family
        self.strategy: EvaluationSite = strategy
        self.scheduler: Any = None
        """The request's own, whose `step` its loop calls; None for a bare denoiser."""
        self.outputs: dict[tuple[Hashable, ...], Tree] = {}
        """What the denoiser gives, as meta tensors, by the call's key."""
        self.changes = 0
        """How many changes of the weights it has lived through."""
        self.on = True

    @property
    def _on(self) -> bool:
        return self.on

    @property
    def done(self) -> bool:
        """Whether its last step's outputs were handed out; of a hand-written loop nobody knows."""
        run = self._session.run
        return run is not None and (run.complete or (run.at_last_step and bool(run.guided.outputs)))

    def leave(self) -> None:
        """Let go of what is remembered. The report stays. Doing it twice does nothing."""
        if self.on:
            self.on, self.outputs = False, {}
            self._session.release()

    def __enter__(self) -> "Slot":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def __repr__(self) -> str:
        run = self._session.run
        at = "before its first step" if run is None else f"at step {run.step.index + 1} of {run.step.total}"
        return f"<dicache.Slot of {self._models}, {at if self.on else 'left'}>"


class SlotCall:
    """A slot's call of the denoiser: begun, perhaps computed for some of its rows, ended."""

    slot: Slot
    inputs: Mapping[str, Tree]
    named: Mapping[str, Tree]
    branch: str | None
    key: tuple[Hashable, ...]
    layout: Layout
    kind: Hashable
    """What it must have alike with others to run with them."""

    def __init__(
        self,
        slot: Slot,
        inputs: Mapping[str, Tree],
        named: Mapping[str, Tree],
        branch: str | None,
        call_forms: CallForms,
    ) -> None:
        """`named` holds what stands in dictionaries among `inputs` too, each by its name."""
        self.slot, self.inputs, self.named, self.branch = slot, inputs, named, branch
        self.latent: Tensor = latent_of(slot.family, named)
        self.rows: int = len(self.latent)
        self.key, self.layout, self.kind = call_forms.of(inputs, named, self.rows)
        self.part: CallRows | None = None
        """What is to be computed of it; None for nothing."""

    @property
    def begins(self) -> bool:
        """Whether a run begins with it, or may: after its last step, unless this is another branch of that."""
        run = self.slot._session.run
        if run is None or run.complete or not self.slot.done:
            return run is None or run.complete
        return self.branch is None or run.guided.came(self.branch, 0)

    def begin(self, other_weights: str, cost: float | None) -> None:
        """Its step begins, and the one before is learned from. `cost` is what one row costs, where that is known."""
        slot, session = self.slot, self.slot._session
        conditions = conditions_of(slot.family, self.named, self.latent)
        when, prints = timestep_of(slot.family, self.named), partial(fingerprint, self.named, self.rows)
        seen = self.latent, when, self.branch, self.key, True, other_weights
        session.begin(Inputs(*seen, conditions, marks_of(conditions), prints))
        if cost is not None and session.call is not None:
            session.meter.costs[""] = cost

    @property
    def asking(self) -> Asking | None:
        """Who decides, where something is to be decided: all rows compute until what they give and cost is known."""
        slot, session = self.slot, self.slot._session
        if session.call is None or self.key not in slot.outputs or "" not in session.meter.costs:
            return None
        return slot.strategy, session.call

    def decide(self, priced: PricedEvidence | None = None) -> None:
        """Which rows compute; by what is `priced`, where that was asked for already."""
        rows, asking, started = RowsToRun(self.rows), self.asking, time.perf_counter()
        if asking is not None:
            strategy, call = asking
            call.rows_to_run = rows = rows.of(strategy.decide(call, priced=priced), self.latent.device)
            call.run.overhead += time.perf_counter() - started
        if not rows.none:
            some = rows_apart(rows.computed, self.latent.device)
            self.part = CallRows(self.inputs, self.layout, some, self.latent.device)

    def compute_all_or_none(self, everything: CallRows) -> None:
        """Where some of the rows compute, `everything` does."""
        call = self.slot._session.call
        if self.part is not None and call is not None:
            self.part, call.rows_to_run = everything, RowsToRun(self.rows)

    def give_up(self) -> None:
        """The denoiser raised: nothing came of it."""
        self.slot._session.call = None

    def end(self, output: Tree, cost: float) -> Tree:
        """What the slot is handed: the denoiser's `output` for the rows of its part, and guesses. Nothing came out
        where there is no part.
        """
        slot, session, key = self.slot, self.slot._session, self.key
        call = session.call
        if call is None:  # gradients are on
            return output
        rows, meter = call.rows_to_run, session.meter
        meter.costs[""] = cost
        meter.ran("", not rows.none if rows.computed is None or rows.none else rows.computed)
        if key not in slot.outputs:
            slot.outputs[key] = filled(output, lambda t: torch.empty_like(t, device="meta"))
        if rows.computed is not None:
            output = spread(slot.outputs[key], output, self.part, self.rows, self.latent.device)
        prediction = prediction_of(slot.family, self.latent, self.named, output)
        result = session.end(prediction)
        return output if result is prediction else returned(output, result)
