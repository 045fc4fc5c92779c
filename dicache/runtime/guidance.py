"""How the pipeline mixes its branches, measured instead of asked for, and errors of the mixed output.

Guidance makes one update from several outputs, v = sum_b m_b v_b with sum_b m_b = 1 (for classifier-free guidance m =
(s, 1 - s)), and an error in v_b weighs m_b times. Pipelines keep the scale in many places or nowhere; but the denoiser
sees the latents before and after a step. For every solver that is linear in its first step,

    x' = p x + sum_b c_b v_b        least squares per sample for (p, c_1, ..),    m_b = c_b / sum c

is exact, over what the step moved: tokens of pictures to go by stand beside the latent, and no output changes them.
Where outputs have not the latent's shape (learned variances, extra input channels) m_b = 1: errors of all branches add
up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dicache.approximators.noise import predicted
from dicache.extension import combine, residual_sums
from dicache.planning.error_law import remaining
from dicache.solvers.mixture import denoised, fit, parallel
from dicache.tensors.tree import to_host
from dicache.tensors.written import same
from dicache.types import Grid, Rows, Step

_PART = ", part "
OTHER = 0.05
"""How far another mixture of the same outputs must be from the one that is expected, relative, to be one."""


def chunks_of(latents: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Into how many guidance branches the rows of a batch fall: they repeat every latent and differ in the outputs.

    Two samples of one seed have equal latents too, but only at the first step, so give it the first two; two samples of
    one seed and one prompt have equal outputs as well, and are two samples.
    """
    fitting = [n for n in (2, 3) if all(_repeats(latent, n) for latent in latents)]
    return next((n for n in fitting if not all(_repeats(output, n) for output in outputs)), 1)


