"""One `enable`: it reports, resets and undoes."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from dicache.errors import ModeError
from dicache.hosts.attachment import Attachment
from dicache.hosts.audit import Auditor, summary
from dicache.memory.encoders import Encoders, MemoryUse
from dicache.planning.budget import Budget
from dicache.promise.choose_profile import AskedProfile
from dicache.promise.keep_budget import AskedBudget
from dicache.reporting.callbacks import Callbacks
from dicache.reporting.of_sessions import Reported
from dicache.reporting.report import one_line
from dicache.runtime.end_of_step import tell
from dicache.slots.slot import Slot
from dicache.slots.slots import Slots

P = ParamSpec("P")
Result = TypeVar("Result")


class Cache(Reported):
    """One `enable`. Also a context manager: leaving it disables; and a decorator."""

    def __init__(
        self,
        attachments: Mapping[str, Attachment],
        budget: Budget | None,
        confidence: float | None = None,
        auditors: Sequence[Auditor] = (),
        encoders: Encoders | None = None,
        slots: Slots | None = None,
        callbacks: Callbacks | None = None,
        *,
        again: "Callable[[], Cache]",
    ) -> None:
        """`again` enables as this one was."""
        self._attachments, self._confidence = dict(attachments), confidence
        self._again: Callable[[], Cache] | None = again
        self._auditors, self._encoders, self._slots = auditors, encoders, slots
        models = ", ".join(attachment.family.model for attachment in attachments.values())
        super().__init__([attachment.session for attachment in attachments.values()], models, budget, callbacks)
        for attachment in attachments.values():
            attachment.undo = self.disable

    def __setattr__(self, name: str, value: object) -> None:
        """Raises AttributeError for anything public: nothing of a Cache is changed by being set."""
        if not name.startswith("_"):
            raise AttributeError(
                f"a Cache has no {name} to set: what it does is fixed when it is enabled. Call its disable(), then "
                "dicache.enable again; samples of one batch may have budgets of their own, error_budget=[0.02, 0.1]."
            )
        super().__setattr__(name, value)

    @property
    def memory(self) -> MemoryUse | None:
        """How often text encoders were answered from the memory since `enable`, and the seconds saved; None without."""
        return None if self._encoders is None else self._encoders.use

    @property
    def _on(self) -> bool:
        return bool(self._attachments)

    def _audited(self) -> tuple[dict[str, Any] | None, Mapping[int, float]]:
        if not self._auditors:
            return None, {}
        for auditor in self._auditors:
            auditor.finish()
        audits = summary([audited for auditor in self._auditors for audited in auditor.audits], self._confidence)
        return audits, {i: error for auditor in self._auditors for i, error in auditor.true_errors.items()}

    # Requests that join and leave while others run.

    def join(
        self,
        *,
        scheduler: Any = None,  # noqa: ANN401
        timesteps: int | Sequence[float] | None = None,
        error_budget: AskedBudget | None = None,
        speedup: float | Sequence[float] | None = None,
        evaluations: int | Sequence[int] | None = None,
        confidence: float | None = None,
        profile: AskedProfile | None = None,
    ) -> Slot:
        """A place for one more request (of one sample, or a batch of its own) beside those that run, with a budget,
        speed-up or number of evaluations as for `dicache.enable`; by default what this cache was enabled with.

        Its `scheduler` is the request's own, a copy of the pipeline's where none is given, and `timesteps` are set on
        it: how many, or which. Its loop calls `step` for the denoiser and `slot.scheduler.step` for the rest; a bare
        denoiser's loop has no scheduler, and is read as a hand-written one.

        Raises what `dicache.enable` raises for these arguments, and ModeError where the denoiser's blocks are compiled,
        the configuration holds anything but whole evaluations, or the pipeline has two denoisers.
        """
        asked: dict[str, Any] = {"error_budget": error_budget, "speedup": speedup, "evaluations": evaluations}
        asked |= {"confidence": confidence, "profile": profile}
        options = {name: value for name, value in asked.items() if value is not None}
        return self._open_slots().join(scheduler, timesteps, **options)

    def step(
        self,
        slots: Sequence[Slot],
        inputs: Sequence[Mapping[str, Any]],
        *,
        branches: Sequence[str | None] | None = None,
        return_exceptions: bool = False,
        group: int | None = None,
    ) -> list[Any]:
        """One denoiser call of each of the slots, at whatever step each is: `inputs[i]` is what the denoiser would be
        called with for `slots[i]` alone, by name, and `result[i]` what it would return.

        Every slot decides for itself. The rows that compute run in one call of the denoiser per kind of inputs (the
        same shapes, devices and switches), each at its own time, and no call is made where none does. Guidance branches
        are rows of a slot's call, or calls of their own in steps of their own, then best with a name in `branches`.

        With a `group` exactly so many calls run together, padded with copies where there are fewer: a slot then gets
        the same bits whatever runs beside it. Padding is in no report.

        Raises SlotError for slots that left, are not of this cache or are there twice, and for inputs that the denoiser
        does not take; else whatever the denoiser raises, after the other slots were served: what they were to get is
        lost unless `return_exceptions`, which puts errors in the places of results. A slot that failed may repeat its
        call. ModeError for a group that is no whole number of 1 or more.
        """
        if group is not None and (isinstance(group, bool) or not isinstance(group, int) or group < 1):
            raise ModeError(f"group is {group!r}. Expected a whole number of 1 or more, for example 4.")
        return self._open_slots().step(slots, inputs, branches, return_exceptions=return_exceptions, group=group)

    def _open_slots(self) -> Slots:
        if not self._attachments:
            raise ModeError("this Cache was disabled. Call dicache.enable again.")
        if self._slots is None:
            names = ", ".join(self._attachments)
            raise ModeError(
                f"slots are of one denoiser, and this pipeline has several ({names}). Enable on one of them."
            )
        return self._slots

    def reset(self) -> None:
        """Begin anew at the next denoiser call. Pipelines never need it; a hand-written loop does where it begins again
        at the timestep where it was broken off.
        """
        for session in self._all:
            session.reset()

    def disable(self) -> None:
        """Restore the model exactly, and let go of it. The report stays. Doing it twice does nothing.

        Raises BusyError where another thread is in the midst of a call; nothing is changed then.
        """
        for attachment in self._attachments.values():
            attachment.session.check_idle()
        undone = [attachment.detach for attachment in self._attachments.values()]
        users = [each.leave for each in [self._slots] if each is not None]
        users += [auditor.release for auditor in self._auditors]
        users += [each.remove for each in [self._encoders] if each is not None]
        self._attachments, self._slots, self._again = {}, None, None  # the last two know the pipeline
        tell([*users, *undone])

    def __repr__(self) -> str:
        state = "on" if self._attachments else "disabled, was on"
        return f"<dicache.Cache {state} {self._models}: {one_line(self.trace)}>"

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def __enter__(self) -> "Cache":
        if not self._attachments:
            raise ModeError("this Cache was disabled. Call dicache.enable again.")
        return self

    def __call__(self, function: Callable[P, Result]) -> Callable[P, Result]:
        """As a decorator, `@dicache.enable(pipe, error_budget=0.05)`: each call of the function is an `enable` of its
        own, and between its calls the model is as it was. `on_report` is told of the runs.

        Raises ModeError for functions that are not over when they return, generators and coroutines, and where this
        Cache was disabled.
        """
        unfinished = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
        if any(is_such(function) for is_such in unfinished):
            raise ModeError(
                f"{function!r:.80} cannot be decorated: it is a generator or a coroutine, which goes on after it has "
                "returned. Use `with dicache.enable(...)` inside of it."
            )
        again = self._again
        if again is None:
            raise ModeError("this Cache was disabled. Call dicache.enable again.")
        self.disable()

        @wraps(function)
        def cached(*args: P.args, **kwargs: P.kwargs) -> Result:
            with again():
                return function(*args, **kwargs)

        return cached

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()
