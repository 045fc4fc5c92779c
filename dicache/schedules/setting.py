"""What schedules are found on and followed with: the model, its sites and what they cost, the steps of a run; and who
found them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dicache.approximators.base import Approximator
from dicache.approximators.fitted.about import selector
from dicache.approximators.fitted.coefficients import Fitted
from dicache.approximators.hold import Reuse
from dicache.approximators.zero import Zero
from dicache.config import Config
from dicache.controllers.gap import PerGap
from dicache.probes.first_blocks import FirstBlocks
from dicache.schedules.action_table import Costs, Table, macs
from dicache.schedules.follow import Scheduled
from dicache.schedules.provenance import UNKNOWN, Provenance
from dicache.sites import Sites
from dicache.types import Action, Kind


class Cell(NamedTuple):
    """One site."""

    path: str
    kind: Kind
    macs: float
    """Computing it for one row."""
    guess: float = 0.0
    """MACs that its fitted coefficients take for one row, whenever they guess."""


@dataclass(frozen=True)
class Basis:
    """What a schedule was found on, and must be run on."""

    model: str
    """Which denoiser (`dicache.models.identity`)."""
    scheduler: str
    """Its class and the options that change what it does (`dicache.solvers.clock.solver`)."""
    sigmas: tuple[float, ...]
    """Of the steps, (T,), on the scheduler's axis."""
    selector: Mapping[str, Any]
    """The sites' selector, by name and options."""
    cells: tuple[Cell, ...]
    """The sites, (S,)."""
    rows: tuple[int, ...]
    """Rows that one sample has in the denoiser's calls of every step: its guidance branches, (T,)."""
    uncached: float
    """MACs of one sample's whole uncached run."""

    @property
    def sites(self) -> Sites:
        return selector(self.selector)

    @property
    def shape(self) -> tuple[int, int]:
        """(T, S)."""
        return len(self.sigmas), len(self.cells)

    @property
    def costs(self) -> Costs:
        sites, guesses = tuple(c.macs for c in self.cells), tuple(c.guess for c in self.cells)
        if [cell.kind for cell in self.cells] == [Kind.EVALUATION]:
            sites = (self.uncached / sum(self.rows),)  # where it is skipped nothing of the denoiser runs
        return Costs(self.uncached, self.rows, sites, guesses)

    def work(self, tables: Table) -> np.ndarray:
        """Share of the uncached MACs that tables execute, (.., T, S) -> (..)."""
        return macs(tables, self.costs) / self.uncached


class Origin(NamedTuple):
    """Who made a schedule, and from what. For people: nothing depends on it."""

    finder: str
    arguments: Mapping[str, Any]
    """Strings and numbers."""
    seed: int
    prompts: int
    """How many calibration prompts."""
    digest: str
    """SHA-256 of them, hexadecimal."""
    version: str
    """Of dicache."""


class Dynamic(NamedTuple):
    """How cells are decided that the table leaves open."""

    limit: float
    """Relative error of the final latent that one gap may be estimated to add."""
    longest: int
    """Most steps in a row that may be skipped there."""


def config_of(
    basis: Basis,
    tables: Table,
    dynamic: Dynamic | None = None,
    fitted: Fitted | None = None,
    *,
    resample: bool = False,
    provenance: Provenance = UNKNOWN,
) -> Config:
    """The parts that follow `tables`, (B, T, S), a sample each, or (1, T, S)."""
    online = None if dynamic is None else PerGap(dynamic.limit)
    rule = Scheduled(
        tables,
        tuple(cell.path for cell in basis.cells),
        basis.sigmas,
        basis.scheduler,
        resample,
        online,
        None if dynamic is None else dynamic.longest,
        provenance,
    )
    used = set(np.unique(tables).tolist())
    probe = FirstBlocks(depth=0) if fitted is None or Action.CORRECT not in used else fitted.probe
    return Config(rule, approximators=_approximators(used, basis.sites, fitted), probe=probe, sites=basis.sites)


def _approximators(used: set[int], sites: Sites, fitted: Fitted | None) -> tuple[Approximator, ...]:
    """What fills in where these actions are asked for."""
    line = sites.approximators[0]
    made: Sequence[tuple[Action, Approximator | None]] = (
        (Action.EXTRAPOLATE, line),
        (Action.REUSE, Reuse()),
        (Action.CORRECT, None if fitted is None else fitted.approximator()),
        (Action.ZERO, Zero()),
    )
    open_ = {Action.EXTRAPOLATE, Action.REUSE} if Action.DYNAMIC in used else set()
    return tuple(each for action, each in made if each is not None and action in used | open_) or (Reuse(),)
