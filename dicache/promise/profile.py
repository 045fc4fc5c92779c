"""What calibration measured for one model, scheduler, step count and guidance.

levels          (m,)      internal budgets, rising
estimate, work  (n, m)    of every prompt that the promise was tested on, at every level
loss.M          (n, m)    the same for every metric; larger is worse (PSNR and SSIM are stored negated)
gains           (K, S)    of sites below the whole evaluation, where it is of those (`dicache.planning.gains`)
gains.half_log_snr  (K,)  where they were measured
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dicache.errors import ModeError, ProfileError
from dicache.files.bound_arrays import settled
from dicache.files.checked import refusing
from dicache.files.hub import located
from dicache.models.conditioning import Prints, alike
from dicache.planning.error_law import RULES
from dicache.planning.gains import Gains
from dicache.promise import profile_file
from dicache.promise.facts import GAIN_TIMES, GAINS, LATENT_LOSS, LOSS, NEEDED, Facts
from dicache.promise.learn_then_test import LISTED, accepted, failures_allowed, prompts_needed, rising
from dicache.promise.metrics import asked
from dicache.solvers.same_steps import differs
from dicache.types import LATENT, Rows, RunFacts, Wanted

PROFILE = "profile.json"
"""What a shared one is called."""
USUAL = 0.9
"""Share of prompts that keep a budget for which no confidence was given."""
CLOSE = 0.01
"""How far guidance scales may differ."""


@dataclass(frozen=True, eq=False)
class Profile:
    facts: Facts
    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of prompts, seed, what the calibration cost, versions: for people, nothing depends on it."""

    def __post_init__(self) -> None:
        _check(self.facts, self.arrays)

    @property
    def name(self) -> str:
        """Short and readable: model, scheduler, steps, guidance."""
        model, scheduler = self.facts.model.split("-")[0], self.facts.scheduler.split("(")[0]
        return f"{model}, {scheduler}, {self.facts.steps} steps, guidance {self.facts.guidance:g}"

    def __repr__(self) -> str:
        """In one line: what it is of, and from which budgets on it can promise which confidence."""
        promises = [
            f"{confidence:g} from {asked(self.smallest(LATENT, confidence))} on"
            for confidence in LISTED
            if self.prompts >= prompts_needed(confidence)
        ]
        promised = f"confidence {', '.join(promises)}" if promises else f"too few for a confidence of {LISTED[0]:g}"
        metrics = f"; metrics {', '.join(self.metrics)}" if len(self.metrics) > 1 else ""
        return f"<dicache.Profile {self.name}, tested on {self.prompts} prompts: {promised}{metrics}>"

    @property
    def metrics(self) -> list[str]:
        return sorted(key.removeprefix(LOSS) for key in self.arrays if key.startswith(LOSS))

    @property
    def prompts(self) -> int:
        """How many the promise was tested on."""
        return len(self.arrays["work"])

    def differs(self, run: RunFacts) -> str | None:
        """In what this profile does not fit a run, by name; None if it fits, as far as it is known yet. Negative
        prompts are the samples' own: `same_conditions`. The run's timetable must be known.
        """
        facts, timetable, guidance = self.facts, run.timetable, run.guidance
        assert timetable is not None
        if facts.rule not in RULES:
            rules = " or ".join(map(str, RULES))
            return f"decisions: it was calibrated by rule {facts.rule}, this version of dicache decides by rule {rules}"
        steps = differs(timetable, facts.sigmas, facts.scheduler, "calibrated")
        if steps is not None:
            return steps
        if guidance is not None and not math.isclose(guidance, facts.guidance, abs_tol=CLOSE):
            return f"guidance: it was calibrated at {facts.guidance:g}, this run has {guidance:.4g}"
        if facts.size and run.size and facts.size != run.size:
            return f"size: it was calibrated on latents {facts.size} each, those of this run are {run.size}"
        if guidance is not None and facts.controls not in (None, run.controls):
            before, here = (", ".join(names or ()) or "nothing" for names in (facts.controls, run.controls))
            return f"controls: it was calibrated with {before} beside the prompt, this run has {here}"
        return None

    def same_conditions(self, negative_conditions: Prints) -> Rows:
        """Which samples have the negative prompt of the calibration, (B,) bool; all where that differed between
        prompts, (1,).
        """
        same = torch.ones(1, dtype=torch.bool)
        for key, numbers in self.facts.negative_conditions.items():
            same = same & (
                alike(negative_conditions[key], torch.tensor(numbers))
                if key in negative_conditions
                else torch.zeros_like(same)
            )
        return same

    def level(self, wanted: Wanted, confidence: float | None) -> float:
        """The internal budget to spend: the largest whose losses keep `wanted` with this confidence, 0 where none does
        (`dicache.promise.learn_then_test`). Without a confidence nothing is promised, and it is the largest that kept
        `wanted` for nine of ten tested prompts.

        Raises ProfileError if the metric was not calibrated or the prompts are too few for the confidence.
        """
        losses = self.losses(wanted.metric)
        if wanted.bound <= 0 and wanted.metric == LATENT:
            return 0.0
        if confidence is None:
            within = ((losses <= wanted.bound).mean(0) >= USUAL).cumprod().sum()
            return float(self.arrays["levels"][within - 1]) if within else 0.0
        self._allowed(confidence)
        count = accepted(losses, wanted.bound, confidence)
        return float(self.arrays["levels"][count - 1]) if count else 0.0

    def smallest(self, metric: str, confidence: float | None) -> Wanted:
        """The smallest budget for which there is a level that saves work, inf where none does. Raises as `level`."""
        lost, n = np.sort(self.losses(metric), axis=0), self.prompts
        within = math.ceil(USUAL * n - 1e-9) if confidence is None else n - self._allowed(confidence)
        first = int((self.arrays["levels"] < self.saving).sum())
        bound = lost[within - 1, : first + 1].max() if n and self.saving < math.inf else math.inf
        return Wanted(metric, float(bound))

    @property
    def saving(self) -> float:
        """The smallest level at which any tested prompt skipped anything; inf where none is."""
        saves = (self.arrays["work"] < 0.999).any(0)
        return float(self.arrays["levels"][saves.argmax()]) if saves.any() else math.inf

    def _allowed(self, confidence: float) -> int:
        """How many tested prompts may miss a budget. Raises ProfileError where there are too few of them."""
        allowed = failures_allowed(self.prompts, confidence)
        if allowed < 0:
            raise ProfileError(
                f"confidence {confidence:g} needs a profile tested on {prompts_needed(confidence)} prompts or more; "
                f"{self.name!r} was tested on {self.prompts}. Calibrate with more prompts or ask for less."
            )
        return allowed

    def losses(self, metric: str) -> np.ndarray:
        """(n, m). Raises ProfileError if the profile has none of this metric."""
        if metric not in self.metrics:
            raise ProfileError(
                f"{self.name!r} was not calibrated for {metric}: it has {', '.join(self.metrics)}. "
                f"Calibrate again with metric={metric!r} among the metrics."
            )
        return np.asarray(self.arrays[LOSS + metric])

    def true_error(self, estimate: float) -> float:
        """What an estimate turned out to be on the tested prompts: a rising map, clamped to what was seen; the estimate
        itself before any test.
        """
        if not self.prompts or estimate <= 0:
            return estimate
        return float(np.exp(np.interp(np.log(estimate), *self._true_errors)))

    @cached_property
    def _true_errors(self) -> tuple[np.ndarray, np.ndarray]:
        return rising(self.arrays["estimate"].ravel(), self.arrays[LATENT_LOSS].ravel())

    @cached_property
    def gains(self) -> Gains | None:
        """How far errors of its sites reach the final latent; None where it is of the whole evaluation."""
        if GAINS not in self.arrays:
            return None
        times, rows = self.arrays[GAIN_TIMES], self.arrays[GAINS]
        return Gains(
            tuple(times.tolist()), tuple(tuple(row) for row in rows.tolist()), self.facts.parts, self.facts.model
        )

    def rule(self, error_budget: Any, confidence: float | None = None) -> Any:  # noqa: ANN401
        """The controller that keeps a budget with the composition that was calibrated, for
        `dicache.Config(profile.rule(0.05), sites=...)` with the same parts. Arguments are as in `enable`. Raises
        BudgetError for a budget that is none.
        """
        return import_module("dicache.promise.keep_budget").rule_of(self, error_budget, confidence)

    def save(self, path: str | Path) -> None:
        """Write `path` (.json) and the arrays beside it (.safetensors). Raises ProfileError if that is impossible."""
        profile_file.save(self.facts, self.arrays, self.about, Path(path))

    def share(self, folder: str | Path, *, base_model: str | None = None, prompts: str | None = None) -> None:
        """Write the profile into a folder, as profile.json with its arrays, and a model card, README.md: what it is of,
        what it promises, how it was made. `base_model` is the repository of the model, `prompts` says in words what the
        prompts were. `hf upload USER/REPOSITORY FOLDER` then puts it on the hub, from where `profile="USER/REPOSITORY"`
        takes it. Raises ProfileError where that is impossible, or a README.md lies there that dicache did not write.
        """
        import_module("dicache.promise.profile_card").share(self, Path(folder), base_model, prompts)

    @staticmethod
    def load(path: str | Path) -> "Profile":
        """As `dicache.load_profile`."""
        return load_profile(path)


