"""The presets that use fitted coefficients decide and hand out what their equations say, and keep the laws."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dicache
from dicache import presets
from dicache.approximators.base import Target
from dicache.approximators.fitted.coefficients import Fitted
from dicache.bench.arms.presets import FITTED
from dicache.config import Config
from dicache.controllers.fixed import accumulated
from dicache.controllers.interval import Interval
from dicache.estimators.closed_loop import ClosedLoop
from dicache.probes.site_input import SiteInput
from dicache.sites import Spans, Sublayers
from helpers.fits import STEPS, C, fitted, made
from helpers.published import counted
from helpers.toy import B, N, Poisoned, Toy, played
from helpers.watching import count_macs, watch_histories
from pipelines.tiny import PIPELINES, make_flux

FLUX = PIPELINES["two streams and one (flux)"]
DRAWN = np.random.default_rng(3)


def drawn(*shape: int) -> np.ndarray:
    """Numbers that float32 holds exactly."""
    return DRAWN.normal(size=shape).astype(np.float32).astype(np.float64) / 4


WEIGHT, DOWN, UP = drawn(C, C), drawn(C, 2), drawn(2, C)
GAMMA, BETA = drawn(2, N, C)
CHANGE = np.abs(drawn(N))
A, OFFSET = drawn(2, N, 3, C)


def toy_fitted(kind: str, **arrays: np.ndarray) -> Fitted:
    return made(kind, {name: torch.tensor(array) for name, array in arrays.items()})  # float64, of float32 numbers


def ridge(i, x, p, v, done):
    return v[done[0]] + (p[i] - p[done[0]]) @ WEIGHT


def low_rank(i, x, p, v, done):
    return v[done[0]] + (p[i] - p[done[0]]) @ DOWN @ UP


def scale_shift(i, x, p, v, done):
    return (1 + GAMMA[i]) * v[done[0]] + BETA[i]


def affine(i, x, p, v, done):
    return A[i, i - done[0] - 1] * v[done[0]] + OFFSET[i, i - done[0] - 1]


def moving(i, x, p, v, done):
    return i == 0 or not np.linalg.norm(p[i] - p[i - 1]) / np.linalg.norm(p[i - 1]) < 0.05


def scheduled():
    total = 0.0

    def computes(i, x, p, v, done):
        nonlocal total
        total += CHANGE[i] if i else np.inf
        compute = total > 0.5
        total = 0.0 if compute else total
        return bool(compute) or i < 2

    return computes


LINES = toy_fitted("affine", a=A, b=OFFSET)
METHODS = {
    "fastcache": (presets.fastcache(toy_fitted("ridge", weight=WEIGHT)), lambda: moving, ridge),
    "icc": (presets.icc(toy_fitted("low_rank", down=DOWN, up=UP)), lambda: counted(2, 2), low_rank),
    "block_caching": (
        presets.block_caching(toy_fitted("scale_shift", gamma=GAMMA, beta=BETA, change=CHANGE)),
        scheduled,
        scale_shift,
    ),
    "cachequant": (presets.cachequant(LINES, interval=4), lambda: counted(4, 2), affine),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", METHODS)
def test_a_preset_decides_and_hands_out_what_its_equations_say(name, seed):
    config, rule, guess = METHODS[name]
    toy = Toy.drawn(seed, (5, C))
    if name == "block_caching":
        config = replace(config, controller=config.controller.at(SimpleNamespace(path=""), 1))
    strips, handed = played(config, toy)
    for b in range(B):
        x, p, v = toy.latent[:, b], toy.feature[:, b], toy.output[:, b]
        computes, done, strip = rule(), [], ""
        for i in range(N):
            computed = computes(i, x, p, v, done)
            expected = v[i] if computed else guess(i, x, p, v, done)
            np.testing.assert_allclose(handed[i, b], expected, rtol=1e-6, atol=1e-6)
            done, strip = [i, *done] if computed else done, strip + "=#"[computed]
        assert strips[b] == strip
    assert any("=" in strip for strip in strips)


def test_nothing_is_held_over_more_change_than_the_threshold():
    changes = (9.0, 0.2, 0.2, 0.2, 0.0, 0.6, 0.5, 0.1)
    assert accumulated(changes, 0.5) == {0, 3, 5, 7}
    assert accumulated(changes, 0.0) == {0, 1, 2, 3, 5, 6, 7}


# The laws, on a pipeline.

ENGAGED = {
    "fastcache": lambda: presets.fastcache(fitted("ridge"), 0.4),
    "icc": lambda: presets.icc(fitted("low_rank", Sublayers())),
    "block_caching": lambda: presets.block_caching(fitted("scale_shift"), 1.0),
    "lazydit": lambda: presets.lazydit(fitted("gate", threshold=0.5)),
    "cachequant": lambda: presets.cachequant(fitted("affine"), interval=3),
}


def grids(cache):
    """(steps, B, S)."""
    return torch.stack([record.action for record in cache.trace.records])


@pytest.mark.parametrize("name", ENGAGED)
def test_the_laws_hold_for_every_preset(name):
    config, pipe = ENGAGED[name](), make_flux()
    exact: dict[tuple[str, float], torch.Tensor] = {}
    with dicache.enable(pipe, config=config) as cache:
        alone = [(FLUX.draw(pipe, [sample], STEPS), grids(cache)) for sample in (1, 2, 3)]
        FLUX.draw(pipe, [1, 2, 3], STEPS)  # costs of a batch of three are measured
        session = cache.session
        handles = [
            pipe.transformer.get_submodule(site.modules[0]).register_forward_hook(
                seen(site, session, exact), with_kwargs=True
            )
            for site in session.sites
        ]
        macs, histories_by_site = count_macs(pipe.transformer), watch_histories(pipe.transformer, session)
        together, decided = FLUX.draw(pipe, [1, 2, 3], STEPS), grids(cache)
        del pipe.transformer.forward
        for handle in handles:
            handle.remove()
        run, trace = session.run, cache.trace
        # 2. Batch mates change nothing.
        for row, (image, actions) in enumerate(alone):
            assert torch.equal(decided[:, row], actions[:, 0])
            torch.testing.assert_close(together[row], image[0], rtol=1e-3, atol=1e-3)
        assert 0 < (decided == 0).double().mean() < 1
        # 3. Histories hold what sites gave where they computed, and are never handed out.
        for state, pasts in zip(run.states, histories_by_site, strict=True):
            (histories,) = pasts.values()
            for row in range(3):
                value = exact[state.site.path, histories.outputs.sigmas[0, row].item()][row]
                torch.testing.assert_close(histories.outputs.values[0][row], value, rtol=1e-5, atol=1e-5)
            before = [value.clone() for value in (*histories.outputs.values, *histories.features.values)]
            feature = histories.features.values[0].clone() if histories.features.values else None
            target = Target(run.step.sigma, feature, timetable=run.step.timetable, site=state.site.path)
            config.approximators[0].guess(histories, target).fill_(7.0)
            assert all(
                torch.equal(a, b)
                for a, b in zip(before, (*histories.outputs.values, *histories.features.values), strict=True)
            )
        # 7. What is reported as saved was not executed, and what the maps multiply is.
        assert trace.executed.sum().item() == pytest.approx(sum(macs), rel=1e-6)
        assert cache.report().compute_speedup > 1.0 or name == "icc"
        # 10. Memory is what was planned, the maps with it.
        assert config.approximators[0].own_bytes < trace.cache_bytes <= trace.planned_bytes
    # 4. An unknown prediction computes its row and no other.
    with dicache.enable(pipe, config=replace(config, estimator=Poisoned(config.estimator, 1))) as cache:
        FLUX.draw(pipe, [1, 2, 3], STEPS)
    assert (grids(cache)[:, 1] == 0).all() and torch.equal(grids(cache)[:, 0], decided[:, 0])


def seen(site, session, exact):
    """What a site of one module gave at every step, streams joined as they are remembered."""

    def hook(module, args, kwargs, output):
        outputs = [t for t in (output if isinstance(output, tuple) else (output,)) if isinstance(t, torch.Tensor)]
        inputs = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        if site.added:
            outputs = [
                t - min((x for x in inputs if x.shape == t.shape), key=lambda x: (t - x).norm()) for t in outputs
            ]
        exact[site.path, session.run.step.sigma] = torch.cat(outputs, dim=1).clone()

    return hook


@pytest.mark.parametrize("name", ENGAGED)
def test_with_gradients_everything_computes(name):
    pipe, calls = make_flux(), []
    handle = pipe.transformer.register_forward_pre_hook(lambda m, a, kw: calls.append(kw), with_kwargs=True)
    FLUX.draw(pipe, [1], STEPS)
    handle.remove()
    with dicache.enable(pipe.transformer, config=ENGAGED[name]()) as cache:
        outs = [pipe.transformer(**kwargs)[0] for kwargs in calls]
    assert cache.trace is None and outs[-1].requires_grad
    assert torch.equal(outs[-1], pipe.transformer(**calls[-1])[0])


def test_the_probe_shows_every_site_its_own_input():
    pipe, inputs = make_flux(), {}
    config = Config(Interval(1), ClosedLoop(), presets.fora().approximators, SiteInput(), Spans(1))
    block = pipe.transformer.transformer_blocks[1]
    with dicache.enable(pipe, config=config) as cache:
        block.register_forward_pre_hook(lambda m, a, kw: inputs.update(kw), with_kwargs=True)
        histories_by_site = watch_histories(pipe.transformer, cache.session)
        FLUX.draw(pipe, [1, 2], 4)
        (histories,) = histories_by_site[1].values()
        joined = torch.cat([inputs["encoder_hidden_states"], inputs["hidden_states"]], dim=1)
        assert torch.equal(histories.features.values[0], joined)
        assert torch.equal(histories.features.sigmas[0], histories.outputs.sigmas[0])


def test_the_bench_sweeps_every_fitted_preset():
    swept = [arm.name.removeprefix("preset ") for arm in FITTED]
    assert swept == ["fastcache", "icc", "block_caching", "cachequant", "lazydit", "tokencache"]
