"""What a run did, for people and for programs."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dicache.controllers.base import ProfileUse
from dicache.files.atomic import write_text
from dicache.reporting import notes
from dicache.reporting.promise_note import fits
from dicache.reporting.text import printed, strip
from dicache.runtime.trace import Record, Trace, of_sample
from dicache.types import Action, Grid, Reason, Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ATTRIBUTES = {
    "speedup": "compute_speedup",
    **{name: name for name in ("model", "scheduler", "complete", "denoiser_speedup", "executed_macs", "uncached_macs")},
    **{name: name for name in ("cache_bytes", "overhead_seconds", "profile", "profile_fits", "confidence")},
}
"""By what they are called in `Report.attributes`: keys of `Report.to_dict`."""
_OF_SAMPLES = {
    "budgets": "budget",
    "estimated_errors": "estimated_error",
    "true_errors": "true_error",
    "work": "computed_fraction",
}
"""The same of each sample."""


class Setting(NamedTuple):
    """On what a run was, and whether the cache still is."""

    model: str = ""
    scheduler: str = ""
    """With the options that change what it does; empty where there is none."""
    on: bool = True


class Report:
    """One run of one denoiser. Prints as a table, shows as one in a notebook; `to_dict` has all of it."""

    trace: Trace | None
    budget: Rows | None
    profile: ProfileUse | None
    audit: dict[str, Any] | None
    true_errors: dict[int, float]
    setting: Setting

    def __init__(
        self,
        trace: Trace | None,
        budget: Rows | None,
        noted: list[str],
        profile: ProfileUse | None = None,
        audit: dict[str, Any] | None = None,
        true_errors: Mapping[int, float] | None = None,
        setting: Setting | None = None,
    ) -> None:
        """`true_errors` are those of this run's samples that were audited; `audit` is of all runs."""
        self.trace, self.budget, self.profile, self.audit = trace, budget, profile, audit
        self.true_errors, self.setting = dict(true_errors or {}), setting or Setting()
        self.noted = noted
        self.warnings: list[str] = [*noted, *self._warnings()]

    def of_sample(self, i: int) -> "Report":
        """The report on one sample of the batch; what is not by sample (notes, bytes, seconds) is the batch's."""
        row = slice(i, i + 1)
        profile = None if self.profile is None else self.profile._replace(levels=self.profile.levels[row])
        errors = {0: self.true_errors[i]} if i in self.true_errors else {}
        trace = None if self.trace is None else of_sample(self.trace, i)
        budget = None if self.budget is None else self.budget[row]
        return Report(trace, budget, self.noted, profile, self.audit, errors, self.setting)

    @property
    def headline(self) -> str:
        """What was saved, or that there is nothing to tell."""
        off = "" if self.setting.on else " (off by now)"
        if self.trace is None:
            return f"dicache{off}: nothing has run"
        if not self.trace.records:
            return f"dicache{off}: {'the run was refused' if self.trace.refusal else 'no step is over yet'}"
        return f"dicache{off}: {self.compute_speedup:.2f}x less computed"

    @property
    def compute_speedup(self) -> float:
        """Uncached MACs over executed MACs, of all networks that run in the denoising loop and of all samples."""
        return speedup(self.trace)

    @property
    def denoiser_speedup(self) -> float:
        """The same of the denoiser alone, which is what `speedup=` and schedules reckon with."""
        return ratio(self.trace.uncached, self.trace.executed) if self.trace else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and mappings only, as JSON has them; None where a number is not known."""
        trace, profile = self.trace, self.profile
        return {
            "headline": self.headline,
            "model": self.setting.model,
            "scheduler": self.setting.scheduler,
            "enabled": self.setting.on,
            "samples": self._samples(),
            "steps": [self._step(trace, record) for record in trace.records] if trace else [],
            "compute_speedup": self.compute_speedup,
            "executed_macs": float(trace.loop_executed.sum()) if trace else 0.0,
            "executed_int8_macs": float(trace.executed_int8.sum()) if trace else 0.0,
            "uncached_macs": float(trace.loop_uncached.sum()) if trace else 0.0,
            "denoiser_speedup": self.denoiser_speedup,
            "side_networks": _side_networks(trace) if trace else [],
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

    def attributes(self) -> dict[str, bool | int | float | str | list[str] | list[float]]:
        """The run in a flat dict, for `span.set_attributes` of OpenTelemetry or a line of a log: names that begin with
        "dicache.", values that are numbers, strings or lists of one of them. What is not known is left out, and a list
        where it is not known of all samples.
        """
        facts = self.to_dict()
        samples, trace = facts["samples"], self.trace
        named = {name: facts[key] for name, key in _ATTRIBUTES.items()}
        named |= {"samples": len(samples), "steps": len(facts["steps"])}
        named |= {name: [sample[key] for sample in samples] for name, key in _OF_SAMPLES.items()}
        named |= {"decisions": [self.strip(i) for i in range(len(samples))], "warnings": list(map(str, self.warnings))}
        named |= {"not_finite_samples": len(trace.not_finite) if trace else 0}
        return {f"dicache.{name}": value for name, value in named.items() if not _is_unknown(value)}

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON. Raises FileError where that is impossible."""
        write_text(path, json.dumps(self.to_dict(), indent=1))

    def plot(self) -> "Figure":
        """A matplotlib figure: every sample's decisions over the steps, and its estimated error against its budget."""
        return import_module("dicache.reporting.page").figure(self.to_dict())

    def save_html(
        self,
        path: str | Path,
        *,
        pictures: Sequence[Any] | None = None,
        prompts: Sequence[str] | None = None,
        uncached: Sequence[Any] | None = None,
    ) -> None:
        """Write one page with everything in it; with a picture of PIL per sample (of videos a list of frames), its
        prompt, and what was drawn without dicache, where they are given. Raises FileError where that is impossible, or
        there are not as many of them as samples.
        """
        facts = self.to_dict()
        cards = import_module("dicache.reporting.shown").shown(len(facts["samples"]), prompts, pictures, uncached)
        write_text(path, import_module("dicache.reporting.page").page(facts, cards))

    def strip(self, i: int) -> str:
        """The decisions of one sample, a mark per step: # computed, = reused, / extrapolated, ~ aligned, * corrected,
        and + where some sites computed and some did not.
        """
        return strip(_names(record.action[i], Action) for record in self.trace.records) if self.trace else ""

    def __repr__(self) -> str:
        off = "" if self.setting.on else ", the cache is off by now"
        return f"<dicache.Report: {one_line(self.trace)}{off}>"

    def __str__(self) -> str:
        return printed({"headline": self.headline, "samples": self._samples(), "warnings": self.warnings})

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return import_module("dicache.reporting.page").fragment(self.to_dict())

    def _samples(self) -> list[dict[str, Any]]:
        """None before the first step is over: only then it is known how many there are."""
        if self.trace is None or not self.trace.records:
            return []
        errors = estimates(self.trace, self.trace.records[-1], self.profile)
        return [self._sample(self.trace, i, error) for i, error in enumerate(errors.tolist())]

    def _sample(self, trace: Trace, i: int, error: float) -> dict[str, Any]:
        executed, uncached = float(trace.loop_executed[i]), float(trace.loop_uncached[i])
        return {
            "budget": None if self.budget is None else float(self.budget[i]),
            "estimated_error": error if math.isfinite(error) else None,
            "true_error": self.true_errors.get(i),
            "computed_fraction": executed / uncached if uncached > 0 else 1.0,
            "steps": len(trace.records),
            "actions": [_names(record.action[i], Action) for record in trace.records],
            "reasons": [_names(record.reason[i], Reason) for record in trace.records],
        }

    def _step(self, trace: Trace, record: Record) -> dict[str, Any]:
        numbers = {"predicted": record.predicted, "realised": record.realised, "spent": record.spent}
        numbers["estimated_error"] = estimates(trace, record, self.profile)
        finite = {name: [float(x) if x.isfinite() else None for x in values] for name, values in numbers.items()}
        return {"index": record.index, "sigma": record.sigma, **finite}

    def _warnings(self) -> list[str]:
        trace = self.trace
        if trace is None:
            return ["nothing has run yet." if self.setting.on else "nothing ran before the cache was taken off."]
        errors = estimates(trace, trace.records[-1], self.profile) if trace.records else None
        warnings = [*notes.worth(trace, self.budget, self.profile), *notes.large(self.budget)]
        warnings += [*notes.not_finite(trace), *notes.audits(self.audit)]
        if trace.refusal:
            warnings.append(f"the run was refused: {trace.refusal}")
        elif not trace.complete:
            warnings.append("the run is not over, or was interrupted.")
        warnings += [*notes.beside_denoiser(_side_networks(trace), self.denoiser_speedup), *notes.in_int8(trace)]
        return [*warnings, *notes.never_engaged(trace), *notes.over(self.budget, errors, self.true_errors)]


