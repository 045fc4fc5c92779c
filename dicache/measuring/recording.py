"""One way to watch a run: whoever measures asks here, and nobody else looks into a session.

    with enable(pipe, config=...) as cache:
        recorder = Recorder(cache)
        with recorder.calls(denoiser, listen):      # told of every denoiser call once it is over
            pipe(...)

A call is told with what every site remembers of its branch, newest first, and how many steps ago each value was
computed. To have more of them than the parts of a configuration read, record with `LongHistory` among them.
"""

import functools
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from dicache.approximators.base import Histories
from dicache.approximators.hold import Reuse
from dicache.cache import Cache
from dicache.hosts.attachment import attached_to
from dicache.runtime.evaluation_site import EvaluationSite
from dicache.runtime.run_state import Run, SiteState
from dicache.tensors.recall import Recall
from dicache.tensors.tree import Tree
from dicache.types import RunFacts, Site, Step


@dataclass(frozen=True)
class LongHistory(Reuse):
    """Holding, with as many values kept as are recorded, and where asked for as many of the probe's features."""

    depth: int
    features: bool = False

    @property
    def needs(self) -> int:  # type: ignore[override]
        return self.depth if self.features else 1

    @property
    def history_depth(self) -> int:
        return self.depth


class Value(NamedTuple):
    """One of those that a site remembers."""

    steps_ago: int
    """0 for what the call itself computed."""
    output: Tensor
    """(R, ...)."""
    feature: Tensor | None
    """(R, ...), where a probe looks."""


class SiteRecord(NamedTuple):
    site: Site
    values: tuple[Value, ...]
    """Newest first, of this run alone."""


class CallRecord(NamedTuple):
    """A denoiser call that is over."""

    step: Step
    first: bool
    """Whether it is the step's first."""
    rows: int
    """Of the step's first call."""
    guidance: float | None
    """Weight of the strongest branch, the mean over samples; None until it was measured."""
    site_macs: tuple[float, ...]
    """Of one row."""
    sites: tuple[SiteRecord, ...]
    """Those that remember anything of this branch."""


class StepRecord(NamedTuple):
    """The step that is going on."""

    step: Step
    latent: Tensor
    """What the denoiser was called with first, (R, ...)."""
    output: Tensor | None
    """What it gave, branches mixed as the pipeline mixes them, (B, ...); None where one was not computed, or how they
    are mixed was not measured yet.
    """
    guidance: float | None


class Recorder:
    """Of the denoiser that ran last under this cache."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.cache.session.sites

    @property
    def unread(self) -> str:
        """Why the steps of the last run could not be read off its scheduler; empty where they could."""
        return self.cache.session.clock.reason

    @property
    def facts(self) -> RunFacts:
        """What the last run showed of itself; nothing before the first."""
        run = self.cache.session.run
        return RunFacts() if run is None else run.facts

    @property
    def step(self) -> StepRecord | None:
        """None between runs."""
        run = self.cache.session.run
        if run is None:
            return None
        return StepRecord(run.step, run.latent, run.guided.truth if run.guided.complete else None, _guidance(run))

    @property
    def mixture(self) -> list[list[float]] | None:
        """The mean weight of every branch in the guided output, by call and chunk; None where that is not known."""
        run = self.cache.session.run
        if run is None or run.guided.mixture is None:
            return None
        return [weights.tolist() for weights in run.guided.mixture.mean(1).split(run.guided.widths)]

    @property
    def booked_macs(self) -> Mapping[Hashable, float]:
        """What one row cost, by what it is booked under (`dicache.tensors.mac_meter`)."""
        return self.cache.session.meter.costs

    @contextmanager
    def calls(self, denoiser: nn.Module, listen: Callable[[CallRecord], None]) -> Iterator[None]:
        """While it lasts, `listen` is told of every call that is over."""
        sigmas: dict[int, float] = {}

        def after(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
            run = self._run()
            sigmas[run.step.index] = run.step.sigma
            listen(self._record(run, sigmas))

        handle = denoiser.register_forward_hook(after)  # comes after the session's own
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def inputs(
        self, denoiser: nn.Module, listen: Callable[[Step, tuple[Tree, ...], Mapping[str, Tree]], None]
    ) -> Iterator[None]:
        """While it lasts, `listen` is told what every call begins with, as it is: copy what is to stay."""

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
            listen(self._run().step, args, kwargs)

        handle = denoiser.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _run(self) -> Run:
        run = self.cache.session.run
        assert run is not None, "gradients are off"
        return run

    def _record(self, run: Run, sigmas: Mapping[int, float]) -> CallRecord:
        *earlier, branch = run.guided.outputs
        macs, rows = tuple(self.cache.session.meter.of_sites(self.sites)), run.latent.shape[0]
        sites = tuple(_site(run, state, branch, sigmas) for state in run.states if branch in state.histories)
        return CallRecord(run.step, not earlier, rows, _guidance(run), macs, sites)


def _guidance(run: Run) -> float | None:
    return None if run.guided.strength is None else float(run.guided.strength.mean())


def _site(run: Run, state: SiteState, branch: str, sigmas: Mapping[int, float]) -> SiteRecord:
    return SiteRecord(state.site, tuple(_values(state.histories[branch], run.step.index, sigmas)))


def _values(histories: Histories, index: int, sigmas: Mapping[int, float]) -> Iterator[Value]:
    """Histories know their values by sigma, which no step of a run shares with a later one."""
    outputs, features = histories.outputs, histories.features.values
    at = index
    for k, (sigma, output) in enumerate(zip(outputs.sigmas[:, 0].tolist(), outputs.values, strict=False)):
        while at >= 0 and sigmas.get(at) != sigma:
            at -= 1
        if at < 0:
            return
        yield Value(index - at, output, features[k] if k < len(features) else None)
        at -= 1


def recalling(denoisers: Collection[nn.Module], recall: Recall) -> None:
    """From now on, until they are disabled, runs take from `recall` what runs of the same samples computed before, and
    put there what they compute. Where two denoisers take turns, or sites lie below the whole evaluation, nothing is
    recalled.
    """
    attachments = [attached_to(denoiser) for denoiser in denoisers]
    strategies = [attachment.session.strategy for attachment in attachments if attachment is not None]
    if len(strategies) == 1 and type(strategies[0]) is EvaluationSite:
        strategies[0].recalling(recall)


def _as_it_is(output: Tensor, latent: Tensor) -> Tensor:
    return output


@contextmanager
def stepping(
    scheduler: Any,  # noqa: ANN401
    left: Callable[[Any, Tensor], object],
    seen: Callable[[Tensor, Tensor], Tensor] = _as_it_is,
) -> Iterator[None]:
    """While it lasts, `left` is told the time and the latent after each step, which the scheduler takes with what
    `seen` makes of its output and latent.
    """
    original, own = scheduler.step, "step" in vars(scheduler)

    @functools.wraps(original)  # pipelines look at its signature, and copies of the scheduler are without it
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        result = original(seen(model_output, sample), timestep, sample, *args, **kwargs)
        left(timestep, result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    scheduler.step = step
    try:
        yield
    finally:
        if own:
            scheduler.step = original
        else:
            del scheduler.step
