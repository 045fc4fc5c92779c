"""Requests of one pipeline that run at once, whatever their loops, steps and sizes: their denoiser calls meet.

Each request runs the pipeline's own `__call__`, in a thread of its own, on a twin of it (`dicache.slots.twin`). Where
the loop calls its denoiser it hands the call in and waits; one thread, the conductor, takes what waits and has all of
it made together, each for a slot of its own (`dicache.slots`): so a request decides and draws as it would alone, joins
while others are half-way, and leaves without anybody waiting for it.

Outside of the denoiser one request runs at a time, which is what makes encoders, schedulers and decoders safe to share.
The conductor waits for those that are about to call, though never longer than a share of a step.
"""

import threading
import time
from collections import deque
from collections.abc import Mapping
from inspect import Parameter, signature
from math import isfinite
from random import Random
from typing import Any

from dicache.api import denoisers, enable
from dicache.cache import Cache
from dicache.enable_options import parse_audit
from dicache.errors import BusyError, ModeError, PipelineError
from dicache.hosts.audit import Audited
from dicache.hosts.running_pipeline import Running
from dicache.planning.budget import per_sample, validate
from dicache.promise.metrics import relative_error
from dicache.reporting.log import LOGGER
from dicache.reporting.report import Report
from dicache.serve.conductor import Conductor
from dicache.serve.request import CancelledError, Request, Served, Totals, again, budget_kept
from dicache.slots.slots import Slots
from dicache.slots.twin import module_twin, pipeline_twin

CHANGES = (
    "{} changes how the model's attention computes while it runs (perturbed attention), for all requests that run at "
    "that time. Call the pipeline itself, for one after the other."
)
SLOTS, QUEUE = 8, 64
"""How many requests run, and wait, where nothing else is said."""
STEERS = "controlnet"
"""In the names of parts that run beside the denoiser."""
AUDITS = 1000
"""The last ones; all are counted."""


