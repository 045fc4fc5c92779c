"""The published methods that skip blocks, sublayers or guidance branches: on a toy denoiser they decide and give what
their equations say, and the laws hold for them.
"""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dicache
from dicache import presets
from dicache.approximators.base import Histories, Target
from dicache.bench.arms.presets import PRESETS
from dicache.config import Config
from dicache.controllers.budgeted import Budgeted
from dicache.controllers.with_gains import WithGains
from dicache.estimators.closed_loop import ClosedLoop
from dicache.hosts.attachment import Attachment
from dicache.planning.gains import Gains
from dicache.sites import Branches, Drafted, Sublayers
from dicache.tensors.block_output import value_of
from dicache.tensors.tree import map_tensors, tensors
from dicache.types import Action, Reason
from helpers.published import METHODS
from helpers.published_blocks import INNER, B, Clock, Toy, drawn, guided
from helpers.toy import SIGMAS, Poisoned
from helpers.watching import count_macs, watch_histories
from pipelines.tiny import PIPELINES, STEPS, make_flux


def cached(config: Config, toy: Toy, seed: int) -> tuple[list[Tensor], Tensor, Attachment]:
    """The latents, and which steps, samples and sites computed, (N, B, S)."""
    attachment = Attachment(toy, config, Clock())

    def velocity(i: int, x: Tensor, texts: list[Tensor]) -> Tensor:
        time = torch.tensor(SIGMAS[i], dtype=torch.float64)
        outputs = [toy(x, time, text) for text in texts[: 2 if isinstance(config.sites, Branches) else 1]]
        return guided(*outputs) if len(outputs) == 2 else outputs[0]

    way = drawn(velocity, seed, slice(None))
    computed = torch.stack([record.action == Action.COMPUTE for record in attachment.session.trace().records])
    attachment.detach()
    return way, computed, attachment


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", INNER)
@torch.no_grad()
def test_a_preset_decides_and_gives_what_its_equations_say(name, seed):
    config, make = INNER[name]
    toy = Toy(seed).double()
    way, computed, _ = cached(config, toy, seed)
    for b in range(B):
        reference = make(toy)
        expected = drawn(reference, seed, slice(b, b + 1))
        strips = torch.tensor(reference.strips)
        assert torch.equal(computed[:, b, : strips.shape[1]], strips)
        for x, y in zip(way, expected, strict=True):
            torch.testing.assert_close(x[b : b + 1], y, rtol=1e-6, atol=1e-6)
    assert not computed.all()


# On a pipeline: thresholds at which a tiny model with random weights engages.

FLUX, GUIDED = PIPELINES["two streams and one (flux)"], PIPELINES["sequential guidance with named branches (flux)"]
ENGAGED = {name: config for name, (config, _) in INNER.items()} | {
    "taylorseer sublayers": presets.taylorseer(3, sites=Sublayers()),
    "racer": presets.racer(0.9, kappa=0.9, interval=3),
    "speca": presets.speca(3, threshold=0.6, decay=0.9),
    "bwcache": presets.bwcache(0.5),
}


class Watched:
    """What every site was given and gave, by its time, seen from outside."""

    def __init__(self, model: nn.Module, cache: dicache.Cache) -> None:
        self.session: Any = cache.session
        self.arguments: dict[tuple[float, str], list[Tensor]] = {}
        self.gave: dict[tuple[float, str], Any] = {}
        self.outputs: dict[float, list[Tensor]] = {}
        self.inner = self.session.config.sites.inside_denoiser
        sites = self.session.sites if self.inner else []
        self.handles = [
            handle
            for site in sites
            for handle in (
                model.get_submodule(site.modules[0]).register_forward_pre_hook(
                    self.before(site.path), with_kwargs=True
                ),
                model.get_submodule(site.modules[-1]).register_forward_hook(self.after(site.path)),
            )
        ]
        self.handles.append(model.proj_out.register_forward_hook(self.evaluation))

    def before(self, path):
        def hook(module, args, kwargs):
            copies = [t.clone() for t in tensors((args, kwargs))]
            self.arguments[self.session.run.step.sigma, path] = copies

        return hook

    def after(self, path):
        def hook(module, args, output):
            self.gave[self.session.run.step.sigma, path] = map_tensors(Tensor.clone, output)

        return hook

    def evaluation(self, module, args, output):
        self.outputs.setdefault(self.session.run.step.sigma, []).append(output.clone())

    def value(self, sigma: float, site: Any) -> Tensor:
        """Of a site at a step: what it gave or added, or what the branches differ by."""
        if not self.inner:
            strongest, *rest = self.outputs[sigma]
            return rest[0] - strongest if rest else strongest
        (layout,) = {layout for (_, path), layout in self.session.strategy.layouts.items() if path == site.path}
        return value_of(layout, self.arguments[sigma, site.path], self.gave[sigma, site.path])


