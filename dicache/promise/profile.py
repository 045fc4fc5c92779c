"""What calibration measured for one model, scheduler, step count and guidance: a JSON file, with its arrays in a
safetensors file beside it, bound to it by sha256.

    levels          (m,)      internal budgets, rising
    estimate, work  (n, m)    of every prompt that the promise was tested on, at every level
    loss.M          (n, m)    the same for every metric; larger is worse (PSNR and SSIM are stored negated)

A file is read as data and checked before anything is used: format, sizes, names, digest, shapes, signs. Nothing is
unpickled, nothing outside the JSON file's folder is opened. Arrays of other names, which earlier versions wrote, are
left unread.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dicache.errors import BudgetError, ProfileError
from dicache.files.checked import FileFault, plain_bytes, sibling
from dicache.models.conditioning import SIZE, Prints, alike
from dicache.planning.error_law import RULE
from dicache.promise.learn_then_test import accepted, failures_allowed, prompts_needed, rising
from dicache.solvers.same_steps import differs
from dicache.types import LATENT, Rows, Timetable, Wanted

FORMAT = "dicache.profile/1"
LARGEST = {"json": 4 << 20, "arrays": 256 << 20}
"""Bytes; more is no profile."""
LOSS = "loss."
LATENT_LOSS = LOSS + LATENT
NEEDED = ("levels", "estimate", "work", LATENT_LOSS)
"""Arrays, none of which holds a number below 0. The others are losses in further metrics."""
USUAL = 0.9
"""Share of prompts that keep a budget for which no confidence was given."""
CLOSE = 0.01
"""How far guidance scales may differ."""


@dataclass(frozen=True)
class Facts:
    """What a run must share with the calibration for the promise to hold."""

    model: str
    """Which denoiser (`dicache.models.identity`)."""
    scheduler: str
    sigmas: tuple[float, ...]
    """Per step, as the run's course has them."""
    guidance: float
    """Weight of the strongest branch; 1 without guidance."""
    rule: int = RULE
    """By which rule they were decided (`dicache.planning.error_law`)."""
    negative_conditions: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What the weaker branches of guidance were conditioned by (`dicache.models.conditioning`), such as an empty
    negative prompt, where it was the same for all prompts.
    """

    @property
    def steps(self) -> int:
        return len(self.sigmas)


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

    @property
    def metrics(self) -> list[str]:
        return sorted(key.removeprefix(LOSS) for key in self.arrays if key.startswith(LOSS))

    @property
    def prompts(self) -> int:
        """How many the promise was tested on."""
        return len(self.arrays["work"])

    def differs(self, timetable: Timetable, guidance: float | None) -> str | None:
        """In what this profile does not fit a run, by name; None if it fits. `guidance` None is not known yet. Negative
        prompts are the samples' own: `same_conditions`.
        """
        facts = self.facts
        if facts.rule != RULE:
            return f"decisions: it was calibrated by rule {facts.rule}, this version of dicache decides by rule {RULE}"
        steps = differs(timetable, facts.sigmas, facts.scheduler, "calibrated")
        if steps is not None:
            return steps
        if guidance is not None and not math.isclose(guidance, facts.guidance, abs_tol=CLOSE):
            return f"guidance: it was calibrated at {facts.guidance:g}, this run has {guidance:.4g}"
        return None

    def same_conditions(self, negative_conditions: Prints) -> Rows:
        """Whose weaker branches are conditioned as they were when this was calibrated, (B,) bool; all where that
        differed between prompts, (1,).
        """
        found = torch.ones(1, dtype=torch.bool)
        for key, known in self.facts.negative_conditions.items():
            found = found & (
                alike(negative_conditions[key], torch.tensor(known))
                if key in negative_conditions
                else torch.zeros_like(found)
            )
        return found

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
        if failures_allowed(self.prompts, confidence) < 0:
            raise ProfileError(
                f"confidence {confidence:g} needs a profile tested on {prompts_needed(confidence)} prompts or more; "
                f"{self.name!r} was tested on {self.prompts}. Calibrate with more prompts or ask for less."
            )
        count = accepted(losses, wanted.bound, confidence)
        return float(self.arrays["levels"][count - 1]) if count else 0.0

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

    def save(self, path: str | Path) -> None:
        """Write `path` (.json) and the arrays beside it (.safetensors). Raises ProfileError if that is impossible."""
        path = Path(path)
        if path.suffix != ".json":
            raise ProfileError(f"{path} is not a profile's name. Expected one that ends in .json.")
        data = save({key: np.ascontiguousarray(value, dtype=np.float32) for key, value in self.arrays.items()})
        beside = path.with_suffix(".safetensors")
        content = {
            "format": FORMAT,
            "model": self.facts.model,
            "scheduler": self.facts.scheduler,
            "sigmas": list(self.facts.sigmas),
            "guidance": self.facts.guidance,
            "rule": self.facts.rule,
            "weaker": {key: list(numbers) for key, numbers in self.facts.negative_conditions.items()},
            "about": dict(self.about),
            "arrays": {"file": beside.name, "sha256": hashlib.sha256(data).hexdigest()},
        }
        try:
            beside.write_bytes(data)
            path.write_text(json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise ProfileError(f"the profile cannot be written to {path}: {error}.") from error


def load_profile(path: str | Path) -> Profile:
    """Read what `Profile.save` wrote. Raises ProfileError, whatever is wrong with the files; nothing is loaded then."""
    path = Path(path)
    try:
        content = json.loads(plain_bytes(path, LARGEST["json"]).decode())
        facts, bound = _facts(content)
        data = plain_bytes(path.parent / bound["file"], LARGEST["arrays"])
        if hashlib.sha256(data).hexdigest() != bound["sha256"]:
            raise FileFault(f"{bound['file']} is not the file it was saved with (sha256 differs)")
        read = {key: value for key, value in load(data).items() if key in NEEDED or key.startswith(LOSS)}
        return Profile(facts, read, content["about"])
    except (FileFault, BudgetError, OSError, ValueError, OverflowError, RecursionError, SafetensorError) as error:
        raise ProfileError(
            f"{path} is no profile that can be used: {error}. Calibrate again: dicache.calibrate(...)."
        ) from error


def _facts(content: Any) -> tuple[Facts, dict[str, str]]:  # noqa: ANN401
    """Of the JSON, and the name and digest of the arrays' file."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileFault(f"its format is not {FORMAT}")
    kinds: dict[str, Any] = {
        "model": str,
        "scheduler": str,
        "sigmas": list,
        "guidance": (int, float),
        "rule": int,
        "about": dict,
        "arrays": dict,
    }
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind) or isinstance(content[key], bool):
            raise FileFault(f"{key!r} is missing or of another kind")
    bound = content["arrays"]
    if not all(isinstance(bound.get(key), str) for key in ("file", "sha256")):
        raise FileFault("'arrays' does not name a file and its sha256")
    sibling(bound["file"])
    if not all(isinstance(s, int | float) and not isinstance(s, bool) for s in content["sigmas"]):
        raise FileFault("'sigmas' are not all numbers")
    sigmas = tuple(float(s) for s in content["sigmas"])
    if content.get("prices", "law") != "law":
        raise FileFault("its runs were planned by measured prices, which this version of dicache does not plan by")
    about = content["model"], content["scheduler"], sigmas, float(content["guidance"])
    return Facts(*about, content["rule"], _negative_conditions(content.get("weaker", {}))), bound


