"""Gains of sites below the whole evaluation, measured by injection (`dicache.planning.gains`).

One site skips at one step of a run in which all else computes. Its rule then says what that was priced at with gain 1,
and the final latent what it was:

    gain(site, lambda at the step) = median over prompts of (||x - x_ref|| / ||x_ref||) / price

at `points` steps, spread evenly over those at which something is known. Every row of a batch has one cell of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dicache.api import enable
from dicache.config import Config
from dicache.controllers.base import Controller, cost_of, decided
from dicache.controllers.interval import Interval
from dicache.errors import ProfileError
from dicache.fanout.worker import Worker
from dicache.fanout.workers import Workers
from dicache.measuring.prompt_runs import Drawer, DrawOrder, Spent
from dicache.measuring.recording import Recorder
from dicache.planning.gains import Gains
from dicache.promise.metrics import relative_error
from dicache.types import Decision, Quote, Reason, Rows, Site, Step, Timetable

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


@dataclass(frozen=True)
class Injected(Controller[Rows]):
    """Row b skips one site at one step, and computes everywhere else. Its state is what was priced, (B,)."""

    injections: tuple[Injection, ...]
    site: int = 0

    def at(self, site: Site, sites: int) -> "Injected":
        return replace(self, site=site.index)

    def init(self, samples: int) -> Rows:
        return torch.zeros(samples, dtype=torch.float64)

    def decide(self, quote: Quote, step: Step, state: Rows) -> tuple[Decision, Rows]:
        mine = torch.tensor([cell == (step.index, self.site) for cell in self.injections])
        skip = mine & quote.cost.isfinite()
        spent = state + cost_of(quote, skip)
        return decided(quote, skip, spent, (~mine, Reason.SCHEDULED), skipped=Reason.SCHEDULED), spent


class PricedLatents(NamedTuple):
    latents: Tensor
    """The final ones, (B, ...)."""
    prices: np.ndarray
    """At gain 1, (B,); 0 where nothing was known, so that nothing was skipped."""


@dataclass(frozen=True)
class UncachedSites:
    """A batch to be drawn computing everything; tells the steps and the sites."""

    order: DrawOrder
    config: Config

    def run(self, worker: Worker) -> tuple[tuple[Tensor, Timetable, int], Spent]:
        drawer = self.order.drawer(worker.pipe)
        with enable(worker.pipe, config=replace(self.config, controller=Interval(1))) as cache:
            latents = drawer.draw(self.order.indices).latents
            recorder = Recorder(cache)
        timetable = recorder.facts.timetable
        if timetable is None or not timetable.half_log_snrs or len(timetable.sigmas) < 2 * FIRST:
            raise ProfileError(
                f"gains need a run of {2 * FIRST} steps or more, with a scheduler whose timetable is known."
            )
        return (latents, timetable, len(recorder.sites)), drawer.spent


@dataclass(frozen=True)
class InjectedRun:
    """A batch to be drawn, with an injection in every row."""

    order: DrawOrder
    config: Config
    injections: tuple[Injection, ...]

    def run(self, worker: Worker) -> tuple[PricedLatents, Spent]:
        drawer = self.order.drawer(worker.pipe)
        with enable(worker.pipe, config=replace(self.config, controller=Injected(self.injections))) as cache:
            latents = drawer.draw(self.order.indices).latents
        trace = cache.trace
        assert trace is not None
        return PricedLatents(latents, trace.records[-1].spent.numpy()), drawer.spent


def measure_gains(workers: Workers, drawer: Drawer, config: Config, model: str, *, batch: int) -> Gains:
    """Of this model, on the first prompts. Raises ProfileError where nothing could be skipped, or where the composition
    decides all sites together.
    """
    if config.together:
        raise ProfileError("gains are measured site by site. Leave out together=True, or give a rule that counts.")
    indices = range(min(PROMPTS, len(drawer.prompts)))
    (reference, timetable, sites), spent = workers.one(UncachedSites(drawer.order(indices), config))
    drawer.book(spent)
    steps = _steps(timetable)
    indices = indices[: max(FEWEST, MOST // (len(steps) * sites))]
    cells = [(index, Injection(step, site)) for step in steps for site in range(sites) for index in indices]
    ratios: dict[Injection, list[float]] = {}
    for start in range(0, len(cells), batch):
        drawn, injections = zip(*cells[start : start + batch], strict=True)
        priced, spent = workers.one(InjectedRun(drawer.order(drawn), config, injections))
        drawer.book(spent)
        errors = relative_error(priced.latents, reference[list(drawn)]).double().numpy()
        for cell, error, price in zip(injections, errors, priced.prices, strict=True):
            if price > 0 and np.isfinite(error):
                ratios.setdefault(cell, []).append(error / price)
    return gains_of(ratios, [timetable.half_log_snrs[step] for step in steps], steps, sites, config.parts, model)


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


def _steps(timetable: Timetable) -> list[int]:
    """Spread evenly, no two at one half log SNR."""
    first, last = timetable.begin + FIRST, len(timetable.sigmas) - 1
    spread = sorted({round(step) for step in np.linspace(first, last, POINTS)})
    return list({timetable.half_log_snrs[step]: step for step in spread}.values())
