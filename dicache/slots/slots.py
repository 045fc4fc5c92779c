"""Slots of one denoiser, of which any may step together: requests that joined at other times, at other steps, with
other budgets, sizes and numbers of steps.

    begin    every slot decides, as it would alone
    run      the rows that compute are put into one call of the denoiser per kind (the same shapes and switches), each
             at its own time; where none computes there is no call
    end      each slot gets its rows, and guesses where it skipped

How they run together is told in `dicache.slots.joint_runs`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import Any, NamedTuple

from dicache.config import Config
from dicache.errors import ModeError, SlotError
from dicache.hosts.attachment import Attachment
from dicache.models.family import Batch
from dicache.planning.budget import Budget
from dicache.reporting.callbacks import Callbacks
from dicache.runtime.end_of_step import tell
from dicache.runtime.evaluation_site import PricedEvidence
from dicache.slots.call_form import CallForms
from dicache.slots.joint_prices import priced_together
from dicache.slots.joint_runs import JointRuns
from dicache.slots.slot import Slot, SlotCall
from dicache.solvers.clock import Loop, SchedulerClock
from dicache.solvers.loop_clock import DeclaredClock, LoopClock
from dicache.solvers.timeline import Clock
from dicache.tensors.tree import Tree


class Terms(NamedTuple):
    """How a slot decides."""

    config: Config
    budget: Budget | None


Compose = Callable[..., Terms]
"""From what `Cache.join` is asked for."""
Branch = str | None


class Slots:
    """`compose` tells what a request's budget means for this denoiser; `scheduler` gives one of its own, or None."""

    attachment: Attachment
    compose: Compose
    scheduler: Callable[[], Any]
    lock: RLock
    all: list[Slot]
    changes: int
    change: str

    def __init__(
        self,
        attachment: Attachment,
        compose: Compose,
        scheduler: Callable[[], Any],
        callbacks: Callbacks | None = None,
    ) -> None:
        self.attachment, self.compose, self.scheduler = attachment, compose, scheduler
        self.callbacks = callbacks
        self.lock, self.all = RLock(), list[Slot]()
        self.call_forms: CallForms = CallForms(attachment.family)
        self.runs: JointRuns = JointRuns(attachment.denoiser, together=attachment.family.batch is Batch.SAMPLE)
        self.changes, self.change = 0, ""
        """How often the weights became others, and how they did last."""

    @property
    def branch(self) -> Branch:
        """What the pipeline that runs in this thread calls the guidance branch that it is about to run."""
        return self.attachment.calls.branch.name

    def join(
        self,
        scheduler: Any = None,  # noqa: ANN401
        timesteps: Any = None,  # noqa: ANN401
        loop: Callable[[], Loop] = Loop,
        **asked: Any,  # noqa: ANN401
    ) -> Slot:
        """As `Cache.join`; `loop` tells what else is known of the loop that calls the scheduler."""
        own = scheduler if scheduler is not None else self.scheduler()
        if timesteps is not None and own is None:
            raise ModeError(
                "timesteps are those of a scheduler. Pass scheduler=..., or name them in a Family(times=...)."
            )
        if self.attachment.compilation.options is not None:
            raise ModeError("compiled blocks run for a batch in step. Enable without compile_blocks to join slots.")
        config, budget = self.compose(**asked)
        with self.lock:
            slot = Slot(self.attachment.family, config, self._clock(own, loop), budget, self.callbacks)
            slot.scheduler, slot.changes = own, self.changes
            self.all = [each for each in self.all if each.on] + [slot]
        if isinstance(timesteps, int):
            own.set_timesteps(timesteps)
        elif timesteps is not None:
            own.set_timesteps(timesteps=timesteps)
        return slot

    def _clock(self, scheduler: Any, loop: Callable[[], Loop]) -> Clock:  # noqa: ANN401
        family = self.attachment.family
        if scheduler is not None:
            return SchedulerClock(lambda: scheduler, loop)
        if family.noise_schedule is not None:
            return DeclaredClock(family.level, family.prediction, family.times)
        return LoopClock()

    def leave(self) -> None:
        """All of them."""
        with self.lock:
            leaving, self.all = self.all, []
            tell([slot.leave for slot in leaving])

    # One step.

    def step(
        self,
        slots: Sequence[Slot],
        inputs: Sequence[Mapping[str, Tree]],
        branches: Sequence[Branch] | None = None,
        *,
        return_exceptions: bool = False,
        group: int | None = None,
    ) -> list[Tree]:
        """As `Cache.step`."""
        named = [None] * len(slots) if branches is None else list(branches)
        if not len(slots) == len(inputs) == len(named):
            raise SlotError(
                f"{len(slots)} slots, {len(inputs)} inputs and {len(named)} branches. Expected as many of "
                "each: inputs[i] is what the denoiser would be called with for slots[i] alone."
            )
        with self.lock:
            self._check(slots)
            results: dict[int, Any] = {}
            calls = dict[int, SlotCall]()
            for i, (slot, own_inputs, branch) in enumerate(zip(slots, inputs, named, strict=True)):
                try:
                    calls[i] = self._begun(slot, own_inputs, branch)
                except Exception as error:
                    results[i] = error
            if calls:
                self._look_around(list(calls.values()))
            failures = self._each(calls, self._begin)
            prices = self._prices(calls)
            failures |= self._each(calls, lambda call: call.decide(prices.get(id(call))))
            results |= failures
            with self._resting():
                outputs = self.runs.run(calls, group)
            for i, call in calls.items():
                results[i] = self._ended(call, outputs[i])
        failed = [results[i] for i in range(len(slots)) if isinstance(results[i], Exception)]
        if failed and not return_exceptions:
            raise failed[0]
        return [results[i] for i in range(len(slots))]

    def _check(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            if not slot.on:
                raise SlotError(f"{slot!r} has left. Join again for another run.")
            if all(slot is not each for each in self.all):
                raise SlotError(f"{slot!r} joined another cache. Expected slots of this one.")
        if len(set(map(id, slots))) < len(slots):
            raise SlotError(
                "a slot is there twice. Expected one call of each: guidance branches are rows, or steps of their own."
            )

    def _begun(self, slot: Slot, own_inputs: Mapping[str, Tree], branch: Branch) -> SlotCall:
        """Raises SlotError for inputs that the denoiser does not take."""
        try:
            named = self.attachment.calls.by_name((), own_inputs)
        except TypeError as error:
            raise SlotError(f"{slot.family.model} is not called like that: {error}.") from error
        return SlotCall(slot, own_inputs, named, branch, self.call_forms)

    def _look_around(self, calls: Sequence[SlotCall]) -> None:
        """Whether the model is another than at the step before; once for all of them."""
        begins = any(call.begins for call in calls)
        changed = self.attachment.calls.look_around(calls[0].named, begins=begins)
        if changed:
            self.changes, self.change = self.changes + 1, changed
            self.runs.forget()

    def _each(self, calls: dict[int, SlotCall], act: Callable[[SlotCall], None]) -> dict[int, Exception]:
        """What it raised, of those calls that raised; they are taken out."""
        failures = dict[int, Exception]()
        for i, call in list(calls.items()):
            try:
                act(call)
            except Exception as error:
                failures[i] = error
                call.give_up()
                del calls[i]
        return failures

    def _prices(self, calls: Mapping[int, SlotCall]) -> dict[int, PricedEvidence | None]:
        """What is known of those that decide and what skipping costs them, by the `id` of the call."""
        asking = {id(call): asked for call in calls.values() if (asked := call.asking) is not None}
        started = time.perf_counter()
        prices = dict(zip(asking, priced_together(list(asking.values())), strict=True))
        for _, call in asking.values():
            call.run.overhead += (time.perf_counter() - started) / len(asking)
        return prices

    def _begin(self, call: SlotCall) -> None:
        before, call.slot.changes = call.slot.changes, self.changes
        call.begin(self.change if before < self.changes else "", self.runs.costs.get(call.kind))

    def _ended(self, call: SlotCall, output: Tree) -> Any:  # noqa: ANN401
        if isinstance(output, Exception):
            call.give_up()
            return output
        try:
            return call.end(output, self.runs.costs.get(call.kind, 0.0))
        except Exception as error:
            call.give_up()
            return error

    @contextmanager
    def _resting(self) -> Iterator[None]:
        """What `enable` has put on the denoiser lets calls pass."""
        calls = self.attachment.calls
        before, calls.resting = calls.resting, get_ident()
        try:
            yield
        finally:
            calls.resting = before
