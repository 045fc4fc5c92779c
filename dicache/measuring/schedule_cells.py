"""A batch of schedules to be judged, in a form that can be handed to any worker; and what else is asked of tables."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dicache.api import enable
from dicache.approximators.fitted.coefficients import Fitted
from dicache.config import Config
from dicache.controllers.interval import Interval
from dicache.fanout.worker import Worker
from dicache.files.checkpoint import Entry
from dicache.measuring.prompt_runs import Drawer, DrawOrder, Spent
from dicache.measuring.recording import Recorder
from dicache.promise.metrics import relative_error
from dicache.runtime.evidence import guess_cost
from dicache.schedules.action_table import Table
from dicache.schedules.objective import Objective
from dicache.schedules.setting import Basis
from dicache.sites import Sites
from dicache.types import Action

Asked = tuple[Fitted | None, bytes, int]
"""Coefficients (themselves, so that nothing else takes their identity), table and prompt."""


@dataclass(frozen=True, eq=False)
class TablesCell:
    """A batch to be drawn by tables, one a sample."""

    name: str
    """In the checkpoint."""
    keys: tuple[Asked, ...]
    """Of every sample."""
    order: DrawOrder
    config: Config
    reference: Tensor
    """What the prompts draw uncached, (B, ...)."""

    objective: Objective | None = None

    def run(self, worker: Worker) -> tuple[Entry, Spent]:
        pictures = self.objective is not None and not self.objective.latents
        drawer = replace(self.order, images=pictures).drawer(worker.pipe)
        with enable(worker.pipe, config=self.config):
            drawn = drawer.draw(self.order.indices)
        errors = relative_error(drawn.latents, self.reference)
        entry = {"errors": torch.where(errors.isfinite(), errors, torch.inf).double().numpy()}
        if self.objective is not None:
            prompts = [self.order.prompts[i] for i in self.order.indices]
            entry["scores"] = self.objective.of(*drawn, prompts).numpy()
        return entry, drawer.spent


def one_stale(steps: int, sites: int) -> list[Table]:
    """Tables with one cell each that holds the value of the step before it, steps first."""
    tables = np.zeros((steps - 1, sites, steps, sites), dtype=np.uint8)
    for t in range(1, steps):
        tables[t - 1, np.arange(sites), t, np.arange(sites)] = Action.REUSE
    return list(tables.reshape(-1, steps, sites))


def priced(basis: Basis, sites: Sites, drawer: Drawer, fitted: Fitted) -> Basis:
    """The basis with what these coefficients multiply, read off one uncached run."""
    approximator = fitted.approximator()
    config = Config(Interval(1), approximators=(approximator,), probe=fitted.probe, sites=sites)
    with enable(drawer.pipe, config=config) as cache:
        drawer.draw([0])
        booked = Recorder(cache).booked_macs
    cells = [cell._replace(guess=booked[guess_cost(approximator, cell.path)]) for cell in basis.cells]
    return replace(basis, cells=tuple(cells))
