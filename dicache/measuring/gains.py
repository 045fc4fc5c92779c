"""Gains of sites below the whole evaluation, measured by injection (`dicache.planning.gains`).

One site skips at one step of a run in which all else computes. Its rule then says what that was priced at with gain 1,
and the final latent what it was:

    gain(site, lambda at the step) = median over prompts of (||x - x_ref|| / ||x_ref||) / price

at `POINTS` steps, spread evenly over those at which something is known. Every row of a batch has one cell of its own.
What was drawn is kept in the calibration's checkpoint, batch by batch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from dicache.api import enable
from dicache.config import Config
from dicache.controllers.base import Controller, cost_of, decided
from dicache.controllers.interval import Interval
from dicache.errors import ProfileError
from dicache.fanout.worker import Worker
from dicache.fanout.workers import Workers
from dicache.files.checkpoint import Checkpoint, Entry
from dicache.measuring.prompt_runs import Drawer, DrawOrder, Spent, text_of
from dicache.measuring.recording import Recorder
from dicache.planning.gains import Gains
from dicache.promise.metrics import relative_error
from dicache.reporting.progress import progress as progress_bar
from dicache.reporting.words import duration
from dicache.types import Decision, Quote, Reason, Rows, Site, Step

POINTS = 6
PROMPTS, FEWEST, MOST = 4, 2, 200
"""How many prompts a cell is measured on: fewer where there are more injections than MOST, but never below FEWEST."""
FIRST = 3
"""The step before which no composition has known an error and a line."""
SMALLEST = 1e-4
"""Of gains: what the latent is off by because sums are rounded is no error of the site's."""


class Injection(NamedTuple):
    step: int
    site: int
    length: int = 1
    """So many steps in a row."""


@dataclass(frozen=True)
class Injected(Controller[Rows]):
    """Row b skips one site at its steps, and computes everywhere else. Its state is what was priced, (B,)."""

    injections: tuple[Injection, ...]
    site: int = 0

    def at(self, site: Site, sites: int) -> "Injected":
        return replace(self, site=site.index)

    def init(self, samples: int) -> Rows:
        return torch.zeros(samples, dtype=torch.float64)

    def decide(self, quote: Quote, step: Step, state: Rows) -> tuple[Decision, Rows]:
        mine = torch.tensor(
            [site == self.site and first <= step.index < first + length for first, site, length in self.injections]
        )
        skip = mine & quote.cost.isfinite()
        spent = state + cost_of(quote, skip)
        return decided(quote, skip, spent, (~mine, Reason.SCHEDULED), skipped=Reason.SCHEDULED), spent


@dataclass(frozen=True)
class UncachedSites:
    """A batch to be drawn computing everything; tells the steps and the sites."""

    order: DrawOrder
    config: Config

    def run(self, worker: Worker) -> tuple[Entry, Spent]:
        drawer = self.order.drawer(worker.pipe)
        with enable(worker.pipe, config=replace(self.config, controller=Interval(1))) as cache:
            latents = drawer.draw(self.order.indices).latents
            recorder = Recorder(cache)
        timetable = recorder.facts.timetable
        if timetable is None or not timetable.half_log_snrs or len(timetable.sigmas) < 2 * FIRST:
            raise ProfileError(
                f"gains need a run of {2 * FIRST} steps or more, with a scheduler whose timetable is known."
            )
        entry = {
            "latents": latents.float().cpu().numpy(),
            "half_log_snrs": np.array(timetable.half_log_snrs[: len(timetable.sigmas)]),
            "begin": np.array([timetable.begin]),
            "sites": np.array([len(recorder.sites)]),
            "seconds": np.array([drawer.seconds]),
        }
        return entry, drawer.spent


@dataclass(frozen=True)
class InjectedRun:
    """A batch to be drawn, with an injection in every row. Gives what the latents (B, ...) are off by from the
    `reference`, and what that was priced at with gain 1, (B,) each; 0 where nothing was known, so nothing was skipped.
    """

    order: DrawOrder
    config: Config
    injections: tuple[Injection, ...]
    reference: np.ndarray

    def run(self, worker: Worker) -> tuple[Entry, Spent]:
        drawer = self.order.drawer(worker.pipe)
        with enable(worker.pipe, config=replace(self.config, controller=Injected(self.injections))) as cache:
            latents = drawer.draw(self.order.indices).latents
        trace = cache.trace
        assert trace is not None
        errors = relative_error(latents.float().cpu(), torch.from_numpy(self.reference)).double().numpy()
        return {"errors": errors, "prices": trace.records[-1].spent.numpy()}, drawer.spent


def arguments_of(config: Config | None) -> list[Any]:
    """What gains, and runs with them, depend on: all of a composition but its rule."""
    return [] if config is None else [replace(config, controller=Interval(1))]


