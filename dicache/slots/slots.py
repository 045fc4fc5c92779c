"""Slots of one denoiser, of which any may step together: requests that joined at other times, at other steps, with
other budgets, sizes and numbers of steps.

    begin    every slot decides, as it would alone
    run      the rows that compute are put into one call of the denoiser per kind (the same shapes and switches), each
             at its own time; where none computes there is no call
    end      each slot gets its rows, and guesses where it skipped

Whether a denoiser takes a time for each row is tried, at the first call in which they differ: one of its parts runs
again, alone, at its own time and at the first row's, and what the joint call gave must be the former. Where it is not,
calls at other times run one by one. What fails together is tried one by one, so that a request that cannot be run harms
no other.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import RLock, get_ident
from typing import Any, NamedTuple

import torch

from dicache.config import Config
from dicache.errors import ModeError, SlotError
from dicache.hosts.attachment import Attachment
from dicache.models.family import Batch
from dicache.planning.budget import Budget
from dicache.slots.joint_calls import CallRows, Times, alike, at_time_of, cut, joined, kind_of, times_of
from dicache.slots.slot import Slot, SlotCall
from dicache.solvers.clock import Loop, SchedulerClock
from dicache.solvers.loop_clock import DeclaredClock, LoopClock
from dicache.solvers.timeline import Clock
from dicache.tensors.mac_meter import MacCounter
from dicache.tensors.tree import Tree, plain, tensors

CLOSE = 0.1
"""How near the joint call must come to the part's own, in shares of what another time makes."""


class Terms(NamedTuple):
    """How a slot decides."""

    config: Config
    budget: Budget | None


Compose = Callable[..., Terms]
"""From what `Cache.join` is asked for."""
Branch = str | None


