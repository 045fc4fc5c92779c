"""The model card of a profile: what it is of, what it promises, how it was made."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dicache.errors import ProfileError
from dicache.files.card import Card, sharing, table, write_card
from dicache.promise.facts import Facts
from dicache.promise.learn_then_test import LISTED, prompts_needed
from dicache.promise.metrics import asked
from dicache.promise.profile import PROFILE, USUAL, Profile
from dicache.types import LATENT, Wanted

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""That the card tells the worth of."""
USUAL_BUDGET = 0.05
REPOSITORY = "USER/REPOSITORY"


def share(profile: Profile, folder: Path, base_model: str | None, prompts: str | None) -> None:
    """As `Profile.share`."""
    with sharing(ProfileError, "profile", folder):
        profile.save(folder / PROFILE)
        write_card(folder, profile_card(profile, prompts).text(["diffusion", "profile"], base_model))


def profile_card(profile: Profile, prompts: str | None) -> Card:
    """`prompts` says in words what the prompts were."""
    facts, confidences = profile.facts, [c for c in LISTED if profile.prompts >= prompts_needed(c)]
    steps, confidence = facts.steps, f", confidence={USUAL}" if USUAL in confidences else ""
    budget = _usable(profile, USUAL if confidence else None)
    return Card(
        title=f"Profile of {profile.name}",
        lead=(
            "What calibration with dicache measured: how far images drawn faster are "
            "from what the same seed gives uncached. With it an error budget is a promise, for this very model, "
            "scheduler, number of steps, guidance and negative prompt, and prompts like those below."
        ),
        usage=(
            "import dicache\n\n"
            f'with dicache.enable(pipe, error_budget={budget:g}{confidence}, profile="{REPOSITORY}"):\n'
            f"    pipe(prompt, num_inference_steps={steps})  # and guided as below"
        ),
        facts=_facts(facts, profile.prompts),
        sections=[
            ("What it promises", _promises(profile, confidences)),
            ("How it was made", _made(profile.about, prompts)),
        ],
    )


def _usable(profile: Profile, confidence: float | None) -> float:
    """One that saves work."""
    least = profile.smallest(LATENT, confidence).bound
    return next((budget for budget in BUDGETS if budget >= max(least, USUAL_BUDGET)), BUDGETS[-1])


def _facts(facts: Facts, prompts: int) -> Mapping[str, str]:
    controls = "not known" if facts.controls is None else ", ".join(facts.controls) or "none"
    return {
        "model": facts.model,
        "scheduler": facts.scheduler,
        "steps": f"{facts.steps}, sigmas from {facts.sigmas[0]:.4g} to {facts.sigmas[-1]:.4g}",
        "guidance": f"{facts.guidance:.4g}",
        "latents": " x ".join(map(str, facts.size)) or "not known",
        "controls beside the prompt": controls,
        "prompts it was tested on": str(prompts),
        "rule of decisions": str(facts.rule),
    }


def _promises(profile: Profile, confidences: list[float]) -> str:
    if not confidences:
        return (
            f"Nothing: it was tested on {profile.prompts} prompts, and a confidence of {LISTED[0]:g} needs "
            f"{prompts_needed(LISTED[0])}. Its errors are estimates."
        )
    smallest = [(f"{c:g}", *(_bound(profile.smallest(metric, c)) for metric in profile.metrics)) for c in confidences]
    least = table(("confidence", *(f"smallest budget, {metric}" for metric in profile.metrics)), smallest)
    worth = table(
        ("error_budget", *(f"speed-up at confidence {c:g}" for c in confidences)),
        [(f"{budget:g}", *(_speedup(profile, budget, c) for c in confidences)) for budget in BUDGETS],
    )
    return (
        "With probability `confidence` a sample stays within the budget; of smaller budgets than these nothing is "
        f"saved under a promise.\n\n{least}\n\nSpeed-ups are uncached over executed multiply-accumulates of the "
        f"denoiser, on the prompts of the test.\n\n{worth}"
    )


def _bound(wanted: Wanted) -> str:
    return asked(wanted) if math.isfinite(wanted.bound) else "none"


def _speedup(profile: Profile, budget: float, confidence: float) -> str:
    level = profile.level(Wanted(LATENT, budget), confidence)
    if level == 0:
        return "-"
    column = int(np.flatnonzero(profile.arrays["levels"] == np.float32(level))[0])
    return f"{1 / float(profile.arrays['work'][:, column].mean()):.2f}x"


def _made(about: Mapping[str, Any], prompts: str | None) -> str:
    words = [] if prompts is None else [("prompts were", prompts)]
    rows = [*words, *((name, _plain(value)) for name, value in about.items())]
    return f"By `dicache.calibrate`.\n\n{table(('what', 'which'), rows)}"


def _plain(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(each)}" for name, each in value.items())
    return "none" if value in ("", None) else str(value)
