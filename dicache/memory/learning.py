"""What a finished run says of how hard its prompts are, for the next (`dicache.memory.hardness`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dicache.config import Config
from dicache.controllers.counted import Counted
from dicache.controllers.dealt import Dealt, plan_for
from dicache.memory.hardness import Hardness
from dicache.memory.store import Memory
from dicache.reporting.callbacks import Callbacks
from dicache.reporting.report import Report
from dicache.runtime.run_state import Run
from dicache.runtime.session import Session
from dicache.types import Action, RunFacts


@dataclass
class Learning:
    """Told of every report of one session."""

    hardness: Hardness
    session: Session
    last: Run | None = field(default=None, init=False)
    """The run that was learned from last: requests that join report runs of their own, of which nothing is learned."""

    def __call__(self, report: Report) -> None:
        run, trace = self.session.run, report.trace
        if (
            run is None
            or run is self.last
            or trace is None
            or not trace.complete
            or run.facts.timetable is None
            or not trace.records
        ):
            return
        self.last = run
        computed = [
            [record.index for record in trace.records if record.action[b, 0] == Action.COMPUTE]
            for b in range(len(trace.executed))
        ]
        spent = trace.records[-1].spent.tolist()
        audits = [report.true_errors.get(b, math.nan) for b in range(len(computed))]
        estimates = [math.nan if b in report.true_errors else error for b, error in enumerate(spent)]
        for errors, audited in ((audits, True), (estimates, False)):
            self.hardness.learn(run.facts, self._amplitudes(run.facts, errors, computed), audited)

    def _amplitudes(self, facts: RunFacts, errors: list[float], computed: list[list[int]]) -> list[float]:
        """Errors over what the law has them at for the steps that were computed; nan where nothing was skipped."""
        rule = self.session.config.controller
        assert isinstance(rule, Dealt) and isinstance(rule.inner, Counted)
        plan = plan_for(rule.inner, facts)
        left = [math.sqrt(plan.left_of(way)) if way else 0.0 for way in computed]
        return [error / by_law if by_law > 0 else math.nan for error, by_law in zip(errors, left, strict=True)]


def dealing(config: Config, memory: Memory, model: str) -> tuple[Config, Hardness]:
    """The same configuration, whose evaluations are dealt by what the memory knows."""
    hardness = Hardness(memory, model)
    return replace(config, controller=Dealt(config.controller, hardness.predict)), hardness


def with_learning(callbacks: Callbacks, learning: Callable[[Report], None]) -> Callbacks:
    """The same callbacks, and what is learned before the user's is told."""
    users = callbacks.on_report

    def told_both(report: Report) -> None:
        learning(report)
        if users is not None:
            users(report)

    return replace(callbacks, on_report=told_both)