class Slots:
    """`compose` tells what a request's budget means for this denoiser; `scheduler` gives one of its own, or None."""

    def __init__(self, attachment: Attachment, compose: Compose, scheduler: Callable[[], Any]) -> None:
        self.attachment, self.compose, self.scheduler = attachment, compose, scheduler
        self.lock, self.all = RLock(), list[Slot]()
        self.costs: dict[Hashable, float] = {}
        """What one row of a kind of call costs."""
        self.changes, self.change = 0, ""
        """How often the weights became others, and how they did last."""
        self.takes_times: dict[Hashable, bool] = {}
        """Of a kind of call, whether each row is at its own time; as far as that was tried."""
        self.times: Times = frozenset(attachment.family.time)

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
            slot = Slot(self.attachment.family, config, self._clock(own, loop), budget)
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
            for slot in self.all:
                slot.leave()
            self.all = []

    # One step.

    def step(
        self,
        slots: Sequence[Slot],
        inputs: Sequence[Mapping[str, Tree]],
        branches: Sequence[Branch] | None = None,
        *,
        return_exceptions: bool = False,
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
            for i, call in list(calls.items()):
                try:
                    self._decide(call)
                except Exception as error:
                    results[i] = error
                    del calls[i]
            with self._resting():
                outputs = self._run(calls)
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
        call = SlotCall(slot, own_inputs, named, branch)
        call.kind = kind_of(own_inputs, call.rows, self.times)
        return call

    def _look_around(self, calls: Sequence[SlotCall]) -> None:
        """Whether the model is another than at the step before; once for all of them."""
        begins = any(call.slot.session.run is None or call.slot.done for call in calls)
        changed = self.attachment.calls.look_around(calls[0].named, begins=begins)
        if changed:
            self.changes, self.change = self.changes + 1, changed
            self.costs, self.takes_times = {}, {}

    def _decide(self, call: SlotCall) -> None:
        before, call.slot.changes = call.slot.changes, self.changes
        call.begin(self.change if before < self.changes else "", self.costs.get(call.kind))

    def _ended(self, call: SlotCall, output: Tree) -> Any:  # noqa: ANN401
        if isinstance(output, Exception):
            call.give_up()
            return output
        try:
            return call.end(output, self.costs.get(call.kind, 0.0))
        except Exception as error:
            call.give_up()
            return error

    # The rows that compute.

    def _run(self, calls: Mapping[int, SlotCall]) -> dict[int, Any]:
        """What each call's rows give, an Exception where that failed; None where none computes."""
        outputs = dict.fromkeys(calls)
        parts = {i: call.part for i, call in calls.items() if call.part is not None}
        for kind, group in self._groups(calls, parts):
            outputs.update(zip(group, self._outputs(kind, [parts[i] for i in group]), strict=True))
        return outputs

    def _groups(self, calls: Mapping[int, SlotCall], parts: Mapping[int, CallRows]) -> list[tuple[Hashable, list[int]]]:
        """Which of them may run together: of one kind, sharing what is shared."""
        groups: list[tuple[Hashable, list[int]]] = []
        together = self.attachment.family.batch is Batch.SAMPLE
        for i, part in parts.items():
            kind = calls[i].kind
            fitting = (g for k, g in groups if together and k == kind and alike(parts[g[0]], part))
            group = next(fitting, None)
            if group is None:
                groups.append((kind, [i]))
            else:
                group.append(i)
        return groups

    def _outputs(self, kind: Hashable, parts: Sequence[CallRows]) -> list[Any]:
        """Of each part, of one kind and alike; an Exception where it cannot be run."""
        times = times_of(parts, self.times)
        at_one = all(bool((time == times[0].flatten()[0]).all()) for time in times if len(time))
        if len(parts) > 1 and not at_one and not self.takes_times.get(kind, True):
            return [self._alone(kind, part) for part in parts]
        try:
            outputs = self._joint(kind, parts)
            if not at_one and len(parts) > 1 and kind not in self.takes_times:
                self.takes_times[kind] = self._at_own_times(parts, times, outputs)
                if not self.takes_times[kind]:
                    return [self._alone(kind, part) for part in parts]
        except Exception as error:
            return [error] if len(parts) == 1 else [self._alone(kind, part) for part in parts]
        return outputs

    def _alone(self, kind: Hashable, part: CallRows) -> Any:  # noqa: ANN401
        try:
            return self._joint(kind, [part])[0]
        except Exception as error:
            return error

    def _joint(self, kind: Hashable, parts: Sequence[CallRows]) -> list[Tree]:
        run = partial(self.attachment.denoiser, **joined(parts, self.times))
        if kind in self.costs:
            return cut(run(), parts)
        with MacCounter() as counter:
            output = run()
        self.costs[kind] = counter.total / sum(part.computed for part in parts)
        return cut(output, parts)

    def _at_own_times(self, parts: Sequence[CallRows], times: Sequence[torch.Tensor], outputs: Sequence[Tree]) -> bool:
        """Whether a part whose time is furthest from the first one's was computed at its own."""
        far = [float((time.double().mean() - times[0].double().mean()).abs()) for time in times]
        i = max(range(len(parts)), key=far.__getitem__)
        if not far[i]:  # rows of one part differ, as they may alone
            return True
        run = self.attachment.denoiser
        own, other = (
            run(**joined([part], self.times)) for part in (parts[i], at_time_of(parts[i], parts[0], self.times))
        )
        missed = sum(float((a.double() - b.double()).norm()) for a, b in _pairs(outputs[i], own))
        apart = sum(float((a.double() - b.double()).norm()) for a, b in _pairs(other, own))
        return missed <= CLOSE * apart

    @contextmanager
    def _resting(self) -> Iterator[None]:
        """What `enable` has put on the denoiser lets calls pass."""
        calls = self.attachment.calls
        before, calls.resting = calls.resting, get_ident()
        try:
            yield
        finally:
            calls.resting = before


def _pairs(one: Tree, other: Tree) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(tensors(plain(one)), tensors(plain(other)), strict=True)