def estimates(trace: Trace, upto: Record, profile: ProfileUse | None) -> Rows:
    """Errors of the final latent, (B,), up to this step; through the profile's map where there is one. nan for samples
    that are not finite.
    """
    lost = torch.tensor([sample in trace.not_finite for sample in range(len(upto.spent))])
    spent = torch.where(lost, torch.nan, upto.spent)
    if profile is None:
        return spent
    mapped = [math.nan if error.isnan() else profile.true_error(float(error)) for error in spent]
    return torch.tensor(mapped, dtype=torch.float64)


def speedup(trace: Trace | None) -> float:
    """Uncached MACs over executed MACs, of all networks of the loop."""
    return ratio(trace.loop_uncached, trace.loop_executed) if trace else 1.0


def ratio(uncached: Rows, executed: Rows) -> float:
    """Of their sums over samples, (B,) each; 1 where nothing was executed."""
    return float(uncached.sum() / executed.sum()) if executed.sum() > 0 else 1.0


def one_line(trace: Trace | None) -> str:
    """The run in a few words."""
    if trace is None:
        return "nothing has run yet"
    if not trace.records:
        return "the run was refused" if trace.refusal else "no step is over yet"
    end = "" if trace.complete else " so far"
    return f"samples {len(trace.executed)}, steps {len(trace.records)}{end}, {speedup(trace):.2f}x less computed"


def _sites(trace: Trace) -> list[dict[str, Any]]:
    """What was decided on its own, in the order of `actions`, with the cost of one row."""
    return [
        {"path": site.path, "kind": str(site.kind), "macs": macs}
        for site, macs in zip(trace.sites, trace.site_macs, strict=True)
    ]


def _side_networks(trace: Trace) -> list[dict[str, Any]]:
    """What ran in the loop beside the denoiser, what it would have been uncached, and its share of all that was
    executed.
    """
    samples, executed = len(trace.executed), float(trace.loop_executed.sum())
    networks = [(work.name, *work.total(samples)) for work in trace.side_work]
    return [
        {"name": name, "macs": macs, "uncached_macs": uncached, "share": macs / executed}
        for name, macs, uncached in networks
    ]


def _is_unknown(value: object) -> bool:
    return value is None or (isinstance(value, list) and None in value)


def _names(numbers: Grid, kind: type[Action] | type[Reason]) -> list[str]:
    """Of one step; (S,)."""
    return [kind(int(number)).name.lower() for number in numbers]
