"""Fitting what fills in along the run that it will be used in. Steps are seen where the scheduler takes them: the
mixed output that it is given, the latent before and the latent after.

Two runs of the same prompts in one batch:

    uncached     keeps v*_t, x*_t, and the two numbers of x*_{t+1} ~ A_t x*_t + h_t v*_t
    cached       computes what the table says. At a skipped step t its latent x_t is off by what was skipped before, and
                 the slopes a, b of v = v_0 + a (v_0 - v_1) + b (e_0 - e_1) are those that bring the next latent nearest
                 to the uncached one's,

                     min over a, b of  sum over prompts  |A_t (x_t - x*_t) + h_t (v - v*_t)|^2 / |..|^2 at a = b = 0

                 by least squares; v is what the scheduler is then given, and the run goes on.

So every step is fitted on the errors of those before it, and pays back what they left. What the scheduler is given must
be the denoiser's outputs, mixed and nothing else, once an evaluation: that is checked in the uncached run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.api import enable
from dicache.approximators.noise import noise_of
from dicache.errors import ScheduleError
from dicache.fanout.worker import Worker
from dicache.measuring.prompt_runs import Drawer, DrawOrder, Spent
from dicache.measuring.recording import Recorder, StepRecord, stepping
from dicache.schedules.action_table import Table, computes
from dicache.schedules.setting import Basis, config_of
from dicache.tensors.norms import relative_change
from dicache.types import Action


class UncachedStep(NamedTuple):
    """A step of the uncached run."""

    output: Tensor
    """v*, (P, ...)."""
    before: Tensor
    """x*, (P, ...)."""
    carries: float
    """A."""
    adds: float
    """h."""


class Slopes(NamedTuple):
    """Of every step, and the two computed steps that they were fitted with, -1 for none; (T,) float32 each."""

    a: Tensor
    b: Tensor
    newest: Tensor
    before: Tensor


class SlopesAlongRun(NamedTuple):
    """What the cached run gave."""

    slopes: Slopes
    latents: Tensor
    """The final ones, (P, ...)."""
    guidance: float
    """Weight of the strongest branch."""


CLOSE = 0.05
"""How far what the scheduler is given may be from the outputs mixed, relative: half precision rounds."""
Step = Callable[[StepRecord, Tensor, Tensor], Tensor]
"""The step, the output that the scheduler is given and the latent; what it is given instead."""


def uncached_steps(drawer: Drawer, basis: Basis, prompts: range) -> list[UncachedStep]:
    """The steps of a run of these prompts that computes everything. Raises ScheduleError where a scheduler is given
    anything but the denoiser's outputs, mixed.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def note(record: StepRecord, output: Tensor, latent: Tensor) -> Tensor:
        truth = None if record.output is None else _own(record.output, output)
        if truth is not None and (truth.shape != output.shape or _far(output, truth)):
            raise _changed(drawer)
        seen.append((output.clone(), latent.clone()))
        return output

    _, last = _drawn(drawer, basis, prompts, [True] * len(basis.sigmas), note)
    after = [latent for _, latent in seen[1:]] + [last]
    return [UncachedStep(v, x, *_solved([x, v], y)) for (v, x), y in zip(seen, after, strict=True)]


def _far(output: Tensor, truth: Tensor) -> bool:
    return bool((relative_change(truth.float(), output.float()) > CLOSE).any())


def _own(seen: Tensor, latent: Tensor) -> Tensor:
    """What the denoiser saw or gave, without the tokens of pictures to go by, (P, N, C), that a pipeline appends to the
    latent and takes off the output again.
    """
    appended = seen.ndim == 3 and seen.shape[::2] == latent.shape[::2] and seen.shape[1] > latent.shape[1]
    return seen[:, : latent.shape[1]] if appended else seen


def _changed(drawer: Drawer) -> ScheduleError:
    return ScheduleError(
        f"{type(drawer.pipe).__name__} changes outputs between its denoiser and its scheduler, or steps "
        "otherwise: slopes cannot be fitted along its runs. Use another finder, such as law."
    )


def fit_slopes(
    drawer: Drawer, basis: Basis, prompts: range, uncached: list[UncachedStep], table: Table, ridge: float
) -> SlopesAlongRun:
    """The slopes of a table of one site, (T, 1)."""
    fitter = _Fitter(computes(table)[:, 0].tolist(), uncached, ridge)
    latents, _ = _drawn(drawer, basis, prompts, fitter.computed, fitter)
    columns = (column.contiguous() for column in torch.tensor(fitter.fitted).T)
    return SlopesAlongRun(Slopes(*columns), latents, fitter.guidance)


