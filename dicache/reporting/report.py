"""What a run did, for people and for programs."""

import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from dicache.promise.learn_then_test import CERTAINTY
from dicache.promise.profile import Profile
from dicache.runtime.trace import Trace
from dicache.types import MARKS, REASONS, Action, Grid, Reason, Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Promise(NamedTuple):
    """By which profile a run went."""

    profile: Profile
    confidence: float | None
    """None: nothing was promised."""
    kind: str
    """How the profile was chosen (`dicache.promise.choose_profile`)."""
    levels: Rows
    """The internal budgets, (B,)."""
    others: bool = False
    """Whether a sample's negative prompt is another than the profile was tested with."""

    @property
    def fits(self) -> bool:
        return self.kind != "nearest" and not self.others

    def __str__(self) -> str:
        name, prompts = self.profile.name, self.profile.prompts
        if self.kind == "nearest":
            return f"nothing is promised: profile='nearest' moved a profile to this run ({name})."
        if self.others:
            return (
                "nothing is promised, and errors may be several times what is estimated: the profile "
                f"{name} was tested with another negative prompt."
            )
        if self.confidence is None:
            return f"the error is estimated by the profile {name}; nothing is promised without confidence=..."
        return (
            f"promised with confidence {self.confidence:g} by the profile {name}, for prompts like the {prompts} it "
            f"was tested on; it holds for {CERTAINTY:.0%} of such calibrations."
        )


class Report:
    """One run of one denoiser. Prints as a table; `to_dict` has all of it."""

    def __init__(
        self,
        trace: Trace | None,
        budget: Rows | None,
        notes: list[str],
        promise: Promise | None = None,
        audit: dict[str, Any] | None = None,
    ) -> None:
        self.trace, self.budget, self.promise, self.audit = trace, budget, promise, audit
        self.warnings = [*notes, *self._warnings()]

    @property
    def compute_speedup(self) -> float:
        """Uncached MACs over executed MACs, of the whole denoiser and all samples."""
        return (
            float(self.trace.uncached.sum() / self.trace.executed.sum())
            if self.trace and self.trace.executed.sum() > 0
            else 1.0
        )

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists only; None where a number is not known."""
        trace = self.trace
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
            "profile": self.promise.profile.name if self.promise else None,
            "profile_fits": self.promise is not None and self.promise.fits,
            "confidence": self.promise.confidence if self.promise else None,
            "audit": self.audit,
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1))

    def plot(self) -> "Figure":
        """A matplotlib figure: every sample's decisions over the steps, and its estimated error against its budget."""
        return import_module("dicache.reporting.page").figure(self)

    def save_html(self, path: str | Path) -> None:
        """Write one page with everything in it."""
        Path(path).write_text(import_module("dicache.reporting.page").html(self), encoding="utf-8")

    def _count(self) -> int:
        return len(self.trace.executed) if self.trace else 0

    def _samples(self) -> list[dict[str, Any]]:
        estimates = self._estimates().tolist() if self.trace and self.trace.records else [None] * self._count()
        return [self._sample(i, estimate) for i, estimate in enumerate(estimates)]

    def _sample(self, i: int, estimate: float | None) -> dict[str, Any]:
        assert self.trace is not None
        records = self.trace.records
        return {
            "budget": float(self.budget[i]) if self.budget is not None else None,
            "estimated_error": estimate,
            "computed_fraction": float(self.trace.executed[i] / self.trace.uncached[i])
            if self.trace.uncached[i] > 0
            else 1.0,
            "steps": len(records),
            "actions": [[Action(int(a)).name.lower() for a in record.action[i]] for record in records],
            "reasons": [[Reason(int(r)).name.lower() for r in record.reason[i]] for record in records],
        }

    def _estimates(self) -> Rows:
        """(B,); through the profile's map where there is one."""
        assert self.trace is not None
        spent = self.trace.records[-1].spent
        if self.promise is None:
            return spent
        return torch.tensor([self.promise.profile.true_error(float(error)) for error in spent], dtype=torch.float64)

    def _estimated(self) -> bool:
        """Whether anything but 0 was estimated of the error."""
        return bool(self.trace and self.trace.records and (self.trace.records[-1].spent > 0).any())

    def strip(self, i: int) -> str:
        """The decisions of one sample, a mark per step: # computed, = reused, / extrapolated, ~ aligned, * corrected,
        and + where some sites computed and some did not.
        """
        return "".join(_mark(record.action[i]) for record in self.trace.records) if self.trace else ""

    def _warnings(self) -> list[str]:
        if self.trace is None:
            return ["nothing has run yet."]
        found = [str(self.promise)] if self.promise else []
        if self.promise is None and (self.budget is not None or self._estimated()):
            found = ["the error is estimated without calibration: no statement about its probability is made."]
        if self.promise and bool((self.promise.levels == 0).any()):
            found.append("a budget is smaller than the profile can vouch for: everything was computed there.")
        if self.audit is not None and self.audit["within"] is not None:
            drift = (
                "; so few, at any time, would be chance once in 100 or less: the prompts have drifted"
                if self.audit["drift"]
                else ""
            )
            found.append(f"audited {self.audit['samples']} samples: {self.audit['within']:.1%} within budget{drift}.")
        if not self.trace.complete:
            found.append("the run is not over, or was interrupted.")
        records = self.trace.records
        if records and all((record.action == Action.COMPUTE).all() for record in records):
            reasons = Counter(int(r) for record in records for r in record.reason.flatten())
            found.append(f"the cache never engaged; mostly {REASONS[Reason(reasons.most_common(1)[0][0])]}.")
        if records and self.budget is not None:
            over = (self._estimates() > self.budget).nonzero().flatten().tolist()
            if over:
                found.append(
                    f"the estimated error passed the budget of samples {over}: a guess turned out worse than predicted."
                )
        return found

    def __str__(self) -> str:
        table = Table(title=f"dicache: {self.compute_speedup:.2f}x less computed")
        for column in ("sample", "budget", "estimated error", "work", "decisions"):
            table.add_column(column, no_wrap=True)
        for i, sample in enumerate(self._samples()):
            table.add_row(
                str(i),
                _number(sample["budget"]),
                _number(sample["estimated_error"]),
                f"{sample['computed_fraction']:.0%}",
                self.strip(i),
            )
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(table)
            for warning in self.warnings:
                console.print(f"note: {warning}")
        return capture.get()


def _sites(trace: Trace) -> list[dict[str, Any]]:
    """What was decided on its own, in the order of `actions`, with the cost of one row."""
    return [
        {"path": site.path, "kind": str(site.kind), "macs": macs}
        for site, macs in zip(trace.sites, trace.site_macs, strict=True)
    ]


def _step(record: Any) -> dict[str, Any]:  # noqa: ANN401
    numbers = {
        name: [float(x) if torch.isfinite(x) else None for x in getattr(record, name)]
        for name in ("predicted", "realised", "spent")
    }
    return {"index": record.index, "sigma": record.sigma, **numbers}


def _mark(actions: Grid) -> str:
    """Of one step; (S,)."""
    computed = (actions == Action.COMPUTE) | (actions == Action.UNSTORED)
    if bool(computed.any()) and not bool(computed.all()):
        return "+"
    return MARKS[Action(int(actions[0]))]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
