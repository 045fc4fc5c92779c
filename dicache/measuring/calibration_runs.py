"""The runs of a calibration, and what is read off them: every batch once uncached and once within every level. What the
checkpoint holds is not drawn again.

The first batch is begun before the rest is agreed to: its uncached run, and its run within the middle level, say how
long all of it will take (`dicache.measuring.calibration_plan`).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from dicache.api import enable
from dicache.config import Config
from dicache.controllers.planned import Planned
from dicache.defaults import for_profile
from dicache.errors import ProfileError
from dicache.files.checkpoint import Checkpoint, Entry
from dicache.measuring.calibration_plan import seconds_of
from dicache.measuring.prompt_runs import Drawer, Drawn, text_of
from dicache.measuring.recording import Recorder
from dicache.models.conditioning import alike
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.facts import LATENT_LOSS, LOSS, NEEDED, Facts
from dicache.promise.keep_budget import FixedLevel
from dicache.promise.metrics import Metric, loss, relative_error
from dicache.promise.profile import Profile
from dicache.runtime.trace import Trace
from dicache.types import RunFacts, Timetable

SHORTEST = 6
"""Steps of a run that can be calibrated."""
NEGATIVE_CONDITIONS = "negative."
SECONDS = "seconds"
"""What a run took, of which nothing but the time that is said beforehand depends."""


class UncachedBatch(NamedTuple):
    """One batch, computing everything."""

    drawn: Drawn
    shown: Entry
    """What the run tells of itself: sigmas and guidance, size, solver, negative prompts."""
    timetable: Timetable


class PromptBatch(NamedTuple):
    indices: Sequence[int]
    name: str
    """In the checkpoint."""
    uncached: Callable[[], UncachedBatch]
    """Its uncached run, drawn when it is first asked for."""


class CalibrationRuns:
    """Draws what the checkpoint does not hold yet."""

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401
        drawer: Drawer,
        checkpoint: Checkpoint,
        levels: Sequence[float],
        metrics: Mapping[str, Metric],
    ) -> None:
        self.pipe, self.drawer, self.checkpoint, self.levels, self.metrics = pipe, drawer, checkpoint, levels, metrics
        self.tick: Callable[[str], None] = lambda what: None
        self.begun: dict[str, Entry] = {}
        """Entries of the first batch, by name."""
        self.opened: PromptBatch | None = None

    def seconds(self, indices: Sequence[int], model: str) -> float | None:
        """What all runs of a prompt take, from two runs of the first batch; None where a checkpoint does not say."""
        self.opened, middle = self.batch(0, indices), len(self.levels) // 2
        shown = self.begun[self._uncached_name(self.opened)] = self._show(self.opened)
        name, make = self._test(self.opened, _untested(model, shown), self.levels[middle])
        tested = self.begun[name] = self.checkpoint.entry(name, make)
        if SECONDS not in shown or SECONDS not in tested:
            return None
        seen, drawn = float(tested["work"].mean()), self.drawer.samples > 0
        times = float(shown[SECONDS][0]), float(tested[SECONDS][0])
        timetable = self.opened.uncached().timetable if drawn else None
        return seconds_of(*times, timetable, self.levels, middle, seen) / len(indices)

    def batch(self, k: int, indices: Sequence[int]) -> PromptBatch:
        name = f"{k}-{self._digest(indices)}"
        if self.opened is not None and self.opened.name == name:
            return self.opened
        return PromptBatch(indices, name, cache(partial(self._uncached, indices)))

    def undrawn(self, batches: Sequence[Sequence[int]]) -> int:
        """Samples that neither the checkpoint nor what was begun holds."""
        missing = 0
        for k, indices in enumerate(batches):
            batch = self.batch(k, indices)
            names = [self._uncached_name(batch), *(_test_name(batch, level) for level in self.levels)]
            missing += sum(len(indices) for name in names if not (name in self.begun or self.checkpoint.has(name)))
        return missing

    def profile(self, batches: Sequence[Sequence[int]], model: str) -> Profile:
        """The tests must have the steps and the guidance of the first batch."""
        shown: list[Entry] = []
        lost: list[Entry] = []
        for k, indices in enumerate(batches):
            batch = self.batch(k, indices)
            shown.append(self.begun.get(self._uncached_name(batch)) or self._show(batch))
            self.tick("uncached")
            lost.append(self._tested(batch, _untested(model, shown[0])))
        facts = replace(_untested(model, shown[0]).facts, negative_conditions=_shared(shown))
        tested = {key: np.concatenate([each[key] for each in lost]).astype(np.float32) for key in lost[0]}
        return Profile(facts, {**tested, "levels": np.array(self.levels, dtype=np.float32)})

    def _uncached_name(self, batch: PromptBatch) -> str:
        return f"uncached-{batch.name}"

    def _show(self, batch: PromptBatch) -> Entry:
        return self.checkpoint.entry(self._uncached_name(batch), lambda: batch.uncached().shown)

    def _uncached(self, indices: Sequence[int]) -> UncachedBatch:
        with enable(self.pipe, config=Config(Planned(0.0))) as enabled:
            drawn, seconds = self._draw(indices)
            trace, facts = enabled.trace, Recorder(enabled).facts
        assert trace is not None
        timetable, guidance = _timetable_and_guidance(trace, facts)
        shown = {
            "timetable": np.array([*timetable.sigmas, guidance]),
            "size": np.array(facts.size),
            "controls": np.frombuffer("\n".join(facts.controls).encode(), np.uint8),
            "solver": np.frombuffer(timetable.solver.encode(), np.uint8),
            SECONDS: np.array([seconds]),
            **{NEGATIVE_CONDITIONS + name: each.numpy() for name, each in facts.negative_conditions.items()},
        }
        return UncachedBatch(drawn, shown, timetable)

    def _test(self, batch: PromptBatch, untested: Profile, level: float) -> tuple[str, Callable[[], Entry]]:
        """The entry of a batch within a level: its name, and what makes it."""
        return _test_name(batch, level), partial(self._within, batch, untested, level)

    def _tested(self, batch: PromptBatch, untested: Profile) -> Entry:
        """What a batch loses within every level, (B, levels) each."""
        cells = []
        for level in self.levels:
            name, make = self._test(batch, untested, level)
            cells.append(self.begun.get(name) or self.checkpoint.entry(name, make))
            self.tick("tests")
        return {key: np.stack([cell[key] for cell in cells], axis=1) for key in cells[0] if key != SECONDS}

    def _within(self, batch: PromptBatch, untested: Profile, level: float) -> Entry:
        exact = batch.uncached().drawn
        with enable(self.pipe, config=for_profile(ProfileChoice((untested,), "named"), FixedLevel(level))) as enabled:
            drawn, seconds = self._draw(batch.indices)
        samples, trace = enabled.report().to_dict()["samples"], enabled.trace
        assert trace is not None
        losses = {
            "estimate": np.array([sample["estimated_error"] for sample in samples]),
            "work": (trace.executed / trace.uncached).numpy(),  # the denoiser's, which levels choose
            LATENT_LOSS: relative_error(drawn.latents, exact.latents).numpy(),
            SECONDS: np.array([seconds]),
        }
        for name, metric in self.metrics.items():
            assert drawn.images is not None and exact.images is not None
            losses[LOSS + name] = loss(name, metric, drawn.images, exact.images).numpy()
        return losses

    def _digest(self, indices: Sequence[int]) -> str:
        """Of the prompts of a batch, so that it is drawn again where they are others."""
        return hashlib.sha256(repr([text_of(self.drawer.prompts[i]) for i in indices]).encode()).hexdigest()[:12]

    def _draw(self, indices: Sequence[int]) -> tuple[Drawn, float]:
        """And the seconds that it took."""
        before = self.drawer.seconds
        return self.drawer.draw(indices), self.drawer.seconds - before


def _test_name(batch: PromptBatch, level: float) -> str:
    return f"test-{batch.name}-{float(level)!r}"


def _timetable_and_guidance(trace: Trace, facts: RunFacts) -> tuple[Timetable, float]:
    """Timetable and guidance of a run. Raises ProfileError where they cannot be known."""
    timetable, steps = facts.timetable, len(trace.records)
    if timetable is None or steps != len(timetable.sigmas) or steps < SHORTEST:
        raise ProfileError(
            f"only whole runs of {SHORTEST} steps or more can be calibrated, with a scheduler whose timetable is known."
        )
    if facts.guidance is None or len({frozenset(record.branches) for record in trace.records}) > 1:
        raise ProfileError("the run's guidance changed half-way: it cannot be calibrated.")
    return timetable, max(1.0, facts.guidance)


def _untested(model: str, shown: Entry) -> Profile:
    """Of runs like this one, with no losses."""
    *sigmas, guidance = shown["timetable"].tolist()
    size = tuple(shown.get("size", np.zeros(0, int)).tolist())
    controls = tuple(shown["controls"].tobytes().decode().split()) if "controls" in shown else None
    facts = Facts(model, shown["solver"].tobytes().decode(), tuple(sigmas), guidance, size=size, controls=controls)
    nothing = dict.fromkeys(NEEDED, np.zeros((0, 1), np.float32))
    return Profile(facts, nothing | {"levels": np.ones(1, np.float32)})


def _shared(shown: Sequence[Entry]) -> dict[str, tuple[float, ...]]:
    """What the negative prompts of all runs were, where it was the same for two prompts and more."""
    names = [key for key in shown[0] if key.startswith(NEGATIVE_CONDITIONS) and all(key in entry for entry in shown)]
    rows = {key: torch.from_numpy(np.concatenate([entry[key] for entry in shown])) for key in names}
    same = {key: each[0] for key, each in rows.items() if len(each) > 1 and bool(alike(each, each[0]).all())}
    return {key.removeprefix(NEGATIVE_CONDITIONS): tuple(row.tolist()) for key, row in same.items()}


def batches(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[k : k + size]) for k in range(0, len(indices), size)]