def samples_of(latents: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """How many samples, B, a step of several calls has: `latents` are its first call's input and the next step's, (R,
    ...), `outputs` those of all its calls, whose rows are multiples of B. 0 where there is no such number.
    """
    rows = latents[0].shape[0]
    latents = [denoised(latent, outputs[0]) for latent in latents]
    chunks = chunks_of(latents, [output for output in outputs if output.shape[0] == rows])
    counts = {output.shape[0] for output in outputs}
    fitting = (rows // n for n in (chunks, 2, 3) if rows % n == 0 and all(_repeats(latent, n) for latent in latents))
    return next((samples for samples in fitting if all(count % samples == 0 for count in counts)), 0)


def _repeats(latent: Tensor, times: int) -> bool:
    if latent.shape[0] % times:
        return False
    first, *rest = latent.chunk(times)
    return all(same(first, other) for other in rest)


@dataclass
class Guided:
    """The sums of one step over its branches and, within a call, over its chunks. A call of r rows has r / B chunks."""

    order: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    """How many chunks each of them has."""
    mixture: Tensor | None = None
    """(chunks of all branches, B), None until measured."""
    strength: Rows | None = None
    """Weight of the strongest branch, (B,): the guidance scale. None without a mixture, as what follows."""
    surviving_share: Rows | None = None
    """Of an error, (B,): what is left of it at the end (`dicache.planning.error_law`)."""
    strongest: tuple[str, int] | None = None
    """Branch and chunk with the largest weight, in most samples."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """What each branch handed to the pipeline; contents only while the mixture is not known, or where they are watched.
    """
    versions: dict[str, int] = field(default_factory=dict)
    """How often those were written to when they were handed over, where that is counted."""
    watched: bool = False
    """Whether what a step made of its outputs is looked at when it is over."""
    truth: Tensor | None = None
    """sum_b m_b v_b, (B, ...), float32 where outputs are of lower precision."""
    guesses: dict[int, Tensor] = field(default_factory=dict)
    """The same sum over guess_b, per approximator; rounded as the truth is, so that equal guesses miss by exactly 0."""

    def next_step(self, calls: int) -> "Guided":
        """`calls` is how many the solver makes: where they are fewer, as in a last step, the others' weights go."""
        staying = [i for i, name in enumerate(self.order) if _part(name) < calls]
        if self.mixture is None or len(staying) in (0, len(self.order)):
            return replace(self, outputs={}, versions={}, truth=None, guesses={})
        weights = torch.cat([self.mixture.split(self.widths)[i] for i in staying])
        order, widths = tuple(self.order[i] for i in staying), tuple(self.widths[i] for i in staying)
        mixed = _mixed(order, widths, torch.where(weights.sum(0).abs() > 1e-3, weights / weights.sum(0), 1.0))
        return replace(mixed, watched=self.watched)

    def branch(self, name: str | None, part: int = 0) -> str:
        """What a call is remembered by: the branch's name, or its place, and which of the solver's calls it is."""
        order = sum(_part(output) == part for output in self.outputs)
        return self.named(name or f"call {order}", part)

    @staticmethod
    def named(name: str, part: int) -> str:
        return _PART.join([name, *([str(part)] if part else [])])

    def came(self, name: str | None, part: int) -> bool:
        """Whether the branch of this name was called already."""
        return name is not None and self.branch(name, part) in self.outputs

    @property
    def all_came(self) -> bool:
        """Whether the branches of the mixture came, and no other."""
        return self.mixture is not None and set(self.outputs) == set(self.order)

    @property
    def complete(self) -> bool:
        """Whether the truth holds every branch of the mixture and no other branch came."""
        return self.truth is not None and self.all_came

    @property
    def changed(self) -> bool:
        """Whether other branches came than those the mixture was measured on."""
        return self.mixture is not None and set(self.outputs) != set(self.order)

    def handed(self, branch: str, output: Tensor) -> None:
        """The pipeline got this of a branch, (R, ...)."""
        self.outputs[branch] = output = output.detach().clone() if self.mixture is None or self.watched else output
        self.versions[branch] = 0 if output.is_inference() else output._version

    def passed(self, branch: str, output: Tensor, latent: Tensor) -> Tensor:
        """The same, of a branch in which nothing was guessed."""
        self.add(branch, predicted(output, latent), {})
        self.handed(branch, predicted(output, latent))
        return output

    def add(self, branch: str, output: Tensor, guesses: dict[int, Tensor]) -> None:
        """One branch was computed: `output` (R, ...), and what each approximator had guessed; one that had no guess of
        this branch missed nothing by it.
        """
        if self.mixture is None or branch not in self.order:
            return
        weights = self.mixture.split(self.widths)[self.order.index(branch)]
        self.guesses = {
            i: _plus(self.guesses.get(i, self.truth), weights, guesses.get(i, output))
            for i in sorted(self.guesses.keys() | guesses.keys())
        }
        truth = _plus(self.truth, weights, output)
        self.truth = truth.clone() if truth is output else truth  # the pipeline may change its output in place

    def measure(
        self, latent: Tensor, clean: tuple[float, float], n_approximators: int, *asked: Tensor
    ) -> tuple[Grid, Rows, list[Tensor]]:
        """Relative error of every approximator, (B, A), nan where it had no guess, ||v|| / ||x_N||, (B,), and what
        else is `asked`, on the host: here it waits for the device, once a computed step.
        """
        assert self.truth is not None
        final = _final(denoised(latent, self.truth), self.truth, clean)
        own = [residual_sums(x, x)[:, 5] for x in (final, self.truth)]
        missed = [residual_sums(guess, self.truth)[:, 2] for guess in self.guesses.values()]
        sums, *answers = to_host([torch.stack([*own, *missed]), *asked])
        scale, length, *missed = sums.sqrt()
        errors = torch.full((len(length), n_approximators), torch.nan, dtype=torch.float64)
        for i, miss in zip(self.guesses, missed, strict=True):
            errors[:, i] = miss / length
        return errors, length / scale, answers

    @property
    def told_apart(self) -> bool:
        """Whether one branch is known to be stronger than another."""
        return self.mixture is not None and not bool((self.mixture == 1).all())

    @property
    def streams(self) -> list[tuple[str, int]]:
        """Branch and chunk of every row of the mixture."""
        return [
            (branch, chunk) for branch, width in zip(self.order, self.widths, strict=True) for chunk in range(width)
        ]

    def fitted(self, before: Tensor, after: Tensor, step: Step) -> "Guided":
        """With the mixture measured from this step's latents, (B, ...): that of the branches, times what each of the
        solver's calls has in the step. The same where it cannot be told yet.
        """
        chunks = {name: output.split(len(before)) for name, output in self.outputs.items()}
        positions = [(name, chunk) for name in chunks if _part(name) == 0 for chunk in range(len(chunks[name]))]
        outputs = [self._together(name, chunk, chunks, step.weights) for name, chunk in positions]
        if self.watched and len(outputs) > 1 and parallel(before, outputs):
            return self
        mixture = fit(denoised(before, outputs[0]), denoised(after, outputs[0]), outputs, _known_solution(step))
        own = dict(zip(positions, mixture, strict=True))
        rows = [
            own[_first(name), chunk] * step.weights[_part(name)]
            for name, parts in chunks.items()
            for chunk in range(len(parts))
        ]
        mixed = _mixed(tuple(chunks), tuple(map(len, chunks.values())), torch.stack(rows))
        return replace(mixed, outputs=self.outputs, truth=self.truth, guesses=self.guesses, watched=self.watched)

    def _together(
        self, name: str, chunk: int, chunks: Mapping[str, Sequence[Tensor]], weights: Sequence[float]
    ) -> Tensor:
        """One branch's outputs of all calls of a step, as the solver weighs them."""
        named = [self.named(name, part) for part in range(len(weights))]
        if len(weights) == 1 or any(each not in chunks for each in named):
            return chunks[name][chunk]
        return torch.stack([w * chunks[each][chunk] for w, each in zip(weights, named, strict=True)]).sum(0)

    def surprise(self, before: Tensor, after: Tensor, step: Step) -> list[Tensor]:
        """||expected||^2 of what the mixture makes of this step's outputs, and ||mixed - expected||^2 of what the step
        made of them, (B,) each, on the device. Nothing where nobody can tell: solvers that use older outputs mix those
        in too.
        """
        seen = self.complete and self.told_apart and tuple(self.outputs) == self.order and not self._written
        if not step.alone or not seen:
            return []
        expected, mixed = self._mixed(before, after, step)
        return [residual_sums(x, x)[:, 5] for x in (expected, mixed - expected)]

    def remeasured(self, before: Tensor, after: Tensor, step: Step, surprise: Sequence[Tensor]) -> "Guided | None":
        """With the mixture of this step, where by the `surprise`, on the host, it is another than what is known; None
        where it is not, or no mixture makes what was made.
        """
        if not surprise or not bool((surprise[1] > OTHER**2 * surprise[0]).any()):
            return None  # as expected, which it is nearly always: nothing is fitted
        guided = self.fitted(before, after, step)
        (expected, mixed), (fitted, _) = (each._mixed(before, after, step) for each in (self, guided))
        moved, left = (residual_sums(x, x)[:, 5].cpu() for x in (fitted - expected, mixed - fitted))
        return guided if bool(((moved > OTHER**2 * surprise[0]) & (left < moved / 4)).any()) else None

    def _mixed(self, before: Tensor, after: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """What the mixture makes of the outputs, (B, ...), and what the step made of them."""
        assert self.mixture is not None
        chunks = [chunk for output in self.outputs.values() for chunk in output.split(len(before))]
        from_latent, made = step.solved or (math.nan, math.nan)
        expected = combine(chunks, self.mixture.T, to_float=True)
        return expected, (denoised(after, expected) - from_latent * denoised(before, expected)) / made

    @property
    def _written(self) -> bool:
        """Whether the pipeline wrote to what it was handed."""
        counted = ((t._version, self.versions[name]) for name, t in self.outputs.items() if not t.is_inference())
        return any(version != before for version, before in counted)

    def made_of(self, samples: int) -> Tensor | None:
        """All that was handed over, as the step mixed it, (B, ...); None where that is not known."""
        chunks = [chunk for output in self.outputs.values() for chunk in output.split(samples)]
        if len(chunks) == 1:
            return chunks[0]
        return combine(chunks, self.mixture.T, to_float=True) if self.mixture is not None and self.all_came else None

    def unmixed(self) -> "Guided":
        """Nothing is known of the mixture any more."""
        return replace(self, mixture=None, strength=None, surviving_share=None, strongest=None)


def _mixed(order: tuple[str, ...], widths: tuple[int, ...], mixture: Tensor) -> Guided:
    """What is asked of a mixture at every step is worked out here, once."""
    guided = Guided(order, widths, mixture)
    branches: dict[tuple[str, int], Tensor] = {}  # over the solver's calls
    for (name, chunk), weights in zip(guided.streams, mixture, strict=True):
        branches[_first(name), chunk] = branches.get((_first(name), chunk), 0.0) + weights
    strength = torch.stack(list(branches.values())).abs().amax(0)
    strongest = guided.streams[int(mixture.abs().median(1).values.argmax())]
    return replace(guided, strength=strength, surviving_share=remaining(strength), strongest=strongest)


def _part(branch: str) -> int:
    return int(branch.partition(_PART)[2] or 0)


def _first(branch: str) -> str:
    """The same branch in the first of the solver's calls."""
    return branch.partition(_PART)[0]


def _known_solution(step: Step) -> tuple[float, float] | None:
    """What the solver is known to make of latent and output, where noise hides it."""
    return step.solved if step.timetable is not None and step.timetable.random else None


def _plus(total: Tensor | None, weights: Tensor, term: Tensor) -> Tensor:
    """Add (R, ...) to (B, ...), summing over the chunks with `weights`, (chunks, B); the term itself if that is all."""
    if total is None and len(weights) == 1 and term.dtype == torch.float32 and bool((weights == 1).all()):
        return term
    joined = combine(term.chunk(len(weights)), weights.T, to_float=True)
    return joined if total is None else total + joined


def _final(latent: Tensor, truth: Tensor, clean: tuple[float, float]) -> Tensor:
    """The final latent as a step estimates it, (B, ...); the latent itself where the output has another shape."""
    if latent.shape != truth.shape:
        return latent
    coefficients = torch.tensor(clean, dtype=torch.float64).expand(len(latent), 2)
    return combine((latent.to(truth.dtype), truth), coefficients)
