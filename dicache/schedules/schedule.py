"""A schedule: a table of actions found before the run, for one model, scheduler and step count, with all that says
where it holds and what it costs.

A schedule runs through the same session, sites and approximators as online decisions do; only who decides is another
(`dicache.schedules.follow`). What it executes is known before it runs, to the MAC (`dicache.schedules.action_table`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dicache.approximators.fitted.coefficients import Fitted
from dicache.config import Config
from dicache.errors import ScheduleError
from dicache.files.bound_arrays import settled
from dicache.files.card import sharing, write_card
from dicache.files.checked import refusing
from dicache.files.hub import located
from dicache.models.family import Family
from dicache.models.find_blocks import family_of, find
from dicache.models.identity import identity
from dicache.schedules import schedule_file
from dicache.schedules.action_table import LETTERS, Table, lines_of, macs, repaired
from dicache.schedules.provenance import Provenance
from dicache.schedules.schedule_card import schedule_card
from dicache.schedules.schedule_file import Content
from dicache.schedules.setting import Basis, Dynamic, Origin, config_of
from dicache.sites import Sites
from dicache.types import Action

SCHEDULE, SCHEDULES = "schedule.json", "schedules.json"
"""What a shared one is called, and a shared set of them."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """`table`, (T, S) uint8 of `dicache.types.Action`. Raises ScheduleError for a table of another shape or of other
    values, one whose first step does not compute, one that needs what is not given, or an error that is no number.
    """

    basis: Basis
    table: Table
    origin: Origin
    error: float | None = None
    """Relative L2 error of the final latent, the mean over the calibration prompts; None where it was not measured."""
    dynamic: Dynamic | None = None
    fitted: Fitted | None = None
    """What cells marked `*` are corrected with."""
    resample: bool = field(default=False)
    """Whether runs with other steps are allowed; no part of the file."""
    edited: bool = field(default=False)
    """Whether its actions were changed in the file that it was read from; no part of it."""
    score: float | None = None
    """What an objective gave that it was found by, higher is better, the mean over the calibration prompts."""

    @staticmethod
    def from_letters(
        pipe: Any,  # noqa: ANN401
        letters: str | Sequence[str],
        prompts: Sequence[str],
        *,
        steps: int | None = None,
        sites: Sites | None = None,
        seed: int = 0,
        batch: int = 8,
        call: Mapping[str, Any] | None = None,
    ) -> "Schedule":
        """One that you write yourself: "##=#=#=#", a letter per step for whole evaluations, or a string per step with a
        letter per site for other `sites`. `prompts` are drawn uncached and with it, with the arguments `call`, to know
        what it costs and loses. Raises ScheduleError for what is no schedule; its first step computes, and there are as
        many as `steps` where that is given.
        """
        made = import_module("dicache.measuring.by_hand").by_hand  # needs all that is above schedules
        schedule: Schedule = made(
            pipe, letters, prompts, steps=steps, sites=sites, seed=seed, batch=batch, call=dict(call or {})
        )
        return schedule

    def __post_init__(self) -> None:
        if self.table.shape != self.basis.shape or self.table.dtype != np.uint8:
            raise ScheduleError(f"a table of {self.table.shape} was given. Expected {self.basis.shape}: steps, sites.")
        if not np.isin(self.table, list(LETTERS.values())).all():
            raise ScheduleError(f"a table holds what is no action of a schedule. Those are {' '.join(LETTERS)}.")
        if self.error is not None and not 0 <= self.error < np.inf:
            raise ScheduleError(f"the error is {self.error!r}. Expected a finite number from 0 on, or None.")
        if self.score is not None and not math.isfinite(self.score):
            raise ScheduleError(f"the score is {self.score!r}. Expected a finite number, or None.")
        if (self.table[0] != Action.COMPUTE).any():
            raise ScheduleError("the first step does not compute everywhere: nothing is stored before it.")
        if (self.table == Action.DYNAMIC).any() != (self.dynamic is not None):
            raise ScheduleError("cells that are decided in the run (?) need `dynamic`, and only they do.")
        if (self.table == Action.CORRECT).any() and self.fitted is None:
            raise ScheduleError("cells that are corrected (*) need fitted coefficients: dicache.fit.")

    @property
    def steps(self) -> int:
        return len(self.table)

    @property
    def letters(self) -> str:
        """A letter per step, or, of several sites, a group of letters per step."""
        return ("" if self.table.shape[1] == 1 else " ").join(lines_of(self.table))

    def __repr__(self) -> str:
        error = "not measured" if self.error is None else f"{self.error:.4f}"
        steps, sites = self.table.shape
        shown = self.letters if sites == 1 else f"{steps} steps, {sites} sites"
        score = "" if self.score is None else f", score {self.score:.4f}"
        return f"<dicache.Schedule {shown}: {self.work:.3f} of the work, error {error}{score} ({self.origin.finder})>"

    @property
    def loss(self) -> float:
        """What it was found by, less being better: its score with the sign turned, or its error; inf if not known."""
        if self.score is not None:
            return -self.score
        return math.inf if self.error is None else self.error

    @property
    def macs(self) -> float:
        """What one sample executes; the most it can, where cells are open."""
        return float(macs(self.table, self.basis.costs))

    @property
    def least_macs(self) -> float:
        """The least it can."""
        return float(macs(self.table, self.basis.costs, least=True))

    @property
    def work(self) -> float:
        """Executed over uncached MACs."""
        return self.macs / self.basis.uncached

    @property
    def done(self) -> Table:
        """The table with what cannot be done computed instead (`dicache.schedules.action_table`)."""
        return repaired(self.table)

    def resampled(self) -> "Schedule":
        """The same, allowed on runs with other steps: each takes the row whose time is nearest. Its cost and error were
        not predicted for them. Raises ScheduleError for one whose coefficients were fitted step by step.
        """
        if self._bound:
            raise ScheduleError(
                "the schedule's coefficients were fitted at its own steps, so it cannot be moved to others. Find one "
                f"for them, with {self.origin.finder} or another finder."
            )
        return replace(self, resample=True)

    def config(self, denoiser: nn.Module, family: Family | None = None) -> Config:
        """To run it with; `family` as in `enable`. Raises ScheduleError for another model or other sites."""
        here = identity(denoiser)
        if here != self.basis.model:
            raise ScheduleError(
                f"the schedule is of another model: {self.basis.model}, this is {here}. Find one for this model; "
                "a model with other LoRAs, or without, is another one."
            )
        blocks = find(denoiser, family_of(denoiser, family)).blocks
        paths = [site.path for site in self.basis.sites.select(blocks, 0)]
        if paths != [cell.path for cell in self.basis.cells]:
            raise ScheduleError("the schedule's sites are not those that its selector finds in this model.")
        guidance = None if self.fitted is None else self.fitted.about.guidance
        provenance = Provenance(self.error, self.origin.prompts, guidance, self.edited, self._bound)
        return config_of(
            self.basis, self.table[None], self.dynamic, self.fitted, resample=self.resample, provenance=provenance
        )

    @property
    def _bound(self) -> bool:
        """Whether it can run at its own steps only."""
        return self.fitted is not None and self.fitted.per_step and bool((self.table == Action.CORRECT).any())

    def save(self, path: str | Path) -> None:
        """Write JSON, and fitted coefficients beside it. Raises ScheduleError where that is impossible."""
        schedule_file.save([self.content], Path(path), several=False)

    def share(self, folder: str | Path, *, base_model: str | None = None, prompts: str | None = None) -> None:
        """Write the schedule into a folder, as schedule.json with its coefficients, and a model card, README.md: what
        it is of, what it costs and loses, how it was found. `base_model` is the repository of the model, `prompts` says
        in words what the prompts were. Raises ScheduleError where that is impossible, or a README.md lies there that
        dicache did not write.
        """
        with sharing(ScheduleError, "schedule", Path(folder)):
            self.save(Path(folder) / SCHEDULE)
            card = schedule_card(self.content, self.work, prompts)
            write_card(Path(folder), card.text(["diffusion", "schedule"], base_model))

    @staticmethod
    def load(path: str | Path) -> "Schedule":
        """Read what `save` or `share` wrote: a file, a folder, or "user/repository" of the Hugging Face hub (with
        @revision behind it for another than its newest). Raises ScheduleError, whatever is wrong with the file.
        """
        return load_schedules(Path(path), several=False)[0]

    @property
    def content(self) -> Content:
        """What its file says."""
        numbers = self.macs, False, self.score
        return Content(self.basis, self.table, self.origin, self.error, self.dynamic, self.fitted, *numbers)


def load_schedules(path: Path, *, several: bool) -> list[Schedule]:
    """Of a file of one, or of several. Raises ScheduleError, whatever is wrong with it; nothing is made of it then."""
    remedy = "Correct the file, or find it again: dicache.finders."
    if not path.exists():
        remedy = "Give the path of a schedule that was saved; letters become one by Schedule.from_letters."
    with refusing(ScheduleError, f"{path} is no schedule that can be used", remedy):
        file = located(path, SCHEDULES if several else SCHEDULE, "fitted")
        return [_with_its_macs(content) for content in settled(file, partial(schedule_file.read, several=several))]


def _with_its_macs(content: Content) -> Schedule:
    """What the file predicts holds for the actions that it was predicted for."""
    schedule = Schedule(*content[:-3], edited=content.edited, score=content.score)
    other = content.macs is not None and not math.isclose(content.macs, schedule.macs, rel_tol=1e-6)
    return replace(schedule, error=None, score=None, edited=True) if content.edited or other else schedule
