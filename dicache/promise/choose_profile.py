"""The profiles a run may be calibrated by, and which of them fits it. Only the run itself shows its steps, its
scheduler and its guidance, so the choice is made there.

named      by the user: a run that it does not fit is an error that says in what
found      shipped with the package or saved before, of this very model: taken where one fits, else there is none
nearest    the one with the nearest timetable is taken for any run of this model, and nothing is promised any more
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from dicache.errors import ProfileError
from dicache.planning.error_law import RULE, RULES
from dicache.promise.profile import Profile, load_profile
from dicache.types import RunFacts, Timetable

AskedProfile = str | Path | Profile | Sequence[str | Path | Profile]
"""What may stand for a profile, or several."""
SHIPPED = Path(__file__).parents[1] / "profiles"
HOW_TO = (
    "Make one with dicache.calibrate(pipe, prompts, steps=..., call={...}).save('mine.json'), where call holds what "
    "else the pipeline is called with, and pass profile='mine.json'"
)
CHECKED = ("decisions", "steps", "scheduler", "guidance", "size", "controls")
"""In what a profile may differ from a run (`Profile.differs`), in the order in which it is looked at."""


@dataclass(frozen=True, eq=False)
class ProfileChoice:
    profiles: tuple[Profile, ...]
    kind: Literal["named", "found", "nearest"] = "found"

    @property
    def rule(self) -> int:
        """By which all of them decide."""
        rules = {profile.facts.rule for profile in self.profiles} & set(RULES)
        return max(rules, default=RULE)

    def fitting(self, facts: RunFacts, *, needed: bool) -> Profile | None:
        """The profile for this run; None if none fits or its guidance is not known yet.

        Raises ProfileError where none fits but was named or is `needed`. Other negative prompts are an error there too,
        and so are those of several profiles in one batch: no sample is decided by its mates'.
        """
        timetable, guidance = facts.timetable, facts.guidance
        if timetable is None or not timetable.half_log_snrs:
            self._refuse("the timetable of a hand-written loop or of an unknown scheduler is not known", needed)
            return None
        reasons = [profile.differs(facts) for profile in self.profiles]
        fits = [p for p, reason in zip(self.profiles, reasons, strict=True) if reason is None]
        if not fits and (self.kind != "nearest" or not self.profiles):
            self._refuse(self._misfit(timetable, [str(reason) for reason in reasons]), needed)
            return None
        if guidance is None:
            return None
        if not fits:
            return _moved(self._nearest(timetable, guidance), facts, timetable, guidance)
        return self._with_same_conditions(fits, facts) if self.kind == "named" or needed else fits[0]

    def _with_same_conditions(self, fits: Sequence[Profile], facts: RunFacts) -> Profile:
        """The first that has every sample's negative prompt."""
        if not any(profile.facts.negative_conditions for profile in fits):
            return fits[0]
        rows = torch.stack(
            torch.broadcast_tensors(*(profile.same_conditions(facts.negative_conditions) for profile in fits))
        )
        if not rows.any(0).all():
            misfits = (~rows.any(0)).nonzero().flatten().tolist()
            samples = "every sample" if len(misfits) == rows.shape[1] else f"samples {', '.join(map(str, misfits))}"
            self._refuse(f"{fits[0].name!r} differs in negative prompt: that of {samples} is another", True)
        indices = set(rows.int().argmax(0).tolist())
        if len(indices) > 1:
            raise ProfileError("one batch has negative prompts of several profiles. Draw them apart.")
        return fits[indices.pop()]

    def _refuse(self, why: str, needed: bool) -> None:
        if self.kind == "named" or needed:
            nearest = "profile='nearest'" if self.kind == "found" else "profile=[yours, 'nearest']"
            raise ProfileError(
                f"no profile fits this run: {why}. {HOW_TO}. To run with no promise, leave out confidence and pass "
                f"{nearest}."
            )

    def _misfit(self, timetable: Timetable, reasons: Sequence[str]) -> str:
        """In what the profile that is closest differs, and what others there are."""
        if not reasons:
            return "there is none of this model"

        def apart(k: int) -> tuple[int, int]:
            steps = abs(self.profiles[k].facts.steps - len(timetable.sigmas))
            return -CHECKED.index(reasons[k].split(":")[0]), steps

        closest = min(range(len(reasons)), key=apart)
        text = f"{self.profiles[closest].name!r} differs in {reasons[closest]}"
        return text if len(reasons) == 1 else f"{text}; there are profiles for {_listed(self.profiles)}"

    def _nearest(self, timetable: Timetable, guidance: float) -> Profile:
        def apart(profile: Profile) -> float:
            facts = profile.facts
            steps, scale = len(timetable.sigmas) / facts.steps, guidance / facts.guidance
            grids = np.interp(np.linspace(0, 1, 9), np.linspace(0, 1, facts.steps), facts.sigmas)
            here = np.interp(np.linspace(0, 1, 9), np.linspace(0, 1, len(timetable.sigmas)), timetable.sigmas)
            return abs(math.log(steps)) + abs(math.log(scale)) + float(np.abs(grids - here).max() / max(facts.sigmas))

        return min(self.profiles, key=apart)


