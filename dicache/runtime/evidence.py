"""What is known of a site before it is computed: what the probe saw, the laws of error, what outputs are usually wrong
by, what approximators would put in its place.

The probe looks once the first `depth` blocks of a call have run, and its feature is the call's. One that is `local`
looks at every site instead, where that opens (`dicache.runtime.inner_sites`); one that never looks costs nothing.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.linear import Extrapolate, extrapolate
from dicache.approximators.pricing import growths, weights
from dicache.config import Config
from dicache.estimators.base import Evidence
from dicache.models.family import STREAMS
from dicache.planning.error_law import error_rate, error_rates
from dicache.probes.base import Probe, View
from dicache.probes.first_blocks import FirstBlocks
from dicache.runtime.module_call import ModuleCall, stream
from dicache.runtime.run_state import Call, Run, SiteState
from dicache.tensors.contract import check_own, check_tensor, is_users
from dicache.tensors.mac_meter import Meter
from dicache.tensors.norms import relative_change
from dicache.tensors.tree import Tree, tensors
from dicache.types import Grid, Rows, Step

Laws = tuple[Grid, Grid | None]
"""Growths of approximators' errors, (B, A), and by how much those count, (B, A) or None for evenly."""


def no_evidence(config: Config, run: Run, feature: Tensor | None = None) -> Evidence:
    """Of a site that was never computed, or that nobody had to decide."""
    unknown = torch.full((run.samples,), torch.nan, dtype=torch.float64)
    return Evidence(
        growth=unknown[:, None].expand(-1, len(config.approximators)),
        innovation=unknown,
        innovation_growth=unknown,
        step=run.step,
        latent=run.latent[: run.samples],
        feature=None if feature is None else feature[: run.samples],
        sums=run.sums,
    )


def evidence_of(
    config: Config,
    run: Run,
    meter: Meter,
    histories: Histories | None,
    target: Target,
    laws: Laws | None = None,
) -> Evidence:
    """Of one site, before it is computed in the step's first call; `histories` is that of the branch that is called,
    None where it was never computed; `laws` are growths and weights where they were asked for already.
    """
    nothing, timetable = no_evidence(config, run, target.feature)._replace(site=target.site), run.step.timetable
    if histories is None:
        return nothing

    growth, weighed = laws or _laws(config, run, histories.outputs.times[:, : run.samples])
    evidence = nothing._replace(
        growth=growth,
        timetable=timetable is not None or not run.guided.watched,
        typical=typical_error(run.step),
        guess=_guess_of(config, run, meter, histories, target),
        weights=weighed,
    )
    features = histories.features
    if target.feature is None or len(features.values) < 2 or not config.estimator.reads_innovation:
        return evidence
    expected = extrapolate(features, run.step.sigma)
    moved = relative_change(expected, target.feature, run.sums.of)[: run.samples].double().cpu()
    growth = Extrapolate().growth(features.times[:, : run.samples], run.time)
    return evidence._replace(innovation=moved, innovation_growth=growth)


def evidences_of(
    config: Config, run: Run, meter: Meter, sites: Sequence[tuple[Histories, Target]], laws: Laws
) -> list[Evidence]:
    """The same of several sites of one call, without a probe; their laws, (S * B, A), lie upon each other."""
    growth = laws[0].split(run.samples)
    weighed = [None] * len(sites) if laws[1] is None else laws[1].split(run.samples)
    of_all = evidence_of(config, run, meter, *sites[0], (growth[0], weighed[0]))
    return [
        of_all._replace(
            growth=own, weights=weights, site=target.site, guess=_guess_of(config, run, meter, histories, target)
        )
        for (histories, target), own, weights in zip(sites, growth, weighed, strict=True)
    ]


def _guess_of(
    config: Config, run: Run, meter: Meter, histories: Histories, target: Target
) -> Callable[[int], Tensor | None]:
    """As `dicache.estimators.base.Evidence.guess`."""

    def guess(index: int) -> Tensor | None:
        guess = guesses(config, meter, histories, target, [index]).get(index)
        return None if guess is None else guess[: run.samples]

    return guess


def _laws(config: Config, run: Run, times: Tensor) -> Laws:
    # New noise makes outputs walk at random, whatever fills in.
    walks = run.step.timetable is not None and run.step.timetable.random
    growth = growths(config.approximators, times, run.time, random=walks)
    return growth, weights(config.approximators, times, run.time, guidance_of(run))


def guidance_of(run: Run) -> Rows:
    """Its scale, (B,), 1 without."""
    return torch.ones(run.samples, dtype=torch.float64) if run.guided.strength is None else run.guided.strength


def typical_error(step: Step) -> float | None:
    """What outputs are usually wrong by, by the law."""
    if step.half_log_snr is None:
        return None
    if step.timetable is None:
        return error_rate(step.half_log_snr) * step.gain
    return error_rates(step.timetable)[step.index]