def measure_gains(
    workers: Workers,
    drawer: Drawer,
    config: Config,
    model: str,
    entries: Checkpoint,
    *,
    batch: int,
    after: int = 0,
    progress: bool = False,
) -> Gains:
    """Of this model, on the first prompts. With `progress` it is said beforehand, after one uncached run, how much is
    drawn, how long that takes, and how long the `after` samples that are drawn then take at most. Raises ProfileError
    where nothing could be skipped, or where the composition decides all sites together.
    """
    if config.together:
        raise ProfileError("gains are measured site by site. Leave out together=True, or give a rule that counts.")
    runs, indices = _Runs(workers, drawer, entries), range(min(PROMPTS, len(drawer.prompts)))
    uncached = runs.entry("uncached", indices, UncachedSites(drawer.order(indices), config))
    times, sites = uncached["half_log_snrs"], int(uncached["sites"][0])
    steps = _steps(times, int(uncached["begin"][0]))
    indices = indices[: max(FEWEST, MOST // (len(steps) * sites))]
    cells = [(index, Injection(step, site)) for step in steps for site in range(sites) for index in indices]
    bar = progress_bar(progress)
    if progress:
        bar.console.print(_announced(len(cells), sites, len(steps), len(indices), after, runs.seconds(uncached)))
    ratios: dict[Injection, list[float]] = {}
    with bar:
        task = bar.add_task("gains", total=len(cells))
        for start in range(0, len(cells), batch):
            drawn, injections = zip(*cells[start : start + batch], strict=True)
            run = InjectedRun(drawer.order(drawn), config, injections, uncached["latents"][list(drawn)])
            priced = runs.entry(f"{start}-{batch}", drawn, run)
            for cell, error, price in zip(injections, priced["errors"], priced["prices"], strict=True):
                if price > 0 and np.isfinite(error):
                    ratios.setdefault(cell, []).append(float(error / price))
            bar.update(task, advance=len(drawn))
    return gains_of(ratios, [float(times[step]) for step in steps], steps, sites, config.parts, model)


def _announced(samples: int, sites: int, steps: int, prompts: int, after: int, seconds: float) -> str:
    """Before they are drawn; `seconds` are those of one uncached sample, and an injected run is as long."""
    some = "1 site" if sites == 1 else f"{sites} sites"
    first = f"gains first, of {some} at {steps} steps on {prompts} prompts: {samples} samples"
    then = f", and then {after} samples within levels, at most {duration(seconds * after)}" if after else ""
    return f"{first}, about {duration(seconds * samples)}{then}."


@dataclass
class _Runs:
    """Draws what the checkpoint does not hold yet."""

    workers: Workers
    drawer: Drawer
    entries: Checkpoint

    def entry(self, name: str, indices: Sequence[int], cell: UncachedSites | InjectedRun) -> Entry:
        def drawn() -> Entry:
            entry, spent = self.workers.one(cell)
            self.drawer.book(spent)
            return dict(entry)

        texts = repr([text_of(self.drawer.prompts[index]) for index in indices])
        return self.entries.entry(f"gains-{name}-{hashlib.sha256(texts.encode()).hexdigest()[:12]}", drawn)

    def seconds(self, uncached: Entry) -> float:
        """Of one sample."""
        return float(uncached["seconds"][0]) / len(uncached["latents"])


def gains_of(
    ratios: Mapping[Injection, Sequence[float]],
    times: Sequence[float],
    steps: Sequence[int],
    sites: int,
    parts: str,
    model: str = "",
) -> Gains:
    """From true over priced errors by cell, on steps at these half log SNRs. A cell of which nothing is known has the
    largest gain that is known of its site. Raises ProfileError for a site of which nothing is.
    """
    table = np.array(
        [[np.median(ratios.get(Injection(step, site), [np.nan])) for site in range(sites)] for step in steps]
    )
    if (unknown := np.isnan(table).all(0)).any():
        raise ProfileError(
            f"site {int(unknown.argmax())} of {parts} was never skipped, since no error of it could be predicted or "
            "priced. Leave it out, or give other parts."
        )
    table = np.where(np.isnan(table), np.nanmax(table, 0), table).clip(min=SMALLEST)
    order = np.argsort(times)
    return Gains(
        tuple(float(times[k]) for k in order),
        tuple(tuple(float(each) for each in table[k]) for k in order),
        parts,
        model,
    )


def _steps(times: np.ndarray, begin: int) -> list[int]:
    """Spread evenly, no two at one half log SNR."""
    spread = sorted({round(step) for step in np.linspace(begin + FIRST, len(times) - 1, POINTS)})
    return list({float(times[step]): step for step in spread}.values())