def _listed(profiles: Sequence[Profile]) -> str:
    """Their steps and guidances, in few words."""
    scales: dict[int, set[float]] = {}
    for profile in profiles:
        scales.setdefault(profile.facts.steps, set()).add(round(profile.facts.guidance, 3))
    return ", ".join(
        f"{steps} steps (guidance {', '.join(f'{scale:g}' for scale in sorted(scales[steps]))})"
        for steps in sorted(scales)
    )


def _moved(profile: Profile, run: RunFacts, timetable: Timetable, guidance: float) -> Profile:
    """Its levels and what they lost, as if they had been tested on this run's steps: nothing is promised by that."""
    scale = max(1.0, round(guidance, 3))
    facts = replace(profile.facts, scheduler=timetable.solver, sigmas=timetable.sigmas, guidance=scale)
    facts = replace(facts, size=run.size, controls=run.controls)
    return replace(profile, facts=facts)


def shipped(model: str) -> tuple[Profile, ...]:
    """The profiles of this model that come with the package."""
    return tuple(profile for profile in _all_shipped() if profile.facts.model == model)


def may_have_shipped(outline: str) -> bool:
    """Whether a model of this outline (`dicache.models.identity`) may have one: no other needs its weights read."""
    return any(profile.facts.model.startswith(outline) for profile in _all_shipped())


@lru_cache(maxsize=1)
def _all_shipped() -> tuple[Profile, ...]:
    return tuple(load_profile(path) for path in sorted(SHIPPED.glob("*.json")))


def profiles_for(model: str, profile: "str | Path | Profile | Sequence[str | Path | Profile] | None") -> ProfileChoice:
    """What `enable(profile=...)` means for a model. Raises ProfileError for one of another model, or a damaged one."""
    if profile is None or profile == "nearest":
        return ProfileChoice(shipped(model), "found" if profile is None else "nearest")
    entries = [profile] if isinstance(profile, str | Path | Profile) else list(profile)
    nearest = "nearest" in entries
    loaded = tuple(p if isinstance(p, Profile) else load_profile(p) for p in entries if p != "nearest")
    for one in loaded:
        if one.facts.parts:
            raise ProfileError(
                f"the profile {one.name!r} was calibrated with {one.facts.parts}. Give these parts and its rule: "
                "config=dicache.Config(profile.rule(0.05), sites=...)."
            )
        if one.facts.model != model:
            raise ProfileError(
                f"the profile {one.name!r} is of another model: {one.facts.model}, this is {model}. A model with "
                f"other LoRAs, or without, is another one. {HOW_TO}."
            )
    if len(rules := {one.facts.rule for one in loaded}) > 1:
        each = ", ".join(f"{one.name!r} by rule {one.facts.rule}" for one in loaded)
        raise ProfileError(
            f"the profiles were calibrated by rules {sorted(rules)}, which decide differently: {each}. Pass those of "
            "one rule, or calibrate the older ones again."
        )
    return ProfileChoice(loaded, "nearest" if nearest else "named")