def load_profile(path: str | Path) -> Profile:
    """Read what `Profile.save` or `Profile.share` wrote: a file, a folder, or "user/repository" of the Hugging Face hub
    (with @revision behind it for another than its newest). Raises ProfileError, whatever is wrong with it; nothing is
    loaded then.
    """
    remedy = "Calibrate again: dicache.calibrate(...)."
    with refusing(ProfileError, f"{path} is no profile that can be used", remedy):
        return Profile(*settled(located(path, PROFILE, "arrays"), profile_file.read))


def _check(facts: Facts, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ProfileError unless the arrays belong together and hold what they may."""
    steps = facts.steps
    if not 2 <= steps <= 10_000 or not np.isfinite(facts.sigmas).all() or not 1 <= facts.guidance < math.inf:
        raise ProfileError("a profile needs 2 or more finite sigmas and a finite guidance from 1 on.")
    if not all(np.isfinite(numbers).all() for numbers in facts.negative_conditions.values()):
        raise ProfileError("what a profile tells of the weaker branches must be finite.")
    if missing := set(NEEDED) - set(arrays):
        raise ProfileError(f"a profile without {', '.join(sorted(missing))}")
    if any(value.dtype.kind != "f" for value in arrays.values()):
        raise ProfileError("a profile's arrays must hold floating-point numbers.")
    prompts, levels = arrays["work"].shape if arrays["work"].ndim == 2 else (0, 0)
    _check_gains(facts, arrays)
    for key, value in arrays.items():
        if key in (GAINS, GAIN_TIMES):
            continue
        expected = (levels,) if key == "levels" else (prompts, levels)
        if value.shape != expected or levels == 0:
            raise ProfileError(f"a profile's {key!r} has the shape {value.shape}; expected {expected}.")
        if not np.isfinite(value).all() or (key in NEEDED and (value < 0).any()):
            raise ProfileError(f"a profile's {key!r} holds numbers that are not finite or below 0.")
    if (np.diff(arrays["levels"]) <= 0).any() or (arrays["levels"] <= 0).any():
        raise ProfileError("a profile's levels must rise, from above 0.")
    if not ((arrays["work"] > 0) & (arrays["work"] <= 1.0001)).all():
        raise ProfileError("a profile's work must lie in (0, 1].")


def gain_arrays(gains: Gains | None) -> Mapping[str, np.ndarray]:
    """As profiles have them; none where there are no gains."""
    if gains is None:
        return {}
    return {GAINS: np.array(gains.values, np.float32), GAIN_TIMES: np.array(gains.half_log_snrs, np.float32)}


def _check_gains(facts: Facts, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ProfileError unless there are gains of a named composition, or neither."""
    if {GAINS, GAIN_TIMES} & set(arrays) and not {GAINS, GAIN_TIMES} <= set(arrays):
        raise ProfileError(f"a profile has {GAINS} without {GAIN_TIMES}, or the other way round.")
    if GAINS not in arrays:
        return
    times, rows = arrays[GAIN_TIMES], arrays[GAINS]
    if not facts.parts or times.ndim != 1 or rows.ndim != 2 or not rows.size:
        raise ProfileError("a profile's gains are of a composition that it names, (K, S) at (K,) half log SNRs.")
    try:
        Gains(tuple(times.tolist()), tuple(tuple(row) for row in rows.tolist()))
    except ModeError as error:
        raise ProfileError(f"a profile's gains cannot be used: {error}") from error
