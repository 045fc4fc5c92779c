"""One `enable`: it reports, resets and undoes."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from dicache.controllers.base import FinishedRun, ProfileUse
from dicache.errors import ModeError
from dicache.hosts.attachment import Attachment
from dicache.hosts.audit import Auditor, summary
from dicache.memory.encoders import Encoders, MemoryUse
from dicache.planning.budget import Budget, per_sample
from dicache.reporting import notes as reported
from dicache.reporting.log import log
from dicache.reporting.report import Report, Setting, one_line
from dicache.runtime.session import Session
from dicache.runtime.trace import Trace, joined
from dicache.types import Rows


class Cache:
    """One `enable`. Also a context manager: leaving it disables."""

    def __init__(
        self,
        attachments: Mapping[str, Attachment],
        budget: Budget | None,
        confidence: float | None = None,
        auditors: Sequence[Auditor] = (),
        encoders: Encoders | None = None,
    ) -> None:
        self._attachments, self._budget, self._confidence = dict(attachments), budget, confidence
        self._auditors, self._encoders = auditors, encoders
        self._all = [attachment.session for attachment in attachments.values()]
        self._models = ", ".join(attachment.family.model for attachment in attachments.values())
        for attachment in attachments.values():
            attachment.undo = self.disable
            attachment.session.on_over.append(self._log)
        self._logged: object = None

    def __setattr__(self, name: str, value: object) -> None:
        """Raises AttributeError for anything public: nothing of a Cache is changed by being set."""
        if not name.startswith("_"):
            raise AttributeError(
                f"a Cache has no {name} to set: what it does is fixed when it is enabled. Call its disable(), then "
                "dicache.enable again; samples of one batch may have budgets of their own, error_budget=[0.02, 0.1]."
            )
        super().__setattr__(name, value)

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

    @property
    def memory(self) -> MemoryUse | None:
        """How often text encoders were answered from the memory since `enable`, and the seconds saved; None without."""
        return None if self._encoders is None else self._encoders.use

    def report(self) -> Report:
        """What the last run did, or what the one going on has done so far."""
        return self._report(self.trace)

    def _log(self) -> None:
        """Once for each run, when all denoisers that took part in it are through; the host does not wait for it."""
        run = self.session.run
        if run is not self._logged and all(session.run and session.run.complete for session in self._sessions):
            self._logged = run
            log(self._report(self._trace(waits=False)))

    def _report(self, trace: Trace | None) -> Report:
        budgets = None if trace is None else self._budgets(len(trace.executed))
        notes = list(dict.fromkeys(note for session in self._sessions for note in session.notes))
        audit = self._audit()
        errors = {i: error for auditor in self._auditors for i, error in auditor.true_errors.items()}
        noted = [*notes, *self._said(trace), *self._exhausted(trace, budgets)]
        return Report(trace, budgets, noted, self._profile_use(), audit, errors, self._setting())

    def _setting(self) -> Setting:
        run = self.session.run
        timetable = None if run is None else run.step.timetable
        return Setting(self._models, "" if timetable is None else timetable.solver, bool(self._attachments))

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

    def _audit(self) -> dict[str, Any] | None:
        """What audits found in all runs so far; None without audits."""
        if not self._auditors:
            return None
        for auditor in self._auditors:
            auditor.finish()
        return summary([audited for auditor in self._auditors for audited in auditor.audits], self._confidence)

    def _budgets(self, samples: int) -> Rows | None:
        """(B,); None without a budget, or where the run broke off because its list has another length."""
        if self._budget is None or (isinstance(self._budget, tuple) and len(self._budget) != samples):
            return None
        return per_sample(self._budget, samples)

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
        for auditor in self._auditors:
            auditor.release()
        if self._encoders is not None:
            self._encoders.remove()
        for attachment in self._attachments.values():
            attachment.detach()
        self._attachments = {}

    def __repr__(self) -> str:
        state = "on" if self._attachments else "disabled, was on"
        return f"<dicache.Cache {state} {self._models}: {one_line(self.trace)}>"

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def __enter__(self) -> "Cache":
        if not self._attachments:
            raise ModeError("this Cache was disabled. Call dicache.enable again.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()
