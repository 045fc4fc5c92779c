"""What a run did, for people and for programs."""

import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from dicache.controllers.base import ProfileUse
from dicache.files.atomic import write_text
from dicache.reporting.promise_note import fits, promise_note, too_small_note
from dicache.runtime.trace import Record, Trace
from dicache.types import MARKS, REASONS, Action, Grid, Reason, Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Report:
    """One run of one denoiser. Prints as a table, shows as one in a notebook; `to_dict` has all of it."""

    def __init__(
        self,
        trace: Trace | None,
        budget: Rows | None,
        notes: list[str],
        profile: ProfileUse | None = None,
        audit: dict[str, Any] | None = None,
    ) -> None:
        self.trace, self.budget, self.profile, self.audit = trace, budget, profile, audit
        self.warnings = [*notes, *self._warnings()]

    @property
    def compute_speedup(self) -> float:
        """Uncached MACs over executed MACs, of the whole denoiser and all samples."""
        return speedup(self.trace)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists only; None where a number is not known."""
        trace, profile = self.trace, self.profile
        return {
            "samples": self._samples(),
            "steps": [_step(record) for record in trace.records] if trace else [],
            "compute_speedup": self.compute_speedup,
            "executed_macs": float(trace.executed.sum()) if trace else 0.0,
            "uncached_macs": float(trace.uncached.sum()) if trace else 0.0,
            "branches": sorted({name for record in trace.records for name in record.branches}) if trace else [],
            "warnings": self.warnings,
            "sites": _sites(trace) if trace else [],
            "cache_bytes": trace.cache_bytes if trace else 0,
            "planned_bytes": trace.planned_bytes if trace else None,
            "overhead_seconds": trace.overhead_seconds if trace else 0.0,
            "complete": trace.complete if trace else False,
            "profile": profile.name if profile else None,
            "profile_fits": profile is not None and fits(profile),
            "confidence": profile.confidence if profile else None,
            "audit": self.audit,
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON. Raises FileError where that is impossible."""
        write_text(path, json.dumps(self.to_dict(), indent=1))

    def plot(self) -> "Figure":
        """A matplotlib figure: every sample's decisions over the steps, and its estimated error against its budget."""
        return import_module("dicache.reporting.page").figure(self.to_dict())

    def save_html(self, path: str | Path) -> None:
        """Write one page with everything in it. Raises FileError where that is impossible."""
        write_text(path, import_module("dicache.reporting.page").page(self.to_dict()))

    def strip(self, i: int) -> str:
        """The decisions of one sample, a mark per step: # computed, = reused, / extrapolated, ~ aligned, * corrected,
        and + where some sites computed and some did not.
        """
        return "".join(_mark(record.action[i]) for record in self.trace.records) if self.trace else ""

    def __repr__(self) -> str:
        return f"<dicache.Report: {one_line(self.trace)}>"

    def __str__(self) -> str:
        table = Table(title=f"dicache: {self.compute_speedup:.2f}x less computed")
        for column in ("sample", "budget", "estimated error", "work", "decisions"):
            table.add_column(column, no_wrap=True)
        for i, sample in enumerate(self._samples()):
            numbers = _number(sample["budget"]), _number(sample["estimated_error"])
            table.add_row(str(i), *numbers, f"{sample['computed_fraction']:.0%}", self.strip(i))
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(table)
            for warning in self.warnings:
                console.print(f"note: {warning}")
        return capture.get()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return import_module("dicache.reporting.page").fragment(self.to_dict())

    def _samples(self) -> list[dict[str, Any]]:
        if self.trace is None:
            return []
        errors = self._estimates(self.trace).tolist() if self.trace.records else [None] * len(self.trace.executed)
        return [self._sample(self.trace, i, error) for i, error in enumerate(errors)]

    def _sample(self, trace: Trace, i: int, error: float | None) -> dict[str, Any]:
        return {
            "budget": None if self.budget is None else float(self.budget[i]),
            "estimated_error": error,
            "computed_fraction": float(trace.executed[i] / trace.uncached[i]) if trace.uncached[i] > 0 else 1.0,
            "steps": len(trace.records),
            "actions": [[Action(int(a)).name.lower() for a in record.action[i]] for record in trace.records],
            "reasons": [[Reason(int(r)).name.lower() for r in record.reason[i]] for record in trace.records],
        }

    def _estimates(self, trace: Trace) -> Rows:
        """(B,); through the profile's map where there is one."""
        spent = trace.records[-1].spent
        if self.profile is None:
            return spent
        return torch.tensor([self.profile.true_error(float(error)) for error in spent], dtype=torch.float64)

    def _warnings(self) -> list[str]:
        if self.trace is None:
            return ["nothing has run yet."]
        warnings = [*self._promised(self.trace), *self._audited()]
        if not self.trace.complete:
            warnings.append("the run is not over, or was interrupted.")
        return [*warnings, *_never_engaged(self.trace), *self._over_budget(self.trace)]

    def _promised(self, trace: Trace) -> list[str]:
        """What the estimate is worth."""
        if self.profile is None:
            estimated = bool(trace.records) and bool((trace.records[-1].spent > 0).any())
            text = "the error is estimated without calibration: no statement about its probability is made."
            return [text] if self.budget is not None or estimated else []
        computed = trace.executed.cpu() >= trace.uncached.cpu()
        too_small = (self.profile.levels == 0) | ((self.profile.levels < self.profile.saving) & computed)
        if not bool(too_small.any()):
            return [promise_note(self.profile)]
        return [promise_note(self.profile), too_small_note(self.profile)]

    def _audited(self) -> list[str]:
        if self.audit is None or self.audit["within"] is None:
            return []
        drift = "; so few, at any time, would be chance once in 100 or less: the prompts have drifted"
        drift = drift if self.audit["drift"] else ""
        return [f"audited {self.audit['samples']} samples: {self.audit['within']:.1%} within budget{drift}."]

    def _over_budget(self, trace: Trace) -> list[str]:
        if self.budget is None or not trace.records:
            return []
        over = (self._estimates(trace) > self.budget).nonzero().flatten().tolist()
        text = f"the estimated error passed the budget of samples {over}: a guess turned out worse than predicted."
        return [text] if over else []