def target_at(run: Run, state: SiteState, feature: Tensor | None = None) -> Target:
    """What guesses of a site inside the denoiser are for."""
    step = run.step
    return Target(step.sigma, feature, timetable=step.timetable, time=run.time, site=state.site.path, sums=run.sums)


def foresee(config: Config, state: SiteState, evidence: Evidence, histories: Histories | None, target: Target) -> None:
    """All that this call's decision and guesses hold against each other, in one exchange between the ranks."""
    if not evidence.sums.shared or histories is None:
        return
    # What guesses hold against each other is asked for here, so that it need not be when they are made.
    enough = [a for a in config.approximators if len(histories.outputs.values) >= a.needs]
    pairs = (pair for approximator in enough for pair in approximator.pairs(histories, target))
    evidence.sums.foresee([*config.estimator.pairs(evidence, state.estimator), *pairs])


def guesses(
    config: Config, meter: Meter, histories: Histories, target: Target, indices: Iterable[int]
) -> dict[int, Tensor]:
    """What these approximators guess, (R, ...) each, where the history is long enough; their matrix products booked."""
    enough = [i for i in indices if len(histories.outputs.values) >= config.approximators[i].needs]
    if target.sums.shared:
        target.sums.foresee(pair for i in enough for pair in config.approximators[i].pairs(histories, target))
    return {i: _guess(config.approximators[i], meter, histories, target) for i in enough}


def _guess(approximator: Approximator, meter: Meter, histories: Histories, target: Target) -> Tensor:
    def guess() -> Tensor:
        if not approximator.multiplies:
            return approximator.guess(histories, target)
        with torch.autocast(values[0].device.type, enabled=False):  # the user's is for the model
            return approximator.guess(histories, target)

    booked, values = guess_cost(approximator, target.site), histories.outputs.values
    guessed = meter.added(booked, guess) if approximator.multiplies else guess()
    if is_users(type(approximator)):
        said_by = f"{type(approximator).__name__}.guess"
        check_tensor(guessed, values[0].shape, said_by, "what stands in the place of a value, of its shape")
        check_own(guessed, values, said_by)
    return guessed


def guess_cost(approximator: Approximator, site: str) -> Hashable:
    """What the guesses of one approximator at one site are booked under."""
    return type(approximator).__name__, id(approximator), site


# What the probe sees.


def feature_of(probe: Probe, view: View) -> Tensor | None:
    """What the probe sees, (R, ...). Raises PartError for anything else."""
    feature, said_by = probe(view), f"{type(probe).__name__}.__call__"
    if feature is not None:
        rows = len(view.latent) if len(view.before) == len(view.latent) else -1  # frames may be folded into the batch
        check_tensor(feature, (rows, -1), said_by, "a feature of each row, or None where there is none")
        check_own(feature, (view.latent, view.before, view.after), said_by)
    return feature


class Probing:
    probe: Probe
    meter: Meter

    def __init__(self, config: Config, meter: Meter) -> None:
        self.probe, self.meter = config.probe, meter
        self.looks: bool = not config.probe.local and config.probe != FirstBlocks(depth=0)

    def before(self, call: Call, module_call: ModuleCall) -> None:
        """A block is about to run."""
        if call.position:
            return
        before = _entering(module_call)
        called = (module_call.module, module_call.args, module_call.kwargs)
        call.view = View(call.latent, before, before, *called, call.run.step)
        if self.probe.depth == 0:
            self._look(call, call.view)

    def after(self, call: Call, output: Tree) -> None:
        """A block has run."""
        if call.position == self.probe.depth and call.view is not None:
            self._look(call, call.view._replace(after=_leaving(output, call.view.before)))

    def _look(self, call: Call, view: View) -> None:
        """What the probe computes of its own is counted."""
        started, probe = time.perf_counter(), self.probe
        call.feature, call.view = self.meter.added("the probe", lambda: feature_of(probe, view)), None
        call.run.overhead += time.perf_counter() - started


def _entering(module_call: ModuleCall) -> Tensor:
    """The picture's stream as a block takes it: a map, (R, C, H, W), if that is what it continues, else the largest
    tensor.
    """
    args, kwargs = module_call.args, module_call.kwargs
    named = kwargs.get(STREAMS[0], args[0] if args else None)
    return named if isinstance(named, Tensor) and named.ndim > 3 else stream((args, kwargs))


def _leaving(output: Tree, before: Tensor) -> Tensor:
    """The stream as blocks give it. A down block of a UNet also gives what it hands ahead: the last map at its own
    resolution is what its layers made, before it is sampled down.
    """
    maps = [t for t in tensors(output) if t.ndim == before.ndim > 3 and t.shape[2:] == before.shape[2:]]
    return maps[-1] if maps else stream(output)
