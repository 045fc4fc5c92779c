"""What is said before something long begins, and the question whether to go on."""

import itertools
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from dicache.cli.arguments import console
from dicache.measuring.calibration_plan import BUDGETS, CalibrationPlan, expected_use
from dicache.promise.choose_profile import SHIPPED
from dicache.promise.learn_then_test import LISTED, prompts_needed
from dicache.promise.profile import USUAL, Profile, load_profile
from dicache.reporting.words import duration
from dicache.types import LATENT, Wanted

SPEEDUPS, MOST = (1.2, 1.5, 2.0, 3.0), 1.0
"""That a measured profile's budgets are told for, up to MOST."""
ROUNDS = (64, 120, 240, 480)
"""Numbers of prompts that the table shows beside those there are."""


@dataclass(frozen=True)
class Approval:
    """Shows a plan, and asks in a terminal how many of the prompts to go on with."""

    ask: bool = True
    quiet: bool = False

    def __call__(self, plan: CalibrationPlan) -> int:
        if self.quiet:
            return plan.prompts
        shown = console(stderr=True)
        shown.print(plan_table(plan))
        for line in worth(plan):
            shown.print(line, soft_wrap=True)
        return self.agreed(plan.prompts, least=8, shown=shown)

    def agreed(self, prompts: int, least: int, shown: Console) -> int:
        """How many to go on with. Raises KeyboardInterrupt for none."""
        if self.quiet or not self.ask or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return prompts
        while True:
            answer = typer.prompt(
                f"Go on? Enter for all {prompts} prompts, a number for fewer, q to stop",
                default="",
                err=True,
                show_default=False,
            ).strip()
            if answer.lower() in ("q", "n", "no"):
                raise KeyboardInterrupt
            if answer.lower() in ("", "y", "yes"):
                return prompts
            if answer.isdecimal() and least <= int(answer) <= prompts:
                return int(answer)
            shown.print(f"Expected a number from {least} to {prompts}; for more prompts give a file that holds more.")


def plan_table(plan: CalibrationPlan) -> Table:
    """What fewer and more prompts take and buy: how many may miss a promised budget, of those that it lets miss."""
    counts = sorted({plan.prompts, *(n for n in ROUNDS), *map(prompts_needed, LISTED)})
    profile = load_profile(SHIPPED / "reference-28-guided.json")
    table = Table(title="what more prompts buy", title_justify="left")
    for column in ("prompts", "runs", "time", *(f"may miss at {c:g}" for c in LISTED), "used at 0.9"):
        table.add_column(column, justify="right", no_wrap=True)
    for prompts in counts:
        other = plan.of(prompts)
        misses = [_misses(other, confidence) for confidence in LISTED]
        use = expected_use(profile, prompts, 0.9)
        time = "?" if other.remaining is None else duration(other.remaining)
        name = f"{prompts} (yours)" if prompts == plan.prompts else str(prompts)
        table.add_row(name, str(other.samples), time, *misses, "-" if use is None else f"{use:.0%}")
    return table


def _misses(plan: CalibrationPlan, confidence: float) -> str:
    allowed = plan.misses(confidence)
    return "-" if allowed < 0 else f"{allowed} of {(1 - confidence) * plan.prompts:.3g}"


def worth(plan: CalibrationPlan) -> Iterable[str]:
    """In words, what these prompts can promise."""
    promised = [confidence for confidence in LISTED if plan.misses(confidence) >= 0]
    if not promised:
        fewest = prompts_needed(LISTED[0])
        yield f"{plan.prompts} prompts can promise no confidence from {LISTED[0]:g} on: {fewest} can."
        return
    best = promised[-1]
    yield (
        f"{plan.prompts} prompts can promise up to a confidence of {best:g}. 'May miss' is how many of them may pass a "
        "budget that is promised all the same, of those that the confidence itself would let pass; used is the median "
        f"error over the budget (the mean of {', '.join(f'{b:g}' for b in BUDGETS)}), if errors spread as those of the "
        "model that ships: yours are measured now."
    )
    usual = min(best, USUAL)
    more = next(n for n in itertools.count(plan.prompts + 1) if plan.of(n).misses(usual) > plan.misses(usual))
    yield f"From {more} prompts on one more may miss at {usual:g}: more of a budget is used there than just below."


def use_lines(profile: Profile) -> Iterable[str]:
    """What a measured profile can promise, and how much of a budget that uses on its own prompts."""
    for confidence in LISTED:
        if profile.prompts < prompts_needed(confidence):
            yield f"confidence {confidence:g}: needs {prompts_needed(confidence)} prompts"
            continue
        parts = [_used(profile, budget, confidence) for budget in BUDGETS]
        yield f"confidence {confidence:g}: {', '.join(parts)}"
        if reached := list(_reached(profile, confidence)):
            yield f"    the least budgets that reach a speed-up: {', '.join(reached)}"


def _reached(profile: Profile, confidence: float) -> Iterable[str]:
    """The least budget that computes so much less, for each of SPEEDUPS that any budget up to MOST reaches."""
    budgets = np.geomspace(min(BUDGETS) / 10, MOST, 100)
    levels = [profile.level(Wanted(LATENT, float(budget)), confidence) for budget in budgets]
    works = [_work(profile, level) for level in levels]
    for speedup in SPEEDUPS:
        enough = [budget for budget, work in zip(budgets, works, strict=True) if work * speedup <= 1]
        if enough:
            yield f"{speedup:g}x from {enough[0]:.3g} on"


def _work(profile: Profile, level: float) -> float:
    """The median share that the tested prompts executed."""
    at = int(np.abs(profile.arrays["levels"] - level).argmin())
    return float(np.median(profile.arrays["work"][:, at])) if level else 1.0


def _used(profile: Profile, budget: float, confidence: float) -> str:
    level = profile.level(Wanted(LATENT, budget), confidence)
    if not level:
        return f"budget {budget:g} computes everything"
    at = int(np.abs(profile.arrays["levels"] - level).argmin())
    error = float(np.median(profile.losses(LATENT)[:, at]))
    return f"budget {budget:g} is used to {error / budget:.0%}, {1 / _work(profile, level):.2f}x"
