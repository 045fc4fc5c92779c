"""What a report says below its table: what the estimate is worth, and what a reader would else have to find out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dicache.controllers.base import ProfileUse
from dicache.reporting.promise_note import fits, promise_note, too_small_note
from dicache.runtime.trace import Trace
from dicache.types import REASONS, Action, Reason, Rows


class Alarm(str):
    """A note that says that a budget was passed, or that a promise does not hold."""


def worth(trace: Trace, budget: Rows | None, profile: ProfileUse | None) -> list[str]:
    """What the estimate is."""
    if profile is None:
        estimated = bool(trace.records) and bool((trace.records[-1].spent > 0).any())
        text = "the error is estimated without calibration: no statement about its probability is made."
        return [text] if estimated or (budget is not None and engaged(trace)) else []
    if len(trace.not_finite) == len(trace.executed):
        return []
    computed = trace.executed.cpu() >= trace.uncached.cpu()
    too_small = (profile.levels == 0) | ((profile.levels < profile.saving) & computed)
    promise = promise_note(profile)
    broken = profile.confidence is not None and not fits(profile)
    return [Alarm(promise) if broken else promise] + ([too_small_note(profile)] if bool(too_small.any()) else [])


def large(budget: Rows | None) -> list[str]:
    """Budgets that may be meant otherwise."""
    most = 0.0 if budget is None else float(budget.max())
    text = f"a budget of {most:g} is {100 * most:g} % of the final latent: budgets are shares, 0.05 stands for 5 %."
    return [text] if most >= 1 else []


def audits(audit: Mapping[str, Any] | None) -> list[str]:
    """Of all runs so far."""
    if audit is None or audit["within"] is None:
        return []
    drift = "; so few, at any time, would be chance once in 100 or less: the prompts have drifted"
    text = f"audited {audit['samples']} samples: {audit['within']:.1%} within budget"
    return [Alarm(f"{text}{drift}.") if audit["drift"] else f"{text}."]


def not_finite(trace: Trace) -> list[str]:
    """The samples of which nothing can be said."""
    lost = trace.not_finite.items()
    notes: list[str] = [
        Alarm(f"sample {sample} is not finite from step {step} on: nothing is said of it.") for sample, step in lost
    ]
    return notes


def over(budget: Rows | None, estimates: Rows | None, true_errors: Mapping[int, float]) -> list[str]:
    """The samples that passed their budget, by what is estimated (nan where nothing is) and by what was audited."""
    if budget is None or estimates is None:
        return []
    passed = (estimates > budget).nonzero().flatten().tolist()
    text = f"the estimated error passed the budget of samples {passed}: a guess turned out worse than predicted."
    missed = {i: error for i, error in true_errors.items() if error > budget[i]}
    lines = [f"{i}: {error:.4f}, estimated {float(estimates[i]):.4f}" for i, error in missed.items()]
    loud = (
        f"OVER BUDGET, as audited: the true error of samples {list(missed)} passed their budget ({'; '.join(lines)})."
    )
    return [*([Alarm(text)] if passed else []), *([Alarm(loud)] if missed else [])]


def in_int8(trace: Trace) -> list[str]:
    """What was multiplied in 8-bit integers: what that saves is the device's affair, and in no ratio above."""
    products = float(trace.executed_int8.sum())
    if not products:
        return []
    return [f"{products / float(trace.executed.sum()):.0%} of the executed MACs are products of 8-bit integers."]


def beside_denoiser(networks: Sequence[Mapping[str, Any]], denoiser_speedup: float) -> list[str]:
    """What else runs in the loop, and how much of it was skipped."""
    if not networks:
        return []
    shares = ", ".join(f"{each['name']}, {each['share']:.0%} of the work, {skipped(each)}" for each in networks)
    return [f"beside the denoiser: {shares}; of the denoiser alone {denoiser_speedup:.2f}x less computed."]


def skipped(network: Mapping[str, Any]) -> str:
    """How much a network beside the denoiser was left out."""
    executed, uncached = network["macs"], network["uncached_macs"]
    return f"{uncached / executed:.2f}x less computed" if 0 < executed < uncached else "never skipped"


def never_held(trace: Trace) -> list[str]:
    """Where a rule would have networks beside the denoiser held, and none was."""
    totals = [work.total(len(trace.executed)) for work in trace.side_work]
    if any(executed < uncached for executed, uncached in totals):
        return []
    names = ", ".join(work.name for work in trace.side_work)
    if not names:
        return ["no network beside the denoiser was held: this run called none that is a part of the pipeline."]
    return [
        f"{names} was not held: the rule has it run at every step, it feeds more than the denoiser, the pipeline "
        "changes what it gives, it is called with another latent or time, it is compiled, or two denoisers take turns."
    ]


def computed_steps(trace: Trace) -> Rows:
    """At how many steps each sample computed anything, (B,)."""
    return torch.stack([(record.action == Action.COMPUTE).any(1) for record in trace.records]).sum(0)


def engaged(trace: Trace) -> bool:
    """Whether anything was skipped."""
    return any(bool((record.action != Action.COMPUTE).any()) for record in trace.records)


def never_engaged(trace: Trace) -> list[str]:
    """Says why nothing was skipped, where that is so."""
    if not trace.records or engaged(trace):
        return []
    reasons = Counter(int(reason) for record in trace.records for reason in record.reason.flatten())
    return [f"the cache never engaged; mostly {REASONS[Reason(reasons.most_common(1)[0][0])]}."]


def exhausted(trace: Trace, budget: Rows, fewest: int | None) -> list[str]:
    """Samples that computed no more than the `fewest` steps that there are, and have most of their budget left."""
    if fewest is None or not trace.records:
        return []
    computed = computed_steps(trace)
    left = ((computed <= fewest) & (budget > 4 * trace.records[-1].spent)).nonzero().flatten().tolist()
    samples = [sample for sample in left if sample not in trace.not_finite]
    text = (
        f"samples {samples} have budget left, and no more can be skipped in a run of {len(trace.records)} steps: "
        f"{fewest} of them always compute. Fewer steps would be faster, more steps would leave more to skip."
    )
    return [text] if samples else []
