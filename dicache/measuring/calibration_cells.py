"""What a calibration hands to workers: a batch, drawn computing everything and then within each of some levels. Steps
that several of these runs have in common are computed once (`dicache.tensors.recall`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dicache.api import denoisers, enable
from dicache.config import Config
from dicache.controllers.planned import Planned
from dicache.defaults import for_profile
from dicache.errors import ProfileError
from dicache.fanout.worker import Worker
from dicache.files.checkpoint import Entry
from dicache.measuring.prompt_runs import Drawer, Drawn, DrawOrder, Spent
from dicache.measuring.recording import Recorder, recalling
from dicache.planning.gains import Gains
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.facts import LATENT_LOSS, LOSS, NEEDED, Facts
from dicache.promise.keep_budget import FixedLevel, within
from dicache.promise.metrics import Metric, loss, relative_error
from dicache.promise.profile import Profile, gain_arrays
from dicache.runtime.trace import Trace
from dicache.tensors.recall import Recall
from dicache.types import RunFacts, Timetable

SHORTEST = 6
"""Steps of a run that can be calibrated."""
NEGATIVE_CONDITIONS = "negative."
SECONDS = "seconds"
"""What a run took, of which nothing but the time that is said beforehand depends."""
RAN = "ran"
"""Nor of this: the share of its MACs that it executed, because no run of the batch had before."""


class PromptBatch(NamedTuple):
    indices: tuple[int, ...]
    name: str
    """In the checkpoint."""

    @property
    def uncached(self) -> str:
        return f"uncached-{self.name}"

    def within(self, level: float) -> str:
        return f"test-{self.name}-{float(level)!r}"


class Begun(NamedTuple):
    """A batch that was drawn computing everything."""

    exact: Drawn
    recall: Recall
    """Of what its steps computed."""
    timetable: Timetable


class CellDrawn(NamedTuple):
    uncached: Entry
    """What the run tells of itself: sigmas and guidance, size, solver, negative prompts."""
    tested: dict[float, Entry]
    """By level."""
    begun: Begun | None
    """Where the rest of the batch is to be drawn by another cell."""
    spent: Spent


@dataclass(frozen=True)
class BatchCell:
    """A batch to be drawn computing everything and, one after the other, within each of some levels. What the runs of a
    cell have in common is computed once (`dicache.tensors.recall`).
    """

    batch: PromptBatch
    order: DrawOrder
    levels: Sequence[float]
    metrics: Mapping[str, Metric]
    untested: Profile | None
    """Of runs like those of the first batch; None for the first batch itself."""
    model: str
    parts: Config | None = None
    """Of another composition than that of `enable`."""
    gains: Gains | None = None
    begun: tuple[Begun, Entry] | None = None
    """Where it was drawn uncached already."""
    first: bool = False
    """Whether another cell is to go on with it."""

    def run(self, worker: Worker) -> CellDrawn:
        drawer = self.order.drawer(worker.pipe)
        begun, shown = self.begun or self._uncached(drawer, worker)
        untested = self.untested or untested_profile(self.model, shown, self.gains)
        recall, tested = begun.recall.copy(), dict[float, Entry]()
        for level in self.levels:
            tested[level] = self._within(level, drawer, begun.exact, recall, untested)
            worker.tell("tests")
        return CellDrawn(shown, tested, begun if self.first else None, drawer.spent)

    def _uncached(self, drawer: Drawer, worker: Worker) -> tuple[Begun, Entry]:
        recall = Recall()
        with enable(drawer.pipe, config=Config(Planned(0.0))) as enabled:
            recalling(denoisers(drawer.pipe).values(), recall)
            drawn = drawer.draw(self.order.indices)
            trace, facts = enabled.trace, Recorder(enabled).facts
        assert trace is not None
        timetable, guidance = _timetable_and_guidance(trace, facts)
        shown = {
            "timetable": np.array([*timetable.sigmas, guidance]),
            "size": np.array(facts.size),
            "controls": np.frombuffer("\n".join(facts.controls).encode(), np.uint8),
            "solver": np.frombuffer(timetable.solver.encode(), np.uint8),
            SECONDS: np.array([drawer.seconds]),
            **{NEGATIVE_CONDITIONS + name: each.numpy() for name, each in facts.negative_conditions.items()},
        }
        worker.tell("uncached")
        return Begun(drawn, recall, timetable), shown

    def _within(self, level: float, drawer: Drawer, exact: Drawn, recall: Recall, untested: Profile) -> Entry:
        demand, before = FixedLevel(level), drawer.seconds
        if self.parts is None:
            config = for_profile(ProfileChoice((untested,), "named"), demand)
        else:
            config = replace(self.parts, controller=within(untested, demand))
        with enable(drawer.pipe, config=config) as enabled:
            recalling(denoisers(drawer.pipe).values(), recall)
            drawn = drawer.draw(self.order.indices)
        samples, trace = enabled.report().to_dict()["samples"], enabled.trace
        assert trace is not None
        losses = {
            "estimate": np.array([sample["estimated_error"] for sample in samples]),
            "work": ((trace.executed + recall.spared_of(len(samples))) / trace.uncached).numpy(),
            LATENT_LOSS: relative_error(drawn.latents, exact.latents).numpy(),
            SECONDS: np.array([drawer.seconds - before]),
            RAN: (trace.executed / trace.uncached).mean(0, keepdim=True).numpy(),
        }
        for name, metric in self.metrics.items():
            assert drawn.images is not None and exact.images is not None
            losses[LOSS + name] = loss(name, metric, drawn.images, exact.images).numpy()
        return losses


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


def untested_profile(model: str, shown: Entry, gains: Gains | None) -> Profile:
    """Of runs like this one, with no losses."""
    *sigmas, guidance = shown["timetable"].tolist()
    size = tuple(shown.get("size", np.zeros(0, int)).tolist())
    controls = tuple(shown["controls"].tobytes().decode().split()) if "controls" in shown else None
    facts = Facts(model, shown["solver"].tobytes().decode(), tuple(sigmas), guidance, size=size, controls=controls)
    facts = replace(facts, parts="" if gains is None else gains.parts)
    nothing = dict.fromkeys(NEEDED, np.zeros((0, 1), np.float32))
    return Profile(facts, {**nothing, "levels": np.ones(1, np.float32), **gain_arrays(gains)})
