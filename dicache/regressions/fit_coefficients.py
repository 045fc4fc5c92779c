"""Fitting what approximators hold: `fit` runs a pipeline on calibration prompts, computing everything, and reads every
site's value, now and up to `longest` steps before, off the session's own history.

    ridge         v ~ v_0 + (x - x_0) W               W = argmin sum |dv - dx W|^2 + lambda |W|^2
    low_rank      v ~ v_0 + (x - x_0) A B             the same W cut to `rank`, channels weighted; at Linears() the
                                                      layer's own weights
    affine        v ~ a_tc v_0 + b_tc                 per channel, step and gap
    scale_shift   v ~ (1 + gamma_t) v_0 + beta_t      per channel and step
    gate          v ~ v_0, where it may be            when, per step, by the site's own input
    innovation    v ~ l(v) + (P - l(P)) W_b           what a line misses, by what it misses of the first blocks' output

All maps of one kind are of the exact values of uncached runs: what an earlier guess does to a later input is not seen.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dicache._version import __version__
from dicache.api import denoisers, enable
from dicache.approximators.base import Target
from dicache.approximators.fitted.about import KINDS, About, described
from dicache.approximators.fitted.coefficients import Fitted
from dicache.approximators.fitted.innovation import line, mismatched
from dicache.config import Config
from dicache.controllers.interval import Interval
from dicache.errors import FittedError, ModeError, UnsupportedModelError
from dicache.estimators.closed_loop import ClosedLoop
from dicache.measuring.recording import CallRecord, LongHistory, Recorder, SiteRecord
from dicache.models.identity import identity
from dicache.probes.first_blocks import FirstBlocks
from dicache.probes.raw_latent import RawLatent
from dicache.probes.site_input import SiteInput
from dicache.regressions.logistic import GateSamples
from dicache.regressions.moments import (
    Increments,
    Innovations,
    LowRankIncrements,
    Moments,
    Pair,
    StepMoments,
    Sums,
    WeightCuts,
)
from dicache.sites import Evaluation, Linears, Sites, Spans, Sublayers
from dicache.tensors.token_grid import as_tokens, tokens
from dicache.types import Site

RIDGES = {"gate": 0.1}
"""Where another strength than 0.001 is the default."""


def fit(
    pipe: Any,  # noqa: ANN401
    prompts: Sequence[str],
    *,
    steps: int,
    kind: str = "ridge",
    sites: Sites | None = None,
    longest: int = 3,
    rank: int = 32,
    ridge: float | None = None,
    threshold: float = 0.1,
    depth: int = 1,
    seed: int = 0,
    batch: int = 4,
    progress: bool = True,
    **arguments: Any,  # noqa: ANN401
) -> Fitted:
    """Fit coefficients of one `kind` ("ridge", "low_rank", "affine", "scale_shift", "gate", "innovation") at `sites`,
    usually every block, for gates every sublayer, for an innovation the whole evaluation.

    The pipeline draws every prompt once over `steps` steps, uncached, `batch` prompts at a time; prompt i has seed
    `seed + i`, and equal arguments give equal coefficients. `longest` is the longest gap fitted, in steps; `rank` that
    of low_rank; `ridge` is lambda over the mean square of an input channel's change, 0.001 unless it is given, and of
    gates (`dicache.regressions.logistic`) 0.1. Gates are fitted to errors of holding above `threshold`, relative to the
    site's value; an innovation is that of the stream after the first `depth` blocks. `arguments` go to the pipeline as
    they are (guidance, size); lists and tensors with one entry per prompt are cut like the prompts.

    While it runs, `longest + 1` values of every site are kept, and where inputs are read as many inputs; and per site a
    float64 matrix of its channels (ridge, low_rank), five numbers per channel, step and gap, or a mean input per prompt
    and step (gate). Values must be (R, N,
    C), rows, tokens, channels, or maps, (R, C, H, W).

    Raises ModeError for an option that makes no sense, FittedError for sites that cannot be fitted or where nothing
    could be, UnsupportedModelError for values of another shape or a pipeline with two denoisers; the pipeline is then
    as it was.
    """
    if sites is None:
        sites = {"gate": Sublayers(), "innovation": Evaluation()}.get(kind, Spans(1))
    ridge = RIDGES.get(kind, 1e-3) if ridge is None else ridge
    _validate(kind, prompts, steps, longest, rank, ridge, batch)
    if depth < 1:
        raise ModeError(f"depth is {depth}. Expected how many blocks a probe runs, 1 or more.")
    if kind == "gate" and not (threshold > 0 and sites.inside_denoiser):
        raise ModeError(
            f"threshold={threshold}, sites={sites}: expected an error above 0 and sites inside the denoiser, for "
            "example Sublayers()."
        )
    description = described(sites)
    modules = denoisers(pipe)
    if len(modules) != 1 or isinstance(pipe, nn.Module):
        raise UnsupportedModelError(
            f"fit needs a pipeline with one denoiser, not {type(pipe).__name__} with {', '.join(modules)}."
        )
    (denoiser,) = modules.values()
    model = identity(denoiser)
    with enable(pipe, config=_recording(kind, sites, longest, depth)) as cache, torch.no_grad():
        with tqdm(total=steps * -(-len(prompts) // batch), desc=f"fit {kind}", disable=not progress) as bar:
            new = _sums(kind, steps, longest, rank, ridge, threshold, depth)
            if kind == "low_rank" and isinstance(sites, Linears):
                new = partial(_of_weights, denoiser, rank)
            sums = (_InnovationsBySite if kind == "innovation" else _SumsBySite)(new, steps, longest, bar.update)
            with Recorder(cache).calls(denoiser, sums.add):
                for start in range(0, len(prompts), batch):
                    _draw(pipe, prompts, slice(start, start + batch), steps, seed, arguments)
    about = About(
        kind=kind,
        model=model,
        scheduler=type(pipe.scheduler).__name__,
        sigmas=sums.timetable(),
        guidance=sums.guidance,
        sites=description,
        prompts=len(prompts),
        longest=longest,
        rank=rank,
        ridge=float(ridge),
        version=__version__,
    )
    return Fitted(about, sums.solved())


def _validate(kind: str, prompts: Sequence[str], steps: int, longest: int, rank: int, ridge: float, batch: int) -> None:
    if kind not in KINDS:
        raise ModeError(f"kind is {kind!r}. Expected one of {', '.join(KINDS)}.")
    if isinstance(prompts, str) or not len(prompts):
        raise ModeError(f"prompts is {prompts!r}. Expected a list of one or more prompts.")
    if not 1 <= longest < steps:
        raise ModeError(f"longest is {longest} of {steps} steps. Expected 1 or more, and fewer than the steps.")
    if rank < 1 or batch < 1 or not ridge > 0:
        raise ModeError(f"rank={rank}, batch={batch}, ridge={ridge}: expected 1 or more, 1 or more, and above 0.")


def _recording(kind: str, sites: Sites, longest: int, depth: int) -> Config:
    """Computes everything. Lines that reach as far as they lean on have anchors twice as far back."""
    probe = SiteInput() if sites.inside_denoiser else RawLatent()
    reads = KINDS[kind].reads_feature
    if kind == "innovation":
        return Config(
            Interval(1), ClosedLoop(), (LongHistory(2 * longest + 1, features=True),), FirstBlocks(depth), sites
        )
    history = (LongHistory(longest + 1, features=True),)
    return Config(Interval(1), ClosedLoop(), history, probe if reads else FirstBlocks(depth=0), sites)


def _sums(
    kind: str, steps: int, longest: int, rank: int, ridge: float, threshold: float, depth: int
) -> Callable[[str], Sums]:
    """What a site, by its path, is summed in."""
    made: dict[str, Callable[[str], Sums]] = {
        "ridge": lambda path: Increments(ridge),
        "low_rank": lambda path: LowRankIncrements(ridge, rank),
        "affine": lambda path: Moments(steps, longest),
        "scale_shift": lambda path: StepMoments(steps, longest),
        "gate": lambda path: GateSamples(steps, longest, ridge, threshold),
        "innovation": lambda path: Innovations(ridge, depth, steps),
    }
    return made[kind]


def _of_weights(denoiser: nn.Module, rank: int, path: str) -> Sums:
    """Of a linear layer."""
    layer = denoiser.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    return WeightCuts(layer.weight, rank)


def _draw(pipe: Any, prompts: Sequence[str], rows: slice, steps: int, seed: int, arguments: dict[str, Any]) -> None:  # noqa: ANN401
    def cut(value: Any) -> Any:  # noqa: ANN401
        per_prompt = isinstance(value, list | torch.Tensor) and len(value) == len(prompts)
        return value[rows] if per_prompt else value

    indices = range(len(prompts))[rows]
    pipe(
        [prompts[i] for i in indices],
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed + i) for i in indices],
        output_type="latent",
        **{name: cut(value) for name, value in arguments.items()},
    )


class _SumsBySite:
    """Over all calls."""

    def __init__(self, new: Callable[[str], Sums], steps: int, longest: int, tick: Callable[[], Any]) -> None:
        self.new, self.steps, self.longest, self.tick = new, steps, longest, tick
        self.sums: dict[str, Sums] = {}
        self.sigmas: dict[int, float] = {}
        self.guidance = 1.0

    def add(self, call: CallRecord) -> None:
        if call.step.total != self.steps:
            raise FittedError(f"the scheduler makes {call.step.total} steps where {self.steps} were asked for.")
        if call.first:
            self.tick()
        self.sigmas[call.step.index] = call.step.sigma
        self.guidance = self.guidance if call.guidance is None else call.guidance
        for record in call.sites:
            path = record.site.path
            if path not in self.sums:
                self.sums[path] = self.new(path)
            if call.first or not self.sums[path].first_branch:
                for pair in self._pairs(record, call.step.index):
                    self.sums[path].add(pair)

    def _pairs(self, record: SiteRecord, step: int) -> Iterator[Pair]:
        """The newest value with every one before that is remembered."""
        newest = record.values[0]
        for gap, then in enumerate(record.values[: self.longest + 1]):
            if then.steps_ago != gap:
                return
            if gap > 0:
                inputs = (None if t is None else tokens(t) for t in (newest.feature, then.feature))
                yield _checked(Pair(step, gap, tokens(newest.output), tokens(then.output), *inputs), record.site)

    def timetable(self) -> tuple[float, ...]:
        """Sigmas of all steps. Raises FittedError where the runs began half-way."""
        if set(self.sigmas) != set(range(self.steps)):
            raise FittedError(f"only {len(self.sigmas)} of {self.steps} steps ran. Fit on whole runs.")
        return tuple(self.sigmas[i] for i in range(self.steps))

    def solved(self) -> dict[str, dict[str, torch.Tensor]]:
        coefficients = {path: sums.solved() for path, sums in self.sums.items()}
        broken = [path for path, named in coefficients.items() if not all(t.isfinite().all() for t in named.values())]
        if not coefficients or broken:
            where = f"at {broken[0]}: its values are not finite" if broken else "anywhere: no site gave two values"
            raise FittedError(f"nothing could be fitted {where}. Look at the uncached pictures.")
        return coefficients


class _InnovationsBySite(_SumsBySite):
    """Pairs are of a value and the line through two before it, and so are their inputs."""

    def _pairs(self, record: SiteRecord, step: int) -> Iterator[Pair]:
        newest, path = record.values[0], record.site.path
        records = [
            value for ago, value in enumerate(record.values) if value.steps_ago == ago and value.feature is not None
        ]
        target = Target(self.sigmas[step], None)
        for gap, after in enumerate(records[: self.longest + 1]):
            for before in records[gap + 1 : gap + 1 + self.longest] if gap else ():
                anchors = (after, before)
                sigmas = torch.tensor([[self.sigmas[step - v.steps_ago]] * len(v.output) for v in anchors])
                made = line([v.output for v in anchors], sigmas.double(), target)
                foretold = line([tokens(v.feature) for v in anchors if v.feature is not None], sigmas.double(), target)
                assert newest.feature is not None
                seen = tokens(newest.feature)
                values = [as_tokens(v, seen.shape[1]) if seen.ndim == 3 else None for v in (newest.output, made)]
                if values[0] is None or values[1] is None:
                    raise mismatched(path, newest.output, newest.feature)
                yield Pair(step, gap, values[0], values[1], seen, foretold)


def _checked(pair: Pair, site: Site) -> Pair:
    shapes = [tuple(t.shape) for t in (pair.after, pair.input_after) if t is not None]
    if any(len(shape) != 3 or shape[:2] != shapes[0][:2] for shape in shapes):
        raise UnsupportedModelError(
            f"fit needs values (and inputs) of shape (rows, tokens, channels), or maps of one size, but "
            f"{site.path or 'the denoiser'} has {' and '.join(map(str, shapes))}. Use other sites."
        )
    return pair