def speedup(trace: Trace | None) -> float:
    """Uncached MACs over executed MACs."""
    if trace is None or trace.executed.sum() <= 0:
        return 1.0
    return float(trace.uncached.sum() / trace.executed.sum())


def one_line(trace: Trace | None) -> str:
    """The run in a few words."""
    if trace is None:
        return "nothing has run yet"
    end = "" if trace.complete else " so far"
    return f"samples {len(trace.executed)}, steps {len(trace.records)}{end}, {speedup(trace):.2f}x less computed"


def _never_engaged(trace: Trace) -> list[str]:
    """Says why nothing was skipped, where that is so."""
    if not trace.records or any((record.action != Action.COMPUTE).any() for record in trace.records):
        return []
    reasons = Counter(int(reason) for record in trace.records for reason in record.reason.flatten())
    return [f"the cache never engaged; mostly {REASONS[Reason(reasons.most_common(1)[0][0])]}."]


def _sites(trace: Trace) -> list[dict[str, Any]]:
    """What was decided on its own, in the order of `actions`, with the cost of one row."""
    return [
        {"path": site.path, "kind": str(site.kind), "macs": macs}
        for site, macs in zip(trace.sites, trace.site_macs, strict=True)
    ]


def _step(record: Record) -> dict[str, Any]:
    numbers = {"predicted": record.predicted, "realised": record.realised, "spent": record.spent}
    finite = {name: [float(x) if x.isfinite() else None for x in values] for name, values in numbers.items()}
    return {"index": record.index, "sigma": record.sigma, **finite}


def _mark(actions: Grid) -> str:
    """Of one step; (S,)."""
    computed = (actions == Action.COMPUTE) | (actions == Action.UNSTORED)
    if bool(computed.any()) and not bool(computed.all()):
        return "+"
    return MARKS[Action(int(actions[0]))]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