class Engine:
    """Around a pipeline; `asked` are arguments of `dicache.enable`, and what a request asks for stands in their place.

    At most `slots` requests run at once and `queue` wait. `largest_budget` lets requests by `error_budget` spend more,
    never above it, when some wait: as much more as there are requests for a slot, and the report says so. A share of
    `audit` of the requests that bring a generator is drawn again uncached, once they are served, and its true error
    noted down in `audits`, the last thousand. With `batch_invariant` exactly so many requests run in one call, padded
    where there are fewer, so that a request draws the same bits whatever runs beside it; how much was padding stands in
    `padding`.

    Raises what `enable` raises, BudgetError for a `largest_budget` that is none, and ModeError for a pipeline of two
    denoisers, one that is moved between devices as a whole (`enable_model_cpu_offload`), or one that changes the model
    while it runs.
    """

    pipe: Any
    largest: float | None
    chance: Random
    name: str
    most: int
    queue: deque[Request]
    closed: bool

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401
        *,
        slots: int = SLOTS,
        queue: int = QUEUE,
        largest_budget: float | None = None,
        audit: float = 0.0,
        batch_invariant: int | None = None,
        **asked: Any,  # noqa: ANN401
    ) -> None:
        if slots < 1 or queue < 0 or (batch_invariant is not None and batch_invariant < 1):
            raise ModeError(
                f"slots={slots}, queue={queue}, batch_invariant={batch_invariant}: expected a slot or more, 0 or more "
                "that wait, and groups of 1 or more."
            )
        if getattr(pipe, "_all_hooks", None):
            raise ModeError(
                "the pipeline's parts take turns on the device (enable_model_cpu_offload), and requests that run at "
                "once need all of them there. Call remove_all_hooks() and to(device), or enable_group_offload."
            )
        if hasattr(pipe, "_set_pag_attn_processor"):
            raise ModeError(CHANGES.format(type(pipe).__name__))
        largest = None if largest_budget is None else per_sample(validate(largest_budget, "largest_budget"), 1)
        self.pipe, self.largest, self.chance = pipe, None if largest is None else float(largest), Random(0)
        self.audit: float = parse_audit(audit, True)
        self.audits: deque[Audited] = deque(maxlen=AUDITS)
        self.asked: dict[str, Any] = asked or {"error_budget": 0.05}
        self.cache: Cache = enable(pipe, **self.asked)
        self.slots: Slots = self.cache._open_slots()
        ((self.name, self.denoiser),) = denoisers(pipe).items()
        self.names: tuple[str, ...] = tuple(signature(type(self.denoiser).forward).parameters)[1:]
        self.most, self.queue = queue, deque[Request]()
        self.running: dict[str, Request] = {}
        self.counts: Totals = Totals()
        self.baton: threading.Lock = threading.Lock()
        """Held by the one request that runs outside of the denoiser."""
        self.changed: threading.Condition = threading.Condition()
        self.closed = False
        self.conductor: Conductor = Conductor(
            self.slots, self.changed, self.baton, self.running, self.counts, self._is_over, batch_invariant
        )
        self.threads: list[threading.Thread] = [
            threading.Thread(target=self.conductor.conduct, daemon=True, name="dicache conductor")
        ]
        self.threads += [threading.Thread(target=self._work, daemon=True, name=f"dicache {i}") for i in range(slots)]
        for thread in self.threads:
            thread.start()

    # Seen from outside.

    def submit(self, call: Mapping[str, Any], **asked: Any) -> Request:  # noqa: ANN401
        """One more request: the pipeline's arguments, and what it asks for, as `Cache.join`.

        Raises BusyError where as many wait as may, PipelineError for arguments that the pipeline does not take, and
        what `Cache.join` raises.
        """
        taken = signature(type(self.pipe).__call__).parameters
        anything = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in taken.values())
        if strange := [name for name in call if name == "self" or not (anything or name in taken)]:
            raise PipelineError(
                f"{type(self.pipe).__name__} takes no {', '.join(strange)}. It takes {', '.join(taken)}."
            )
        terms = self._terms(asked)
        self.slots.compose(**terms)  # raises for what cannot be had
        request = Request(call, terms, self._withdraw)
        with self.changed:
            if self.closed:
                raise BusyError("the engine was closed. Make another one.")
            if len(self.queue) >= self.most and len(self.running) + len(self.queue) >= self.most_at_once:
                self.counts.refused += 1
                raise BusyError(f"{len(self.queue)} requests wait already. Try again when some are done.")
            self.queue.append(request)
            self.changed.notify_all()
        return request

    def _terms(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What is asked for, and the engine's own profile with a budget that names none. Where nothing is asked for and
        budgets may grow, its own budget: that grows as well.
        """
        profile, budget = self.asked.get("profile"), self.asked.get("error_budget")
        if not asked and self.largest is not None and budget is not None and self.asked.get("confidence") is None:
            asked = {"error_budget": budget}
        names = "error_budget" in asked and "profile" not in asked and profile is not None
        return {**asked, "profile": profile} if names else asked

    def __call__(self, call: Mapping[str, Any], **asked: Any) -> Served:  # noqa: ANN401
        """Submit it, and wait."""
        return self.submit(call, **asked).result()

    @property
    def most_at_once(self) -> int:
        """Its slots."""
        return len(self.threads) - 1

    @property
    def padding(self) -> float:
        """The share of all rows so far that filled groups."""
        runs = self.slots.runs
        return runs.padding / runs.rows if runs.rows else 0.0

    @property
    def alive(self) -> bool:
        """Whether it still serves."""
        return not self.closed and all(thread.is_alive() for thread in self.threads)

    def close(self) -> None:
        """Cancel what waits, let what runs end, and take dicache off the pipeline."""
        with self.changed:
            self.closed = True
            for request in list(self.queue):
                request.cancel()
            self.changed.notify_all()
        for thread in self.threads:
            thread.join()
        self.cache.disable()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # A request, in a thread of its own.

    def _work(self) -> None:
        while (request := self._next()) is not None:
            try:
                served = self._served(request)
            except BaseException as error:
                self._count("cancelled" if isinstance(error, CancelledError) else "failed")
                request.future.set_exception(error)
            else:
                self._count("served")
                self.counts.seconds.append(served.seconds - served.waited)
                request.future.set_result(served)
                self._audit(request, served)
            finally:
                self._over(request)

    def _count(self, outcome: str) -> None:
        """One more of `served`, `failed`, `cancelled`."""
        with self.changed:
            vars(self.counts)[outcome] += 1

    def _withdraw(self, request: Request) -> None:
        """Cancelled: where it waits still it makes room at once; who runs ends before its next call."""
        with self.changed:
            if request not in self.queue:
                return
            self.queue.remove(request)
            self.counts.cancelled += 1
        request.future.set_exception(CancelledError("the request was cancelled before it began."))

    def _next(self) -> Request | None:
        """The request that waited longest; None where there will be none."""
        with self.changed:
            self.changed.wait_for(lambda: self.queue or self.closed)
            if not self.queue:
                return None
            request = self.queue.popleft()
            self.running[request.id] = request
            request.waited = time.monotonic() - request.submitted
            if self.largest is not None:
                self.counts.loosened += request.loosen(self.largest, len(self.queue), self.most_at_once)
            return request

    def _served(self, request: Request) -> Served:
        audited = self.audit > 0 and self.chance.random() < self.audit
        request.again = again(request.call) if audited else None
        output, report = self._drawn(request)
        if report.trace is not None:
            self.counts.executed += float(report.trace.executed.sum())
            self.counts.uncached += float(report.trace.uncached.sum())
        return Served(output, report, request.waited, time.monotonic() - request.submitted)

    def _drawn(self, request: Request) -> tuple[Any, Report]:
        with self.baton:
            if request.cancelled:
                raise CancelledError("the request was cancelled before it began.")
            twin = self._twin(request)
            slot = request.slot = self.slots.join(twin.scheduler, loop=lambda: request.loop, **request.asked)
            if steered := [n for n, part in vars(self.pipe).items() if STEERS in n and part is not None]:
                slot.session.note(f"{', '.join(steered)}: runs for every request at every step, and is in no count.")
            if request.note:
                slot.session.note(request.note)
            with slot:
                output = twin(**request.call)
                request.latent = twin.scheduler.latent
                return output, slot.report()

    def _audit(self, request: Request, served: Served) -> None:
        """Draw it once more, uncached."""
        if request.again is None or request.latent is None:
            return
        exact = Request(request.again, {"error_budget": 0.0})
        try:
            self._drawn(exact)
        except Exception:
            LOGGER.exception("a request that was served could not be audited")
            return
        assert exact.latent is not None
        budgets = served.report.budget
        for i, error in enumerate(relative_error(request.latent, exact.latent).tolist()):
            if isfinite(error):
                audited = Audited(error, None if budgets is None else float(budgets[i]))
                self.audits.append(audited)
                self.counts.audits[budget_kept(audited)] += 1

    def _twin(self, request: Request) -> Any:  # noqa: ANN401
        def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if not request.loops:
                request.loop = running.loop()
            return self.conductor.met(request, dict(zip(self.names, args, strict=False)) | kwargs)

        denoiser = module_twin(self.denoiser, forward)
        twin = pipeline_twin(self.pipe, self.name, denoiser)
        twin.set_progress_bar_config(disable=True)
        running = Running(twin, {self.name: denoiser})
        return twin

    def _is_over(self) -> bool:
        """Whether nothing will call the denoiser any more."""
        return self.closed and not self.running and not self.queue

    def _over(self, request: Request) -> None:
        with self.changed:
            del self.running[request.id]
            request.loops = False
            self.changed.notify_all()