@pytest.mark.parametrize("name", ENGAGED)
def test_the_laws_hold_for_every_preset(name):
    config, pipe = ENGAGED[name], make_flux()
    tiny = GUIDED if isinstance(config.sites, Branches) else FLUX

    def actions(cache: dicache.Cache) -> Tensor:
        return torch.stack([record.action for record in cache.trace.records], dim=1)

    with dicache.enable(pipe, config=config) as cache:
        alone, alone_decided = tiny.draw(pipe, [2], STEPS), actions(cache)
        tiny.draw(pipe, [1, 2, 3], STEPS)  # costs of a batch of three are measured
        watched = Watched(pipe.transformer, cache)
        macs, histories_by_site = count_macs(pipe.transformer), watch_histories(pipe.transformer, cache.session)
        together, decided, trace = tiny.draw(pipe, [1, 2, 3], STEPS), actions(cache), cache.trace
        for handle in watched.handles:
            handle.remove()
        # 2. Batch mates change nothing.
        assert torch.equal(decided[1:2], alone_decided)
        torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-3)
        # 3. The histories hold what every site gave at steps that computed, and are never handed out.
        run, seen = watched.session.run, 0
        for state, pasts in zip(run.states, histories_by_site, strict=True):
            for histories in pasts.values():
                for (k, value), row in product(enumerate(histories.outputs.values), range(3)):
                    sigma = histories.outputs.sigmas[k, row].item()
                    if not math.isnan(sigma):
                        assert torch.equal(value[row], watched.value(sigma, state.site)[row])
                        seen += 1
                assert_never_handed_out(
                    config, histories, Target(run.step.sigma, None, timetable=run.step.timetable, difference=True)
                )
        assert seen >= 3 * len(run.states)
        # 7. What is reported as saved was not executed.
        assert trace.executed.sum().item() == pytest.approx(sum(macs), rel=1e-6)
        assert cache.report().compute_speedup > 1.0
        # 10. Memory is what was planned.
        assert 0 < trace.cache_bytes <= trace.planned_bytes
    # 4. An unknown prediction computes its row and no other; what is decided for a step is what that step does.
    with dicache.enable(pipe, config=replace(config, estimator=Poisoned(config.estimator, 1))) as cache:
        tiny.draw(pipe, [1, 2, 3], STEPS)
    poisoned = actions(cache)
    assert (poisoned[1] == Action.COMPUTE).all() and torch.equal(poisoned[[0, 2]], decided[[0, 2]])


def assert_never_handed_out(config: Config, histories: Histories, target: Target) -> None:
    before = [value.clone() for value in histories.outputs.values]
    for approximator in config.approximators:
        approximator.guess(histories, target).fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(before, histories.outputs.values, strict=True))


def test_a_draft_that_was_rejected_is_not_charged():
    """Its rule decides again: a budget that rejections would use up lets as many drafts begin as without them."""
    pipe = make_flux()
    config = Config(WithGains(Budgeted(0.3), Gains()), ClosedLoop(), sites=Drafted(threshold=0.0, floor=0.0))
    with dicache.enable(pipe, config=config) as cache:
        FLUX.draw(pipe, [1, 2], STEPS)
    records = cache.trace.records
    rejected = torch.stack([record.reason[:, 0] == Reason.REJECTED for record in records])
    assert rejected.sum() > 6 and all(not record.spent.any() for record in records)


def test_every_preset_that_skips_parts_is_in_the_bench():
    assert set(INNER) | set(METHODS) <= {arm.name.removeprefix("preset ") for arm in PRESETS}
