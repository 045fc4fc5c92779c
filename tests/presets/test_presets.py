"""The published methods: they decide and hand out what their equations say, and the laws hold for all of them."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from laws.test_laws import STEPS, decisions
from numpy.polynomial import hermite

import dicache
from dicache import presets
from dicache.approximators.base import Histories, Target
from dicache.bench.arms.arm import coarse
from dicache.bench.arms.presets import FITTED, PRESETS
from dicache.bench.showing import show, tables
from dicache.config import Config
from dicache.presets.parts.codebook import FAST
from dicache.presets.parts.sensitivities import SensitivityTable
from pipelines.sweeps import facts
from pipelines.tiny import PIPELINES, count_macs, make_flux, watch_pasts
from pipelines.toy import SIGMAS, B, N, Poisoned, Toy, played

RATIOS = tuple(1 + 0.12 * math.sin(3 * i) for i in range(N))
TABLE = SensitivityTable(tuple(0.5 + 0.1 * math.cos(i) for i in range(N)), tuple(0.3 + 0.01 * i for i in range(N)))


# The references: one sample, from the equations of specs/online.md, in step counts. Each yields the step's decision,
# is told nothing else, and keeps the computed steps in `done`, newest first.


def rel(target, then):
    return np.abs(target - then).sum() / np.abs(then).sum()


def summed(signal, threshold, forced) -> Callable[..., bool]:
    """Compute where the sum since the last computed step reaches the threshold."""
    total = 0.0

    def computes(i, x, p, v, done):
        nonlocal total
        total += signal(i, x, p, v, done) if i else math.inf
        compute = forced(i) or not total < threshold
        total = 0.0 if compute else total
        return compute

    return computes


def counted(interval, first):
    return lambda i, x, p, v, done: i < first or (i - first + 1) % interval == 0


def easy(i, x, p, v, done):
    if len(done) < 2:
        return math.inf
    a, b = done[:2]
    k = np.abs(v[a] - v[b]).mean() / np.abs(x[a] - x[b]).mean()
    return k * np.abs(x[i] - x[i - 1]).mean() / np.abs(v[a]).mean()


def magnitudes(threshold, longest, warm):
    rho, total, gap = 1.0, 0.0, 0

    def computes(i, x, p, v, done):
        nonlocal rho, total, gap
        rho *= RATIOS[i]
        total, gap = total + abs(1 - rho), gap + 1
        skip = i >= warm and total <= threshold and gap <= longest
        rho, total, gap = (rho, total, gap) if skip else (1.0, 0.0, 0)
        return not skip

    return computes


def sensitive(threshold, early, longest):
    def computes(i, x, p, v, done):
        if not done or i - done[0] > longest:
            return True
        a = done[0]
        size = math.sqrt(x[i].size)
        score = TABLE.latent[a] * np.linalg.norm(x[i] - x[a]) + size * TABLE.time[a] * abs(SIGMAS[i] - SIGMAS[a])
        return not score < size * (early if i < round(0.2 * N) else threshold)

    return computes


def codebook(i, x, p, v, done):
    if len(done) < 2 or i >= N - 2:
        return True
    a, b = done[:2]
    c = rel(v[a], v[b]) / (a - b)
    return i - a >= next((gap for bound, gap in FAST if c < bound), 1)


def differences(v, done, order):
    """D_0..D_order at the newest computed step, nested, in step counts."""
    level, newest = [v[a] for a in done[: order + 1]], []
    while level:
        newest.append(level[0])
        level = [(level[j] - level[j + 1]) / (done[j] - done[j + 1]) for j in range(len(level) - 1)]
    return newest


def hold(i, x, p, v, done):
    return v[done[0]]


def hold_residual(i, x, p, v, done):
    return x[i] + v[done[0]] - x[done[0]]


def taylor(i, x, p, v, done):
    return sum(d * (i - done[0]) ** j / math.factorial(j) for j, d in enumerate(differences(v, done, 2)))


def hicache(i, x, p, v, done):
    bases = [0.5**j * hermite.hermval(0.5 * (i - done[0]), [0] * j + [1]) for j in range(3)]
    found = differences(v, done, 2)
    return found[0] + sum(found[j] * bases[j] / math.factorial(j) for j in (1, 2))


def foca(i, x, p, v, done):
    a, b, c = done[:3]
    bend, slope, _ = np.polyfit([a, b, c], [v[a], v[b], v[c]], 2)
    return v[a] + (i - a) / 2 * (2 * bend * a + slope + (v[a] - v[b]) / (a - b))


def aligned(i, x, p, v, done):
    a, b = done[:2]
    gamma = np.clip(np.abs(p[i] - p[b]).mean() / np.abs(p[a] - p[b]).mean(), 1, 1.5)
    return v[b] + gamma * (v[a] - v[b])


def against_computed(threshold, warm=0):
    return lambda i, x, p, v, done: i < max(1, warm) or bool(rel(p[i], p[done[0]]) > threshold)


def previous(i, x, p, v, done):
    return rel(p[i], p[i - 1])


def polynomial(i, x, p, v, done):
    return max(0.0, np.polyval(presets.TEACACHE_FLUX, previous(i, x, p, v, done)))


def ends(i):
    return i in (0, N - 1)


def warm(i):
    return i < math.ceil(0.2 * N) or i == N - 1


METHODS: dict[str, tuple[Config, Callable[[], Callable[..., bool]], Callable[..., Any]]] = {
    "fora": (presets.fora(), lambda: counted(3, 2), hold),
    "taylorseer": (presets.taylorseer(), lambda: counted(6, 4), taylor),
    "hicache": (presets.hicache(), lambda: counted(6, 4), hicache),
    "foca": (presets.foca(), lambda: counted(6, 4), foca),
    "teacache": (presets.teacache(), lambda: summed(polynomial, 0.6, ends), hold),
    "seacache": (presets.seacache(), lambda: summed(previous, 0.3, ends), hold),
    "first_block_cache": (presets.first_block_cache(), lambda: against_computed(0.05), hold),
    "dbcache": (presets.dbcache(), lambda: against_computed(0.08, math.ceil(0.16 * N)), hold),
    "dicache": (presets.dicache(), lambda: summed(previous, 0.4, warm), aligned),
    "easycache": (presets.easycache(), lambda: summed(easy, 0.05, warm), hold_residual),
    "magcache": (presets.magcache(RATIOS), lambda: magnitudes(0.24, 5, math.ceil(0.1 * N)), hold),
    "sencache": (presets.sencache(TABLE), lambda: sensitive(0.07, 0.005, 10), hold),
    "adacache": (presets.adacache(), lambda: codebook, hold),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", METHODS)
def test_a_preset_decides_and_hands_out_what_its_equations_say(name, seed):
    config, rule, guess = METHODS[name]
    toy = Toy.drawn(seed)
    if name == "easycache":
        toy.feature = toy.latent  # its probe
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


LOOKING = [name for name in METHODS if name not in ("fora", "taylorseer", "hicache", "foca", "magcache")]


@given(row=st.integers(0, B - 1), begin=st.integers(3, N - 4), seed=st.integers(0, 9))
@pytest.mark.parametrize("name", LOOKING)
def test_what_is_not_a_number_computes_its_row_only(name, row, begin, seed):
    toy = Toy.drawn(seed)
    usual, _ = played(METHODS[name][0], toy)
    for shown in (toy.latent, toy.feature, toy.output):
        shown[begin:, row] = np.nan
    strips, _ = played(METHODS[name][0], toy)
    since = begin if name != "adacache" else max(strips[row].find("#", begin), begin)  # it looks at computed steps
    assert set(strips[row][since:]) == {"#"}
    assert [s for b, s in enumerate(strips) if b != row] == [s for b, s in enumerate(usual) if b != row]


# On a pipeline: thresholds at which a tiny model with random weights engages.

FLUX = PIPELINES["two streams and one (flux)"]
ENGAGED = {
    "fora": presets.fora(),
    "taylorseer": presets.taylorseer(3),
    "hicache": presets.hicache(3),
    "foca": presets.foca(3),
    "teacache": presets.teacache(),
    "seacache": presets.seacache(1.0),
    "first_block_cache": presets.first_block_cache(0.3),
    "dbcache": presets.dbcache(0.3, front=2),
    "dicache": presets.dicache(),
    "easycache": presets.easycache(1.0),
    "magcache": presets.magcache(RATIOS),
    "sencache": presets.sencache(TABLE, threshold=0.4, early=0.2),
    "adacache": presets.adacache(),
}


@pytest.mark.parametrize("name", ENGAGED)
def test_the_laws_hold_for_every_preset(name):
    config, pipe = ENGAGED[name], make_flux()
    plain = FLUX.draw(make_flux(), [1, 2, 3], STEPS)
    exact: dict[float, torch.Tensor] = {}
    with dicache.enable(pipe, config=config) as cache:
        alone = [(FLUX.draw(pipe, [sample], STEPS), decisions(cache)[0]) for sample in (1, 2, 3)]
        session = cache._session

        def seen(module, args, output):
            exact[session.run.step.sigma] = output.clone()

        handle = pipe.transformer.proj_out.register_forward_hook(seen)
        held = watch_pasts(pipe.transformer, session)
        FLUX.draw(pipe, [1, 2, 3], STEPS)  # costs of a batch of three are measured
        macs = count_macs(pipe.transformer)
        together, strips = FLUX.draw(pipe, [1, 2, 3], STEPS), decisions(cache)
        handle.remove()
        run, trace = session.run, cache.trace

        # 2. Batch mates change nothing.
        assert strips == [strip for _, strip in alone]
        torch.testing.assert_close(together, torch.cat([image for image, _ in alone]), rtol=1e-3, atol=1e-3)
        # 3. The history holds what the denoiser gave at steps that computed, and is never handed out.
        (histories,) = held[0].values()
        for k, value in enumerate(histories.outputs.values):
            for row in range(3):
                sigma = histories.outputs.sigmas[k, row].item()
                assert torch.equal(value[row], exact[sigma][row])
        for approximator in config.approximators:
            guess = approximator.guess(histories, Target(run.step.sigma, last_feature(histories), run.latent))
            kept = [value.clone() for value in histories.outputs.values]
            guess.fill_(7.0)
            assert all(torch.equal(a, b) for a, b in zip(kept, histories.outputs.values, strict=True))
        # 7. What is reported as saved was not executed.
        assert trace.executed.sum().item() == pytest.approx(sum(macs), rel=1e-6)
        assert cache.report().compute_speedup > 1.0
        # 10. Memory is what the configuration says: its depth times one output, and one feature where it looks; the
        # estimator keeps at most a feature, or three latents, beside small numbers on the host.
        feature = histories.features.values[0].nbytes if histories.features.values else 0
        held = config.depth * (plain.nbytes + feature)
        assert len(histories.outputs.values) * (plain.nbytes + feature) <= trace.cache_bytes
        assert trace.cache_bytes <= held + max(feature, 3 * plain.nbytes) + 1000
    # 4. An unknown prediction computes its row and no other.
    with dicache.enable(pipe, config=replace(config, estimator=Poisoned(config.estimator, 1))) as cache:
        FLUX.draw(pipe, [1, 2, 3], STEPS)
    first, poisoned, third = decisions(cache)
    assert set(poisoned) == {"#"} and [first, third] == [strips[0], strips[2]]


def last_feature(histories: Histories) -> torch.Tensor | None:
    return histories.features.values[0] + 0.1 if histories.features.values else None


# The bench shows presets, and counts them as nobody's peers.


def test_the_bench_shows_presets_like_peers_and_does_not_count_them_as_such(tmp_path):
    names = [arm.name.removeprefix("preset ") for arm in PRESETS]
    assert {*METHODS, *(arm.name.removeprefix("preset ") for arm in FITTED)} <= set(names)
    assert all(arm.values[0] in replaced.values for arm, replaced in zip(PRESETS, coarse(PRESETS), strict=True))
    ours, preset = [
        ("dicache", "dicache", [(0.9, 0.005), (0.5, 0.05)]),
        ("preset x", "preset", [(0.9, 0.001), (0.4, 0.2)]),
    ]
    found = facts(ours, preset)
    show.plot(found, tmp_path / "plot.png")
    assert "preset x" in show.text(found) and (tmp_path / "plot.png").is_file()
    assert "preset x" not in str(tables.verdict_table(found)) + str(tables.summary_table([found]))
