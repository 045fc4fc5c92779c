"""The published methods: they decide and hand out what their equations say, and the laws hold for all of them."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

import dicache
from dicache import presets
from dicache.approximators.base import Histories, Target
from dicache.bench.arms.arm import coarse
from dicache.bench.arms.presets import FITTED, PRESETS
from dicache.bench.showing import show, tables
from helpers.published import METHODS, RATIOS, TABLE
from helpers.sweeps import facts
from helpers.toy import B, N, Poisoned, Toy, played
from helpers.watching import count_macs, strips, watch_histories
from pipelines.tiny import PIPELINES, STEPS, make_flux


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
        alone = [(FLUX.draw(pipe, [sample], STEPS), strips(cache)[0]) for sample in (1, 2, 3)]
        session = cache.session

        def seen(module, args, output):
            exact[session.run.step.sigma] = output.clone()

        handle = pipe.transformer.proj_out.register_forward_hook(seen)
        latest = watch_histories(pipe.transformer, session)
        FLUX.draw(pipe, [1, 2, 3], STEPS)  # costs of a batch of three are measured
        macs = count_macs(pipe.transformer)
        together, decided = FLUX.draw(pipe, [1, 2, 3], STEPS), strips(cache)
        handle.remove()
        run, trace = session.run, cache.trace

        # 2. Batch mates change nothing.
        assert decided == [strip for _, strip in alone]
        torch.testing.assert_close(together, torch.cat([image for image, _ in alone]), rtol=1e-3, atol=1e-3)
        # 3. The history holds what the denoiser gave at steps that computed, and is never handed out.
        (histories,) = latest[0].values()
        for k, value in enumerate(histories.outputs.values):
            for row in range(3):
                sigma = histories.outputs.sigmas[k, row].item()
                assert torch.equal(value[row], exact[sigma][row])
        for approximator in config.approximators:
            guess = approximator.guess(histories, Target(run.step.sigma, last_feature(histories), run.latent))
            before = [value.clone() for value in histories.outputs.values]
            guess.fill_(7.0)
            assert all(torch.equal(a, b) for a, b in zip(before, histories.outputs.values, strict=True))
        # 7. What is reported as saved was not executed.
        assert trace.executed.sum().item() == pytest.approx(sum(macs), rel=1e-6)
        assert cache.report().compute_speedup > 1.0
        # 10. Memory is what the configuration says: its depth times one output, and one feature where it looks; the
        # estimator keeps at most a feature, or three latents, beside small numbers on the host.
        feature = histories.features.values[0].nbytes if histories.features.values else 0
        remembered = config.depth * (plain.nbytes + feature)
        assert len(histories.outputs.values) * (plain.nbytes + feature) <= trace.cache_bytes
        assert trace.cache_bytes <= remembered + max(feature, 3 * plain.nbytes) + 1000
    # 4. An unknown prediction computes its row and no other.
    with dicache.enable(pipe, config=replace(config, estimator=Poisoned(config.estimator, 1))) as cache:
        FLUX.draw(pipe, [1, 2, 3], STEPS)
    first, poisoned, third = strips(cache)
    assert set(poisoned) == {"#"} and [first, third] == [decided[0], decided[2]]


def last_feature(histories: Histories) -> torch.Tensor | None:
    return histories.features.values[0] + 0.1 if histories.features.values else None


# The bench shows presets, and holds dicache against them as against anybody.


def test_the_bench_shows_presets_like_peers_and_counts_them_among_rivals(tmp_path):
    names = [arm.name.removeprefix("preset ") for arm in PRESETS]
    assert {*METHODS, *(arm.name.removeprefix("preset ") for arm in FITTED)} <= set(names)
    assert all(arm.values[0] in replaced.values for arm, replaced in zip(PRESETS, coarse(PRESETS), strict=True))
    ours, preset = [
        ("dicache", "dicache", [(0.9, 0.005), (0.5, 0.05)]),
        ("preset x", "preset", [(0.9, 0.001), (0.4, 0.2)]),
    ]
    sweep = facts(ours, preset)
    show.plot(sweep, tmp_path / "plot.png")
    assert "preset x" in show.text(sweep) and (tmp_path / "plot.png").is_file()
    assert "preset x" in str(tables.verdict_table(sweep)) and "preset x" in str(tables.summary_table([sweep]))
