"""A batch of schedules to be judged, in a form that can be handed to any worker."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dicache.api import enable
from dicache.approximators.fitted.coefficients import Fitted
from dicache.config import Config
from dicache.fanout.worker import Worker
from dicache.files.checkpoint import Entry
from dicache.measuring.prompt_runs import DrawOrder, Spent
from dicache.promise.metrics import relative_error

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

    def run(self, worker: Worker) -> tuple[Entry, Spent]:
        drawer = self.order.drawer(worker.pipe)
        with enable(worker.pipe, config=self.config):
            latents = drawer.draw(self.order.indices).latents
        errors = relative_error(latents, self.reference)
        return {"errors": torch.where(errors.isfinite(), errors, torch.inf).double().numpy()}, drawer.spent
