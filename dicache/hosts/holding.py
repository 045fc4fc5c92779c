"""Holding what a network beside the denoiser gives while the denoiser computes: a control of its own interval, or one
that is frozen from some noise on (HGC).

    value    all that the network gives, (R, D), its parts flattened and joined
    rule     says per sample and step whether it runs; it counts, or goes by the noise, and knows of no error
    fill     what stands in its place for the samples where it does not: an approximator, on the values it gave before
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.controllers.base import Controller
from dicache.runtime.run_state import Run
from dicache.tensors import history
from dicache.types import Action, Quote, Rows, Step


class Holding:
    """Of one network in one run."""

    rule: Controller[Any]
    fill: Approximator
    run: Run
    due: Tensor

    def __init__(self, rule: Controller[Any], fill: Approximator, run: Run) -> None:
        self.rule, self.fill, self.run = rule, fill, run
        self.state: Any = None
        self.values: history.History | None = None
        self.step: Step | None = run.step
        """The last one that the rule was asked about; the first is asked about when the second shows how many samples
        there are.
        """
        self.due = torch.zeros(0, dtype=torch.bool)
        """Samples, (B,), that the rule has it run for; it stays so while the denoiser skips them."""

    def runs(self) -> Rows:
        """For which samples the network runs at the step that is going on, (B,) bool. Where conditions have changed
        what was held is forgotten.
        """
        run = self.run
        if run.anew:
            self.values = None
        if not len(self.due):
            self.state, self.due = self.rule.init(run.samples), torch.zeros(run.samples, dtype=torch.bool)
            if self.step is not None and self.step.index != run.step.index:
                self._asked(self.step, torch.zeros_like(self.due))
            self.step = None
        if self.step is None or run.step.index != self.step.index:
            self.step, enough = run.step, self._enough()
            self.due |= self._asked(run.step, enough) | ~enough
        return self.due.clone()

    def _asked(self, step: Step, enough: Rows) -> Rows:
        """For which samples the rule has it run, (B,) bool; `enough`, (B,) bool, have something in its place."""
        error = torch.where(enough, 0.0, torch.inf).double()
        action = torch.full_like(error, int(self.fill.action), dtype=torch.int64)
        decision, self.state = self.rule.decide(Quote(error, error, action, self.run.facts), step, self.state)
        return decision.action[:, 0] == Action.COMPUTE

    def _enough(self) -> Rows:
        if self.values is None:
            return torch.zeros(self.run.samples, dtype=torch.bool)
        enough = self.values.sigmas.isfinite().sum(0) >= self.fill.needs
        return enough.view(-1, self.run.samples).all(0)

    def remember(self, parts: Sequence[Tensor], samples: Rows | None) -> None:
        """What it gave, (R, ...) each; of `samples`, (B,) bool, None for all."""
        value, step = torch.cat([part.flatten(1) for part in parts], dim=1), self.run.step
        if self.values is None or self.values.sigmas.shape[1] != len(value):
            self.values = history.empty(self.fill.history_depth, len(value))
        rows = len(value) if samples is None else len(value) // len(samples)
        exact = torch.ones(rows, dtype=torch.bool) if samples is None else samples.repeat(rows)
        self.values = history.push(self.values, value, step.sigma, exact, self.run.time)
        self.due = torch.zeros_like(self.due) if samples is None else self.due & ~samples

    def guess(self, shapes: Sequence[Tensor]) -> list[Tensor]:
        """What it would give, shaped as `shapes`, (R, ...) each."""
        assert self.values is not None
        none = history.empty(0, len(self.values.sigmas[0]))
        step = self.run.step
        target = Target(step.sigma, None, timetable=step.timetable, time=self.run.time)
        value = self.fill.guess(Histories(self.values, none, none), target)
        ends = list(accumulate(shape[0].numel() for shape in shapes))
        cuts = zip(shapes, ends, strict=True)
        return [value[:, end - shape[0].numel() : end].reshape(shape.shape).to(shape.dtype) for shape, end in cuts]
