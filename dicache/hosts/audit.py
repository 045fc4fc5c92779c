"""Audits: some samples are also run uncached, beside the cached run, so that the measured share within budget is known
for as long as one goes on.

An audited sample has a second latent y, exact from the first skipped step on. At every step the denoiser runs once more
for the audited rows with y in the place of the cached latent, nothing skipped; the branches are mixed as the pipeline
was measured to mix them (`dicache.runtime.guidance`), and a copy of its scheduler takes the step:

    y' = solver(sum_b m_b v_b(y), t, y),        error = ||x_N - y_N|| / ||y_N||

A second copy takes the cached latent's own steps: the last of them gives x_N, and each of the others must lead to the
latent that the pipeline goes on with. Audits cost what uncached samples cost, on top of the work that the report
counts. They need one denoiser with outputs shaped like the latent, branches that stay the same, a scheduler that is
deterministic and does not rescale the denoiser's input, and a pipeline that leaves the latent to it (and puts no
picture to go by beside it); where that is not so, the report says that nothing was audited.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dicache.hosts.attachment import Attachment
from dicache.planning.budget import Budget, per_sample
from dicache.promise.drift import drift
from dicache.promise.metrics import relative_error
from dicache.runtime.run_state import Run
from dicache.runtime.session import Session
from dicache.solvers.play import own_copy
from dicache.tensors.norms import length
from dicache.tensors.tree import Tree, map_tensors, plain, take, tensors
from dicache.types import Rows


class Audited(NamedTuple):
    error: float
    """||x - x_ref|| / ||x_ref|| of the final latent."""
    budget: float | None


@dataclass
class Shadow:
    """The exact run of the audited samples beside one cached run."""

    run: Run
    rows: Rows
    """Audited samples, (a,) int64."""
    solver: Any
    mirror: Any
    """Of the cached latent's own steps."""
    latent: Tensor
    """y, (B, ...); only the audited rows mean anything."""
    cached: Tensor
    """x, (B, ...), before the step that is going on."""
    index: int
    exact: dict[str, Tensor] = field(default_factory=dict)
    """Per branch of this step, (R, ...)."""
    handed: dict[str, Tensor] = field(default_factory=dict)
    """What the pipeline got, (R, ...)."""


class Auditor:
    """Of one attachment. `rate` of the samples, drawn from a generator of this seed."""

    session: Session
    scheduler: Callable[[], Any]
    rate: float

    def __init__(
        self,
        attachment: Attachment,
        scheduler: Callable[[], Any],
        rate: float,
        budget: Budget | None,
        seed: int = 0,
    ) -> None:
        self.session, self.scheduler, self.rate = attachment.session, scheduler, rate
        self.random: torch.Generator = torch.Generator().manual_seed(seed)
        self.budget = budget
        self.audits: list[Audited] = []
        self.shadow: Shadow | None = None
        self.seen: Run | None = None
        self.true_errors: dict[int, float] = {}
        """Of the last run's audited samples."""
        attachment.handles.append(attachment.denoiser.register_forward_hook(self._after, with_kwargs=True))

    def _after(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree], output: Tree) -> None:
        """The denoiser was called for the cached run, and the session has seen it."""
        run = self.session.run
        if run is None or run.samples == 0:
            return
        if self.seen is not run:
            self.finish()
            self.true_errors = {}
            self.seen, self.shadow = run, self._begun(run, tensors(plain(output))[0])
        shadow = self.shadow
        if shadow is None:
            return
        if run.step.index != shadow.index and not self._step(shadow, run.step.index):
            self.shadow = None
            return
        branch = next(reversed(run.guided.outputs))
        shadow.handed[branch] = tensors(plain(output))[0]
        shadow.exact[branch] = self._computed(module, args, kwargs, shadow, shadow.handed[branch])

    def _begun(self, run: Run, output: Tensor) -> Shadow | None:
        """At the second step: everything was computed until here."""
        rows = (torch.rand(run.samples, generator=self.random) < self.rate).nonzero().flatten()
        scheduler = self.scheduler()
        if not len(rows):
            return None
        if why := _cannot_be_followed(run, scheduler, output):
            self._refused(why)
            return None
        latent, solver, mirror = run.latent[: run.samples], own_copy(scheduler), own_copy(scheduler)
        return Shadow(run, rows, solver, mirror, latent.clone(), latent.clone(), run.step.index)

    def _computed(
        self, module: nn.Module, args: tuple[Tree, ...], kwargs: Mapping[str, Tree], shadow: Shadow, like: Tensor
    ) -> Tensor:
        """The exact output of the audited rows in this branch, (R, ...), zero elsewhere."""
        run = shadow.run
        chunks = len(like) // run.samples
        repeated = shadow.latent.repeat(chunks, *[1] * (shadow.latent.ndim - 1))
        rows = torch.cat([shadow.rows + c * run.samples for c in range(chunks)])

        def swapped(t: Tensor) -> Tensor:
            same = t.shape == run.latent.shape and t.is_floating_point()
            if t is not run.latent and not (same and torch.equal(t.to(run.latent.dtype), run.latent)):
                return t
            return repeated.to(t.dtype)  # autocast may have the pipeline go on in another precision

        own_args, own_kwargs = take(map_tensors(swapped, args), map_tensors(swapped, kwargs), rows, len(repeated))
        with torch.no_grad():
            output = tensors(plain(module.forward(*own_args, **own_kwargs)))[0]
        return torch.zeros_like(like).index_copy_(0, rows.to(like.device), output)

    def _step(self, shadow: Shadow, index: int) -> bool:
        """The solver takes the step that is over. False where that is not what the pipeline did."""
        latent = shadow.run.latent[: shadow.run.samples]
        if not _is_complete(shadow):
            self._refused(f"step {shadow.index} mixes other branches of guidance than the first.")
            return False
        if not _led_to(latent, _solved(shadow.mirror, shadow, shadow.handed, shadow.cached), shadow):
            self._refused(
                f"what the scheduler makes of step {shadow.index} is not the latent that the pipeline went on with: a "
                "callback or the pipeline changes it, or something lies beside it."
            )
            return False
        shadow.latent, shadow.cached = _solved(shadow.solver, shadow, shadow.exact, shadow.latent), latent.clone()
        shadow.index, shadow.exact, shadow.handed = index, {}, {}
        return True

    def _refused(self, why: str) -> None:
        self.session.note(f"nothing was audited: {why}")

    def release(self) -> None:
        """Let go of the model and its pipeline; what was measured stays."""
        self.finish()
        self.seen, self.scheduler = None, lambda: None

    def finish(self) -> None:
        """Close an audit whose run is over; one that broke off is forgotten."""
        shadow, self.shadow = self.shadow, None
        if shadow is None or shadow.index < shadow.run.step.total - 1 or not _is_complete(shadow):
            return
        cached = _solved(shadow.mirror, shadow, shadow.handed, shadow.cached)
        exact = _solved(shadow.solver, shadow, shadow.exact, shadow.latent)
        budgets = None if self.budget is None else per_sample(self.budget, shadow.run.samples)
        for b, error in zip(shadow.rows.tolist(), relative_error(cached[shadow.rows], exact[shadow.rows]), strict=True):
            if error.isfinite():  # of what is not, nothing is said
                self.audits.append(Audited(float(error), None if budgets is None else float(budgets[b])))
                self.true_errors[b] = float(error)


