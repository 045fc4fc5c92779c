"""Fitting what fills in along the run that it will be used in. Steps are seen where the scheduler takes them: the
mixed output that it is given, the latent before and the latent after.

Two runs of the same prompts in one batch:

    uncached     keeps v*_t, x*_t, and the two numbers of x*_{t+1} ~ A_t x*_t + h_t v*_t
    cached       computes what the table says. At a skipped step t its latent x_t is off by what was skipped before, and
                 the slopes a, b of v = v_0 + a (v_0 - v_1) + b (e_0 - e_1) are those that bring the next latent nearest
                 to the uncached one's,

                     min over a, b of  sum over prompts  |A_t (x_t - x*_t) + h_t (v - v*_t)|^2 / |..|^2 at a = b = 0

                 by least squares; v is what the scheduler is then given, and the run goes on.

So every step is fitted on the errors of those before it, and pays back what they left.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dicache.api import enable
from dicache.approximators.noise import noise_of
from dicache.basis import config_of
from dicache.errors import ScheduleError
from dicache.run import Run
from dicache.table import Table, computes
from dicache.types import Action

if TYPE_CHECKING:
    from dicache.finders.ground import Ground


class Taken(NamedTuple):
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


Step = Callable[[Run, Tensor, Tensor], Tensor]
"""The run, the output that the scheduler is given and the latent; what it is given instead."""


def uncached(ground: "Ground", prompts: range) -> list[Taken]:
    """The steps of a run of these prompts that computes everything."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(run: Run, output: Tensor, latent: Tensor) -> Tensor:
        seen.append((output.clone(), latent.clone()))
        return output

    last = _drawn(ground, prompts, [True] * len(ground.basis.sigmas), keep)
    after = [latent for _, latent in seen[1:]] + [last.reshape(seen[0][1].shape)]
    return [Taken(v, x, *_solved([x, v], y)) for (v, x), y in zip(seen, after, strict=True)]


def slopes(ground: "Ground", prompts: range, taken: list[Taken], table: Table, ridge: float) -> tuple[Slopes, Tensor]:
    """Those of a table of one site, (T, 1), and the final latents of the run that they were fitted in, (P, ...)."""
    fitter = _Fitter(computes(table)[:, 0].tolist(), taken, ridge)
    latents = _drawn(ground, prompts, fitter.computed, fitter)
    return Slopes(*(column.contiguous() for column in torch.tensor(fitter.found).T)), latents


class _Fitter:
    def __init__(self, computed: list[bool], taken: list[Taken], ridge: float) -> None:
        self.computed, self.taken, self.ridge = computed, taken, ridge
        self.past: list[tuple[int, Tensor, Tensor]] = []
        """Step, output and noise of the computed steps, newest first."""
        self.found: list[list[float]] = []

    def __call__(self, run: Run, output: Tensor, latent: Tensor) -> Tensor:
        t = run.step.index
        if self.computed[t]:
            seen = run.latent[: len(latent)]
            self.past = [(t, output.clone(), noise_of(seen, output, run.step.noise)), *self.past[:1]]
            self.found.append([0.0, 0.0, -1.0, -1.0])
            return output
        if len(self.past) < 2:
            self.found.append([0.0, 0.0, -1.0, -1.0])
            return self.past[0][1].clone()
        (newest, held, noise), (before, other, older) = self.past
        slopes, step = [held - other, noise - older], self.taken[t]
        miss = step.carries * (step.before - latent) + step.adds * (step.output - held)
        a, b = _solved([step.adds * slope for slope in slopes], miss, self.ridge, each=True)
        self.found.append([a, b, newest, before])
        return held + a * slopes[0] + b * slopes[1]


def _solved(terms: list[Tensor], wanted: Tensor, ridge: float = 0.0, *, each: bool = False) -> tuple[float, float]:
    """c of least |wanted - sum c_k terms_k|^2 over all samples, (P, ...), `each` weighted by 1 / |wanted|^2 of its own;
    `ridge` in units of the terms' mean squares.
    """
    rows = [t.double().flatten(1) for t in (*terms, wanted)]
    moments = torch.stack([torch.stack([(p * q).sum(1) for q in rows]) for p in rows])
    own = moments[-1, -1]
    mean = (moments / torch.where(own > 0, own, torch.inf) if each else moments).sum(-1).cpu()
    square = mean[:-1, :-1] + ridge * mean[:-1, :-1].diagonal().diag()
    found: list[float] = torch.linalg.pinv(square, hermitian=True).mv(mean[:-1, -1]).tolist()
    return found[0], found[1]


def _drawn(ground: "Ground", prompts: range, computed: list[bool], step: Step) -> Tensor:
    """The final latents of a run in which the scheduler is given what `step` says."""
    table = torch.where(torch.tensor(computed), int(Action.COMPUTE), int(Action.REUSE)).to(torch.uint8).numpy()
    with enable(ground.pipe, config=config_of(ground.basis, table[None, :, None])) as cache:

        def seen(output: Tensor, latent: Tensor) -> Tensor:
            run = cache._session.run
            if run is None or output.shape != latent.shape:
                raise ScheduleError(f"{type(ground.pipe).__name__} does not hand its outputs to one scheduler step.")
            return step(run, output, latent)

        with _stepping(ground.pipe.scheduler, seen):
            return ground.drawer.draw(prompts).latents


@contextmanager
def _stepping(scheduler: Any, seen: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:  # noqa: ANN401
    """While it lasts, the scheduler takes its steps with what `seen` makes of its output and latent."""
    inner, own = scheduler.step, "step" in vars(scheduler)

    @functools.wraps(inner)  # pipelines look at its signature
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return inner(seen(model_output, sample), timestep, sample, *args, **kwargs)

    scheduler.step = step
    try:
        yield
    finally:
        if own:
            scheduler.step = inner
        else:
            del scheduler.step
