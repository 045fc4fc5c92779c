"""What sessions remember of the last run, as a report: those of one cache, whose denoisers may take turns, or the one
of a slot.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dicache.controllers.base import FinishedRun, ProfileUse
from dicache.planning.budget import Budget, per_sample
from dicache.reporting import notes as reported
from dicache.reporting.callbacks import Callbacks, OnStep, report_step
from dicache.reporting.log import log
from dicache.reporting.report import Report, Setting
from dicache.runtime.session import Session
from dicache.runtime.trace import Trace, joined
from dicache.solvers.loop_clock import LoopClock
from dicache.types import Rows


class Reported(ABC):
    """Hears of every run of its sessions, and logs each when it is over."""

    def __init__(
        self, sessions: Sequence[Session], models: str, budget: Budget | None, callbacks: Callbacks | None = None
    ) -> None:
        self._all, self._models, self._budget = list(sessions), models, budget
        self._callbacks = callbacks or Callbacks()
        for session in self._all:
            session.on_over.append(self._tell_of_run)
            if self._callbacks.on_step is not None:
                session.on_step.append(partial(self._tell_of_step, session, self._callbacks.on_step))
        self._told_of: object = None

    @property
    @abstractmethod
    def _on(self) -> bool:
        """Whether it still caches."""

    @property
    def _sessions(self) -> list[Session]:
        """Of the denoisers that took part in the last run, in their order; the first one before any did."""
        ran = sorted((s.run.begun, i) for i, s in enumerate(self._all) if s.run is not None)
        if not ran:
            return self._all[:1]
        last = self._all[ran[-1][1]]
        return [self._all[i] for _, i in ran if self._all[i].shares_its_run_with(last)]

    @property
    def session(self) -> Session:
        """Of the denoiser that ran last; the first one before any did. Those who measure read it through
        `dicache.measuring.recording`; what is in it may be another in the next version.
        """
        return self._sessions[-1]

    @property
    def trace(self) -> Trace | None:
        """The last run, or the one going on, of all denoisers that take turns in it; None before the first."""
        return self._trace()

    def _trace(self, *, waits: bool = True) -> Trace | None:
        traces = [trace for session in self._sessions if (trace := session.trace(waits=waits))]
        alike = len({(len(trace.sites), len(trace.executed)) for trace in traces}) == 1
        return joined(traces if alike else traces[-1:]) if traces else None

    def report(self) -> Report:
        """What the last run did, or what the one going on has done so far."""
        return self._report(self.trace)

    def _tell_of_run(self) -> None:
        """Once for each run, when all denoisers that took part in it are through. The host waits for the device only
        where somebody is called back.
        """
        run, on_report = self.session.run, self._callbacks.on_report
        if run is self._told_of or not all(session.run and session.run.complete for session in self._sessions):
            return
        self._told_of = run
        report = self._report(self._trace(waits=on_report is not None))
        log(report)
        if on_report is not None:
            on_report(report)

    def _tell_of_step(self, session: Session, on_step: OnStep) -> None:
        """Whatever the host knows by then."""
        run, trace = session.run, self._trace(waits=False)
        assert run is not None and trace is not None
        total = None if isinstance(session.clock, LoopClock) else run.step.total
        own = run.records[-1]  # of two denoisers, the newest record may be the other's
        record = next((each for each in trace.records if each.index == own.index), own)
        on_step(report_step(trace, record, self._profile_use(), total))

    def _report(self, trace: Trace | None) -> Report:
        budgets = None if trace is None else self._budgets(len(trace.executed))
        notes = list(dict.fromkeys(note for session in self._sessions for note in session.notes))
        audit, errors = self._audited()
        noted = [*notes, *self._said(trace), *self._exhausted(trace, budgets)]
        return Report(trace, budgets, noted, self._profile_use(), audit, errors, self._setting())

    def _setting(self) -> Setting:
        run = self.session.run
        timetable = None if run is None else run.step.timetable
        return Setting(self._models, "" if timetable is None else timetable.solver, self._on)

    def _audited(self) -> tuple[dict[str, Any] | None, Mapping[int, float]]:
        """What audits found in all runs so far, None without audits; and the true errors of this run's samples."""
        return None, {}

    def _said(self, trace: Trace | None) -> list[str]:
        """What the rule has to say of a finished run."""
        run = self.session.run
        if trace is None or run is None or not trace.complete or not trace.records:
            return []
        work, config = trace.executed / trace.uncached, self.session.config
        finished = FinishedRun(work, len(trace.records), run.facts, reported.computed_steps(trace))
        missed = reported.never_held(trace) if config.control_rule is not None else []
        return [*config.controller.notes(finished), *missed]

    def _exhausted(self, trace: Trace | None, budgets: Rows | None) -> list[str]:
        """Where a finished run skipped all that may be skipped and has most of its budget left. Only of whole
        evaluations of a known timetable is it known how many those are.
        """
        run = self.session.run
        if trace is None or budgets is None or not trace.complete or len(trace.sites) != 1:
            return []
        if run is None or run.step.timetable is None or self._profile_use() is not None:
            return []
        return reported.exhausted(trace, budgets, self.session.config.controller.fewest(len(trace.records)))

    def _profile_use(self) -> ProfileUse | None:
        """By which profile the last run went; None without one."""
        run = self.session.run
        if run is None or run.samples == 0:
            return None
        return run.states[0].rule.describe(run.states[0].controller)

    def _budgets(self, samples: int) -> Rows | None:
        """(B,); None without a budget, or where the run broke off because its list has another length."""
        if self._budget is None or (isinstance(self._budget, tuple) and len(self._budget) != samples):
            return None
        return per_sample(self._budget, samples)