def _cannot_be_followed(run: Run, scheduler: Any, output: Tensor) -> str | None:  # noqa: ANN401
    """Why a run is not audited, as far as its first step shows; None where it can be."""
    timetable = run.step.timetable
    known_random = scheduler.config.get("stochastic_sampling") or "Ancestral" in type(scheduler).__name__
    name = type(scheduler).__name__
    if known_random or (timetable is not None and timetable.random):
        return f"{name} draws new noise on its way."
    if len(run.step.weights) > 1:
        return f"{name} calls the denoiser {len(run.step.weights)} times a step."
    if "is_scale_input_called" in vars(scheduler):
        return f"{name} rescales the denoiser's input."
    if run.guided.mixture is None:
        return "how guidance mixes its branches could not be read off the first step."
    if run.before > 1e-6:
        return "the run began half-way, on a latent that may not be exact."
    if output.shape[1:] != run.latent.shape[1:] or len(set(run.guided.widths)) > 1:
        return "the denoiser's outputs are not all shaped like the latent."
    return None


def _is_complete(shadow: Shadow) -> bool:
    """Whether the step that is over called the branches of the mixture, and those alone."""
    guided = shadow.run.guided
    return guided.mixture is not None and set(shadow.exact) == set(guided.order)


def _led_to(latent: Tensor, expected: Tensor, shadow: Shadow) -> bool:
    """Whether the cached latent became what was expected, but for a tenth of the change and for rounding."""
    actual, wanted, before = (t[shadow.rows].double() for t in (latent, expected, shadow.cached))
    allowed = length(wanted - before) / 10 + length(actual) * torch.finfo(latent.dtype).eps
    return bool((length(actual - wanted) <= allowed).all())


def _solved(solver: Any, shadow: Shadow, outputs: Mapping[str, Tensor], latent: Tensor) -> Tensor:  # noqa: ANN401
    """The latent after the step at `shadow.index`, (B, ...). Random numbers of the run are left alone."""
    guided = shadow.run.guided
    assert guided.mixture is not None
    streams = [part for name in guided.order for part in outputs[name].split(shadow.run.samples)]
    weights = guided.mixture.to(latent.device, latent.dtype)
    mixed = sum(w.view(-1, *[1] * (latent.ndim - 1)) * stream for w, stream in zip(weights, streams, strict=True))
    with torch.random.fork_rng([latent.device] if latent.is_cuda else []):
        return solver.step(mixed, solver.timesteps[shadow.index], latent, return_dict=False)[0]


def summary(audits: list[Audited], confidence: float | None) -> dict[str, Any]:
    """For the report: how many were audited, the share within budget, and what that says of a promise of this
    confidence (`dicache.promise.drift`): audits may be looked at whenever one likes, and go on.
    """
    missed = [audited.error > audited.budget for audited in audits if audited.budget is not None]
    promised = drift(missed, confidence) if missed and confidence is not None else None
    return {
        "samples": len(audits),
        "errors": [audited.error for audited in audits],
        "within": 1 - sum(missed) / len(missed) if missed else None,
        "evidence": None if promised is None else promised.evidence,
        "p": None if promised is None else promised.p,
        "drift": promised is not None and promised.seen,
    }
