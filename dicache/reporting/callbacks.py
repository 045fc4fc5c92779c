"""What `enable` calls back: `on_step` after each step, `on_report` once for each run that is over."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dicache.controllers.base import ProfileUse
from dicache.errors import ModeError
from dicache.reporting.report import Report, estimates
from dicache.runtime.trace import Record, Trace
from dicache.types import Action

MIXED = "mixed"
"""The decision where some sites computed and some did not."""
_COMPUTED = (Action.COMPUTE, Action.UNSTORED)


@dataclass(frozen=True)
class StepReport:
    """One step that is over, of B samples."""

    step: int
    """From 0."""
    steps: int | None
    """Of the whole run; None where nobody knows (a loop written by hand)."""
    sigma: float
    decisions: tuple[str, ...]
    """What was done, (B,): compute, reuse, extrapolate, align, correct, zero, or mixed over the sites of a model."""
    estimated_errors: tuple[float | None, ...]
    """Of the final latent, relative, so far, (B,); None where that is not known."""
    work: tuple[float, ...]
    """Share of what would have run uncached so far, (B,), of all networks of the loop."""


OnStep = Callable[[StepReport], object]
OnReport = Callable[[Report], object]


@dataclass(frozen=True)
class Callbacks:
    """Of one `enable`; None for those that nobody asked for."""

    on_step: OnStep | None = None
    on_report: OnReport | None = None


def parse_callbacks(on_step: OnStep | None, on_report: OnReport | None) -> Callbacks:
    """Raises ModeError for what cannot be called."""
    for name, callback in (("on_step", on_step), ("on_report", on_report)):
        if callback is not None and not callable(callback):
            raise ModeError(f"{name} is {callback!r:.60}. Expected a function of one argument, as {name}=print.")
    return Callbacks(on_step, on_report)


def report_step(trace: Trace, record: Record, profile: ProfileUse | None, steps: int | None) -> StepReport:
    """Of a run by this profile that has so many; `trace` is of the whole run so far."""
    errors = estimates(trace, record, profile).tolist()
    return StepReport(
        step=record.index,
        steps=steps,
        sigma=record.sigma,
        decisions=tuple(map(_decision, record.action.tolist())),
        estimated_errors=tuple(error if math.isfinite(error) else None for error in errors),
        work=_work(trace),
    )


def _decision(actions: Sequence[int]) -> str:
    """Of one sample, over its sites."""
    computed = [Action(action) in _COMPUTED for action in actions]
    return MIXED if any(computed) and not all(computed) else Action(actions[0]).name.lower()


def _work(trace: Trace) -> tuple[float, ...]:
    pairs = zip(trace.loop_executed.tolist(), trace.loop_uncached.tolist(), strict=True)
    return tuple(executed / uncached if uncached > 0 else 1.0 for executed, uncached in pairs)
