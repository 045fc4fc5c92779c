"""Learning-to-Cache (arXiv 2406.01733): a score per step and site is trained, the model stays as it is.

Steps come in pairs, a full one and one that may reuse. For a pair, with beta = sigmoid(w) and
`dicache.regressions.soft_gates`,

    L = k ||F(x) - F_beta(x)||^2 / ||F||^2  +  lambda sum over sites of  c beta

    space = "eps"    the paper: k = 1, c = 1, w from N(0, 1), one lambda, guidance branches each for itself
    space = "x"      k the square of the output's coefficient in the solver's step times what survives of an error made
                     there (`dicache.planning.error_law`), 1 in the mean; branches mixed as the pipeline mixes them;
                     c the site's share of MACs, 1 in the mean; lambda rises along a path, from a price at which
                     everything computes to one at which nothing does

In x space a site's score is its mean beta along the path: scores of one lambda saturate, and cannot be ranked. Sites
are skipped from the lowest score on until the work is what was asked for. Half of all site calls can be skipped at
most.

x comes from uncached runs of the calibration prompts, where the paper noises its training data. With `rounds` above 1
it then comes from runs that follow what was learned so far, so that later pairs are trained on what earlier ones leave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from dicache.api import enable
from dicache.errors import ScheduleError
from dicache.files.checkpoint import Entry
from dicache.files.content import digest_of
from dicache.finders.base import Finder
from dicache.measuring.recording import Recorder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.planning.error_law import surviving_share
from dicache.regressions.soft_gates import Branch, Recorded, RecordedCall, SoftGates
from dicache.schedules.action_table import Table
from dicache.schedules.setting import config_of
from dicache.tensors.tree import Tree, map_tensors
from dicache.types import Step

PATH = tuple(float(lam) for lam in np.geomspace(1e-5, 1e1, 13))
"""lambda, in x space."""
STRAY = 0.6
"""Share of the work at which later rounds run, where none is asked for."""


@dataclass(frozen=True)
class LearningToCache(Finder):
    name: ClassVar[str] = "l2c"
    space: Literal["x", "eps"] = "x"
    weight: float = 1e-3
    """lambda, in eps space."""
    iterations: int = 8
    """Of every pair at every lambda; in eps space as many for its one lambda as for the path."""
    rate: float = 0.2
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.space not in ("x", "eps"):
            raise ScheduleError(f"space is {self.space!r}. Expected 'x' or 'eps'.")
        if self.iterations < 1 or self.rounds < 1 or not self.rate > 0 or not self.weight >= 0:
            raise ScheduleError(f"{self}: expected iterations, rounds from 1 on, a rate above 0, a weight from 0 on.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        scores = self.scores(measurements, cost, seed)
        return [measurements.filled(mask) for mask in ranked(scores)]

    def scores(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> np.ndarray:
        """(T, S) in [0, 1]; 1 at full steps."""
        steps, sites = measurements.basis.shape
        begin = torch.randn(steps, sites, generator=torch.Generator().manual_seed(seed))
        begin = begin if self.space == "eps" else torch.zeros(steps, sites)
        scores, table = np.ones((steps, sites)), np.zeros((steps, sites), dtype=np.uint8)
        mine = digest_of([self, seed, cost if self.rounds > 1 else None])
        for turn in range(self.rounds):
            if turn:
                family = [measurements.filled(mask) for mask in ranked(scores)]
                work = measurements.basis.work(np.stack(family))
                table = family[int(np.abs(work - (cost or STRAY)).argmin())]
            runs = recorded(measurements, table)
            left = [surviving_share(half_log_snr) for half_log_snr in measurements.timetable.half_log_snrs]
            squared = (np.array(runs.coefficients) * left) ** 2
            k = np.ones(steps) if self.space == "eps" else squared / squared.mean()
            with SoftGates(measurements.denoiser, runs.sites) as router:
                for pair, step in enumerate(range(1, steps, 2)):
                    train = partial(self._trained, measurements, router, runs, step, float(k[step]), begin[step])
                    entry = measurements.checkpoint.entry(f"router-{mine}-{turn}-{step}", train)
                    scores[step] = entry["scores"]
                    measurements.calibration.tick(f"routers, round {turn + 1}", pair + 1, steps // 2)
        return scores

    def _trained(
        self, measurements: ScheduleMeasurements, router: SoftGates, runs: Recorded, step: int, k: float, begin: Tensor
    ) -> Entry:
        """The scores of one pair, (S,)."""
        w = begin.clone().requires_grad_(True)
        price = torch.tensor([cell.macs for cell in measurements.basis.cells], dtype=torch.float32)
        path = PATH if self.space != "eps" else (self.weight,) * len(PATH)
        price = torch.ones_like(price) if self.space == "eps" else price / price.mean()
        optimizer, seen, pair = torch.optim.AdamW([w], lr=self.rate, weight_decay=0.0), [], router.pair(runs, step)
        for lam in path:
            for _ in range(self.iterations):
                optimizer.zero_grad()
                with torch.enable_grad():
                    beta = torch.sigmoid(w)
                    loss = k * self.wrong(router, pair, beta) + lam * (price * beta).sum()
                    loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    w.clamp_(-5, 5)
            seen.append(torch.sigmoid(w.detach()).double().numpy())
        return {"scores": np.asarray(seen[-1] if self.space == "eps" else np.mean(seen, axis=0))}

    def wrong(self, router: SoftGates, pair: Sequence[Branch], beta: Tensor) -> Tensor:
        """The squared error of a pair's output with its sites mixed, relative to its mean square. Squared in float32:
        in half precision small errors have none.
        """
        missed: list[Tensor] = []
        for branch in pair:
            parts = (router.mixed(branch, beta).float() - branch.truth.float()).chunk(len(branch.weights))
            weights = [1.0] * len(parts) if self.space == "eps" else branch.weights
            missed += [part * m for m, part in zip(weights, parts, strict=True)]
        size = torch.stack([branch.truth.float().square().mean() for branch in pair]).mean()
        joined = torch.stack(missed) if self.space == "eps" else torch.stack(missed).sum(0)
        return joined.square().mean() / size


def ranked(scores: np.ndarray) -> list[np.ndarray]:
    """Masks, (T, S) bool, from all computed to all cache steps skipped, a cell more each time, lowest score first."""
    cells = [(t, s) for t in range(1, len(scores), 2) for s in range(scores.shape[1])]
    mask, masks = np.ones(scores.shape, dtype=bool), []
    for cell in [None, *sorted(cells, key=lambda cell: scores[cell])]:
        if cell is not None:
            mask[cell] = False
        masks.append(mask.copy())
    return masks


def recorded(measurements: ScheduleMeasurements, table: Table) -> Recorded:
    """All prompts in one batch, on runs that follow the table."""
    calls: list[list[RecordedCall]] = [[] for _ in table]
    with enable(measurements.pipe, config=config_of(measurements.basis, table[None])) as cache, torch.no_grad():
        recorder = Recorder(cache)

        def read(step: Step, args: tuple[Tree, ...], kwargs: Mapping[str, Tree]) -> None:
            calls[step.index].append(RecordedCall(*map_tensors(Tensor.clone, (args, dict(kwargs)))))

        with recorder.inputs(measurements.denoiser, read):
            measurements.drawer.draw(range(measurements.prompts))
        mixture, timetable = recorder.mixture or [[1.0]] * len(calls[0]), recorder.facts.timetable
    assert timetable is not None
    if len({len(step) for step in calls}) != 1 or len(mixture) != len(calls[0]):
        raise ScheduleError("a router needs as many denoiser calls at every step; here guidance is switched on or off.")
    return Recorded(calls, mixture, timetable.coefficients, recorder.sites)