def _negative_conditions(content: Any) -> dict[str, tuple[float, ...]]:  # noqa: ANN401
    if not isinstance(content, dict) or not all(isinstance(numbers, list) for numbers in content.values()):
        raise FileFault("'weaker' is no list of numbers by name")
    found = {key: tuple(n for n in numbers if type(n) in (int, float)) for key, numbers in content.items()}
    if any(len(numbers) != SIZE or len(content[key]) != SIZE for key, numbers in found.items()):
        raise FileFault(f"'weaker' does not hold {SIZE} numbers by name")
    return {key: tuple(map(float, numbers)) for key, numbers in found.items()}


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
    for key, value in arrays.items():
        expected = (levels,) if key == "levels" else (prompts, levels)
        if value.shape != expected or levels == 0:
            raise ProfileError(f"a profile's {key!r} has the shape {value.shape}; expected {expected}.")
        if not np.isfinite(value).all() or (key in NEEDED and (value < 0).any()):
            raise ProfileError(f"a profile's {key!r} holds numbers that are not finite or below 0.")
    if (np.diff(arrays["levels"]) <= 0).any() or (arrays["levels"] <= 0).any():
        raise ProfileError("a profile's levels must rise, from above 0.")
    if not ((arrays["work"] > 0) & (arrays["work"] <= 1.0001)).all():
        raise ProfileError("a profile's work must lie in (0, 1].")