@dataclass(frozen=True, eq=False)
class FitCell:
    """A table whose slopes are to be fitted, anywhere. A worker keeps the uncached steps for the next one."""

    order: DrawOrder
    basis: Basis
    table: Table
    ridge: float

    def run(self, worker: Worker) -> tuple[SlopesAlongRun, Spent]:
        drawer, prompts = self.order.drawer(worker.pipe), range(len(self.order.indices))
        uncached = worker.recall(
            f"uncached steps of {len(prompts)}", lambda: uncached_steps(drawer, self.basis, prompts)
        )
        return fit_slopes(drawer, self.basis, prompts, uncached, self.table, self.ridge), drawer.spent


class _Fitter:
    def __init__(self, computed: list[bool], uncached: list[UncachedStep], ridge: float) -> None:
        self.computed, self.uncached, self.ridge = computed, uncached, ridge
        self.histories: list[tuple[int, Tensor, Tensor]] = []
        """Step, output and noise of the computed steps, newest first."""
        self.fitted: list[list[float]] = []
        """Slopes and steps, a row of four per step."""
        self.guidance = 1.0

    def __call__(self, record: StepRecord, output: Tensor, latent: Tensor) -> Tensor:
        t = record.step.index
        self.guidance = self.guidance if record.guidance is None else record.guidance
        if self.computed[t]:
            seen = _own(record.latent[: len(latent)], latent)
            self.histories = [(t, output.clone(), noise_of(seen, output, record.step.noise)), *self.histories[:1]]
            self.fitted.append([0.0, 0.0, -1.0, -1.0])
            return output
        if len(self.histories) < 2:
            self.fitted.append([0.0, 0.0, -1.0, -1.0])
            return self.histories[0][1].clone()
        (newest, value, noise), (before, older_value, older_noise) = self.histories
        slopes, step = [value - older_value, noise - older_noise], self.uncached[t]
        miss = step.carries * (step.before - latent) + step.adds * (step.output - value)
        a, b = _solved([step.adds * slope for slope in slopes], miss, self.ridge, each=True)
        self.fitted.append([a, b, newest, before])
        return value + a * slopes[0] + b * slopes[1]


def _solved(terms: list[Tensor], wanted: Tensor, ridge: float = 0.0, *, each: bool = False) -> tuple[float, float]:
    """c of least |wanted - sum c_k terms_k|^2 over all samples, (P, ...), `each` weighted by 1 / |wanted|^2 of its own;
    `ridge` in units of the terms' mean squares.
    """
    rows = [t.double().flatten(1) for t in (*terms, wanted)]
    moments = torch.stack([torch.stack([(p * q).sum(1) for q in rows]) for p in rows])
    own = moments[-1, -1]
    mean = (moments / torch.where(own > 0, own, torch.inf) if each else moments).sum(-1).cpu()
    square = mean[:-1, :-1] + ridge * mean[:-1, :-1].diagonal().diag()
    solution: list[float] = torch.linalg.pinv(square, hermitian=True).mv(mean[:-1, -1]).tolist()
    return solution[0], solution[1]


def _drawn(drawer: Drawer, basis: Basis, prompts: range, computed: list[bool], step: Step) -> tuple[Tensor, Tensor]:
    """The final latents of a run in which the scheduler is given what `step` says, and as the scheduler left them."""
    table = torch.where(torch.tensor(computed), int(Action.COMPUTE), int(Action.REUSE)).to(torch.uint8).numpy()
    with enable(drawer.pipe, config=config_of(basis, table[None, :, None])) as cache:
        recorder, left = Recorder(cache), list[Tensor]()

        def seen(output: Tensor, latent: Tensor) -> Tensor:
            record = recorder.step
            if record is None or output.shape != latent.shape or record.step.index != len(left):
                raise _changed(drawer)
            return step(record, output, latent)

        with stepping(drawer.pipe.scheduler, lambda time, latent: left.append(latent), seen):
            latents = drawer.draw(prompts).latents
    if len(left) != len(computed):
        raise _changed(drawer)
    return latents, left[-1]
