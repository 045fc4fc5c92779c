"""The published methods: they decide and hand out what their equations say, and the laws hold for all of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from numpy.polynomial import hermite
from test_bench import facts
from test_laws import STEPS, decisions

import dicache
from dicache import history, presets
from dicache.approximators.alignment import Align
from dicache.approximators.base import Now, Past
from dicache.approximators.foca import FoCa
from dicache.approximators.least_squares import LeastSquaresAlign
from dicache.approximators.newton import Newton
from dicache.approximators.taylor import Taylor
from dicache.bench import show, tables
from dicache.bench.arms import coarse
from dicache.bench.presets import FITTED, PRESETS
from dicache.config import Config
from dicache.controllers.threshold import Threshold
from dicache.errors import ModeError, UnsupportedModelError
from dicache.estimators.base import Estimator, Evidence
from dicache.estimators.codebook import FAST
from dicache.estimators.disagreement import Disagreement
from dicache.estimators.isotonic import Isotonic, isotonic
from dicache.estimators.magnitude_ratios import measure_ratios, nearest
from dicache.estimators.polynomial import Polynomial
from dicache.estimators.relative_change import RelativeChange
from dicache.estimators.sensitivities import Table, measure_sensitivities
from dicache.norms import relative_change
from dicache.probes.base import Probe, View
from dicache.probes.first_blocks import FirstBlocks
from dicache.probes.first_blocks_residual import FirstBlocksResidual
from dicache.probes.modulated_input import ModulatedInput
from dicache.probes.raw_latent import RawLatent
from dicache.probes.sampled_tokens import SampledTokens
from dicache.probes.spectrum_filtered import SpectrumFiltered, gains
from dicache.types import Action, Course, Quote, Step
from tiny import PIPELINES, count_macs, make_flux

N, B = 24, 3
SIGMAS = [1 - i / N for i in range(N)]
COURSE = Course(tuple(SIGMAS), (1 / N,) * N, tuple(-s for s in SIGMAS), 0)
RATIOS = tuple(1 + 0.12 * math.sin(3 * i) for i in range(N))
TABLE = Table(tuple(0.5 + 0.1 * math.cos(i) for i in range(N)), tuple(0.3 + 0.01 * i for i in range(N)))


@dataclass
class Toy:
    """What three samples show at every step, (N, B, ...): random walks of very different pace."""

    latent: np.ndarray
    feature: np.ndarray
    output: np.ndarray

    @staticmethod
    def drawn(seed: int, shape: tuple[int, ...] = (4,)) -> "Toy":
        generator = np.random.default_rng(seed)
        pace = np.array([0.02, 0.1, 0.3]).reshape(B, *[1] * len(shape))

        def walk():
            return 2 + np.cumsum(pace * generator.standard_normal((N, B, *shape)), axis=0)

        return Toy(walk(), walk(), walk())


def step(i: int) -> Step:
    return Step(i, N, SIGMAS[i], 1 / N, (i + 1) / N, (1.0, 0.0), course=COURSE)


def played(config: Config, toy: Toy) -> tuple[list[str], np.ndarray]:
    """Estimator, controller and approximator of a preset over the toy: strips (# computed), and what is handed out."""
    (approximator,), estimator, controller = config.approximators, config.estimator, config.controller
    learned, account = estimator.init(B, 1), controller.init(B)
    past, strips, handed = Past(*(history.empty(config.depth, B) for _ in range(3))), [""] * B, []
    unknown = torch.full((B,), torch.nan, dtype=torch.float64)
    for i in range(N):
        latent, feature, output = (torch.tensor(x[i]) for x in (toy.latent, toy.feature, toy.output))
        growth = approximator.growth(past.outputs.sigmas, SIGMAS[i])
        evidence = Evidence(growth[:, None], unknown, unknown, 1.0, step(i), latent, feature)
        known = past.outputs.sigmas[approximator.needs - 1].isfinite()
        error = torch.where(known, estimator.predict(evidence, learned).min(1).values, torch.inf)
        decision, account = controller.decide(Quote(error, error, torch.ones(B)), step(i), account)
        computed = decision.action[:, 0] == Action.COMPUTE
        enough = len(past.outputs.values) >= approximator.needs
        guess = approximator.guess(past, Now(SIGMAS[i], feature, latent, course=COURSE)) if enough else output
        handed.append(torch.where(computed.view(B, *[1] * (output.ndim - 1)), output, guess).numpy())
        realised = torch.where(known, relative_change(guess, output), torch.nan)
        truth = output if bool(computed.any()) else None
        learned = estimator.observe(realised[:, None], evidence._replace(output=truth), computed, learned)
        past = Past(
            history.push(past.outputs, output, SIGMAS[i], computed),
            history.push(past.features, feature, SIGMAS[i], computed),
            past.noises,
        )
        strips = [s + "=#"[c] for s, c in zip(strips, computed.tolist(), strict=True)]
    return strips, np.array(handed)


# The references: one sample, from the equations of specs/online.md, in step counts. Each yields the step's decision,
# is told nothing else, and keeps the computed steps in `done`, newest first.


def rel(now, then):
    return np.abs(now - then).sum() / np.abs(then).sum()


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


@dataclass(frozen=True)
class Poisoned(Estimator[Any]):
    """Another estimator, whose prediction for one row is not a number."""

    inner: Estimator[Any]
    row: int

    def init(self, samples, forms):
        return self.inner.init(samples, forms)

    def predict(self, evidence, state):
        predicted = self.inner.predict(evidence, state)
        predicted[self.row] = torch.nan
        return predicted

    def observe(self, realised, evidence, computed, state):
        return self.inner.observe(realised, evidence, computed, state)


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
        FLUX.draw(pipe, [1, 2, 3], STEPS)  # costs of a batch of three are measured
        macs = count_macs(pipe.transformer)
        together, strips = FLUX.draw(pipe, [1, 2, 3], STEPS), decisions(cache)
        handle.remove()
        run, trace = session.run, cache.trace

        # 2. Batch mates change nothing.
        assert strips == [strip for _, strip in alone]
        torch.testing.assert_close(together, torch.cat([image for image, _ in alone]), rtol=1e-3, atol=1e-3)
        # 3. The history holds what the denoiser gave at steps that computed, and is never handed out.
        (past,) = run.places[0].past.values()
        for k, value in enumerate(past.outputs.values):
            for row in range(3):
                sigma = past.outputs.sigmas[k, row].item()
                assert torch.equal(value[row], exact[sigma][row])
        for approximator in config.approximators:
            guess = approximator.guess(past, Now(run.step.sigma, last_feature(past), run.latent))
            kept = [value.clone() for value in past.outputs.values]
            guess.fill_(7.0)
            assert all(torch.equal(a, b) for a, b in zip(kept, past.outputs.values, strict=True))
        # 7. What is reported as saved was not executed.
        assert trace.executed.sum().item() == pytest.approx(sum(macs), rel=1e-6)
        assert cache.report().compute_speedup > 1.0
        # 10. Memory is what the configuration says: its depth times one output, and one feature where it looks; the
        # estimator keeps at most a feature, or three latents, beside small numbers on the host.
        feature = past.features.values[0].nbytes if past.features.values else 0
        held = config.depth * (plain.nbytes + feature)
        assert len(past.outputs.values) * (plain.nbytes + feature) <= trace.cache_bytes
        assert trace.cache_bytes <= held + max(feature, 3 * plain.nbytes) + 1000
    # 4. An unknown prediction computes its row and no other.
    with dicache.enable(pipe, config=replace(config, estimator=Poisoned(config.estimator, 1))) as cache:
        FLUX.draw(pipe, [1, 2, 3], STEPS)
    first, poisoned, third = decisions(cache)
    assert set(poisoned) == {"#"} and [first, third] == [strips[0], strips[2]]


def last_feature(past: Past) -> torch.Tensor | None:
    return past.features.values[0] + 0.1 if past.features.values else None


# Exact cases are exact.


def past_at(times, value, feature=lambda sigma: torch.ones(2, 3)) -> Past:
    outputs, features = history.empty(len(times), 2), history.empty(len(times), 2)
    for sigma in times:
        outputs = history.push(outputs, value(sigma), sigma, torch.ones(2, dtype=torch.bool))
        features = history.push(features, feature(sigma), sigma, torch.ones(2, dtype=torch.bool))
    return Past(outputs, features, history.empty(len(times), 2))


UNEVEN = st.lists(st.integers(1, 40), min_size=5, max_size=5, unique=True).map(
    lambda ticks: [t / 20 for t in sorted(ticks, reverse=True)]
)


@given(times=UNEVEN, order=st.integers(1, 3))
def test_polynomials_of_their_order_are_exact_at_uneven_times(times, order):
    coefficients = torch.randn(order + 1, 2, 3, dtype=torch.float64)

    def value(sigma, degree=order):
        return sum(c * sigma**k for k, c in enumerate(coefficients[: degree + 1]))

    guess = Newton(order).guess(past_at(times[: order + 1], value), Now(times[order + 1], None))
    torch.testing.assert_close(guess, value(times[order + 1]), rtol=1e-6, atol=1e-6)
    for linear in (Taylor(order), FoCa()):
        past = past_at(times[: linear.needs], lambda sigma: value(sigma, 1))
        guess = linear.guess(past, Now(times[linear.needs], None))
        torch.testing.assert_close(guess, value(times[linear.needs], 1), rtol=1e-6, atol=1e-6)


@given(places=st.lists(st.integers(-20, 20), min_size=3, max_size=3, unique=True))
def test_alignment_is_exact_on_collinear_features_forward_and_back(places):
    offset, slope, feature, way = (torch.randn(2, 3, dtype=torch.float64) for _ in range(4))
    where = dict(zip((1.0, 0.8, 0.5), (p / 4 for p in places), strict=True))
    past = past_at((1.0, 0.8), lambda s: offset + where[s] * slope, lambda s: feature + where[s] * way)
    guess = LeastSquaresAlign().guess(past, Now(0.5, feature + where[0.5] * way))
    torch.testing.assert_close(guess, offset + where[0.5] * slope, rtol=1e-4, atol=1e-4)


def test_alignment_agrees_with_dicaches_on_a_line_and_holds_where_the_probe_left_it():
    value = feature = lambda sigma: torch.full((2, 3), 3 - 2 * sigma)
    past, ahead = past_at((1.0, 0.8), value, feature), Now(0.7, value(0.7))
    torch.testing.assert_close(LeastSquaresAlign().guess(past, ahead), Align().guess(past, ahead))
    aside = torch.tensor([[1.0, -1.0, 0.0]]).repeat(2, 1)
    for moved in (aside, torch.zeros(2, 3)):
        guess = LeastSquaresAlign().guess(past, Now(0.7, past.features.values[0] + moved))
        torch.testing.assert_close(guess, past.outputs.values[0], rtol=1e-6, atol=1e-6)


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


# The parts that no preset uses, and what presets need of a model.


def test_disagreement_is_the_relative_difference_of_two_guesses_where_both_are_known():
    first, second = torch.randn(2, 5), torch.randn(2, 5)
    nothing = torch.full((2,), torch.nan, dtype=torch.float64)
    growth = torch.tensor([[1.0, 1.0], [1.0, torch.nan]], dtype=torch.float64)
    evidence = Evidence(growth, nothing, nothing, guess=lambda form: (first, second)[form])
    predicted = Disagreement().predict(evidence, Disagreement().init(2, 2))
    assert predicted[0].tolist() == pytest.approx([float((first - second)[0].norm() / first[0].norm())] * 2)
    assert predicted[1].isinf().all()
    assert Disagreement().predict(Evidence(growth, nothing, nothing), 2).isinf().all()


@given(x=st.floats(0, 5), coefficients=st.lists(st.floats(-9, 9), min_size=1, max_size=5))
def test_a_polynomial_is_clamped_to_its_support_and_never_negative(x, coefficients):
    nothing = torch.full((1,), torch.nan, dtype=torch.float64)
    mapped = Polynomial(RelativeChange(), coefficients, (0.1, 1.0))
    one, moved = (torch.full((1, 4), v, dtype=torch.float64) for v in (1.0, 1.0 + x))
    seen = Evidence(nothing[:, None], nothing, nothing, feature=one)
    state = mapped.observe(nothing[:, None], seen, torch.ones(1, dtype=torch.bool), mapped.init(1, 1))
    predicted = mapped.predict(seen._replace(feature=moved), state).item()
    assert predicted == pytest.approx(max(0.0, np.polyval(coefficients, min(max(x, 0.1), 1.0))), rel=1e-3, abs=1e-3)


@given(pairs=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=12))
def test_the_isotonic_fit_never_falls_and_leaves_what_rises_alone(pairs):
    x, y = zip(*pairs, strict=True)
    knots = isotonic(x, y)
    fitted = np.interp(sorted(x), *np.array(knots).T)
    assert (np.diff(fitted) >= 0).all() and min(y) - 1e-9 <= fitted[0] and fitted[-1] <= max(y) + 1e-9
    assert Isotonic(RelativeChange(), knots).knots == knots
    rising = [(a, 2 * a) for a in sorted({round(a, 2) for a in x})]
    assert isotonic(*zip(*rising, strict=True)) == tuple(rising)


def test_an_isotonic_map_is_flat_beyond_its_knots_and_keeps_the_unknown_unknown():
    nothing = torch.full((2,), torch.nan, dtype=torch.float64)
    mapped = Isotonic(RelativeChange(), ((0.1, 0.2), (0.3, 0.4)))
    one = torch.ones(2, 4)
    seen = Evidence(nothing[:, None], nothing, nothing, feature=one)
    assert mapped.predict(seen, mapped.init(2, 1)).isinf().all()
    state = mapped.observe(nothing[:, None], seen, torch.ones(2, dtype=torch.bool), mapped.init(2, 1))
    for moved, expected in ((1.0, 0.2), (1.2, 0.3), (3.0, 0.4)):
        predicted = mapped.predict(seen._replace(feature=torch.stack([moved * one[0], torch.nan * one[0]])), state)
        assert predicted[0].item() == pytest.approx(expected, rel=1e-5) and predicted[1].isinf().all()
    with pytest.raises(ModeError, match="never falls"):
        Isotonic(RelativeChange(), ((0.1, 0.4), (0.3, 0.2)))


def test_a_table_of_another_length_is_read_at_the_nearest_step():
    assert [nearest((1, 2, 3), i, 6) for i in range(6)] == [1, 1, 2, 2, 3, 3]
    assert nearest((1, 2, 3), 0, 1) == 1


def test_the_tables_of_a_model_are_measured_along_its_run():
    pipe = make_flux()
    pipe.scheduler.set_timesteps(STEPS)
    sigmas = pipe.scheduler.sigmas[:STEPS].tolist()
    ratios = measure_ratios(pipe.transformer, lambda: FLUX.draw(pipe, [1, 2], STEPS), STEPS)
    table = measure_sensitivities(pipe.transformer, lambda: FLUX.draw(pipe, [1, 2], STEPS), sigmas)
    assert [len(column) for column in (ratios, *table)] == [STEPS] * 3
    assert all(math.isfinite(number) and number > 0 for column in (ratios, *table) for number in column)
    assert not pipe.transformer._forward_hooks


class Looked(Probe):
    """Keeps what several probes saw at the last step."""

    depth = 1

    def __init__(self, *inner: Probe) -> None:
        self.inner, self.features = inner, []

    def __call__(self, view):
        self.features = [probe(view) for probe in self.inner]
        return view.after.clone()


def test_probes_measure_what_they_say():
    looked = Looked(
        FirstBlocks(), FirstBlocksResidual(), SampledTokens(FirstBlocks(), 3), ModulatedInput(), RawLatent()
    )
    pipe = make_flux()
    with dicache.enable(pipe, config=Config(Threshold(0.0), probe=looked)) as cache:
        FLUX.draw(pipe, [1, 2], 4)
        assert torch.equal(looked.features.pop(), cache._session.run.latent)
    after, added, sampled, modulated = looked.features
    assert torch.equal(sampled, after[:, ::3]) and sampled.shape[1] < after.shape[1]
    assert added.shape == modulated.shape == after.shape and 0 < float(added.norm()) != float(after.norm())


def test_the_residual_of_two_blocks_is_that_of_both():
    pipe, inputs = make_flux(), []
    pipe.transformer.transformer_blocks[0].norm1.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))

    class Deep(Looked):
        depth = 2

    looked = Deep(FirstBlocks(2), FirstBlocksResidual(2))
    with dicache.enable(pipe, config=Config(Threshold(0.0), probe=looked)):
        FLUX.draw(pipe, [1, 2], 4)
    after, added = looked.features
    torch.testing.assert_close(added, after - inputs[-1])


def test_the_filter_passes_coarse_patterns_has_a_mean_gain_of_one_and_fades_with_the_noise():
    for balance in (-3.0, 0.0, 3.0):
        gain = gains(8, 8, 2.0, balance)
        whole = torch.cat([gain, gain[:, 1:-1]], dim=1)
        assert whole.mean().item() == pytest.approx(1.0, rel=1e-6)
        assert gain[0, 0] == gain.max()
    assert gains(8, 8, 2.0, -3.0)[4, 4] < gains(8, 8, 2.0, 3.0)[4, 4] <= 1.0


@dataclass
class Given(Probe):
    """Measures what it was given."""

    feature: torch.Tensor
    depth = 0

    def __call__(self, view):
        return self.feature


@pytest.mark.parametrize("size", [(6, 6), (4, 7)])
def test_the_filtered_feature_is_wieners_by_the_whole_transform(size):
    tokens, feature = size[0] * size[1], torch.randn(2, size[0] * size[1], 3)
    nothing = torch.zeros(2, tokens, 3)
    for index in (2, N - 3):
        view = View(nothing, nothing, nothing, torch.nn.Identity(), (), {}, step(index))
        found = SpectrumFiltered(Given(feature), 2.0, size)(view)
        a = math.exp(COURSE.balances[index])  # b = 1
        frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None, :])
        power = np.where(frequency == 0, 1.0, frequency) ** -2
        power = power / power[frequency > 0].mean()
        gain = np.where(frequency == 0, 1 / a, a * power / (a * a * power + 1))
        gain = gain / gain.mean()
        image = feature.numpy().reshape(2, *size, 3)
        expected = np.fft.ifft2(np.fft.fft2(image, axes=(1, 2)) * gain[None, :, :, None], axes=(1, 2)).real
        np.testing.assert_allclose(found.numpy(), expected.reshape(2, tokens, 3), rtol=1e-4, atol=1e-5)
    adrift = view._replace(step=view.step._replace(course=None))
    assert torch.equal(SpectrumFiltered(Given(feature), 2.0, size)(adrift), feature)


def test_a_model_without_what_a_preset_reads_is_refused_with_a_reason():
    for name in (
        "one stream, sequential guidance, video (wan)",
        "one stream, batched guidance, learned variance (pixart)",
    ):
        pipe = PIPELINES[name].make()
        with dicache.enable(pipe, config=presets.teacache()), pytest.raises(UnsupportedModelError, match="norm1"):
            PIPELINES[name].draw(pipe, [1], 4)
    tiny = PIPELINES["one stream, sequential guidance, video (wan)"]  # its text is larger than its picture
    pipe = tiny.make()
    with (
        dicache.enable(pipe, config=presets.dbcache(front=2)),
        pytest.raises(UnsupportedModelError, match="one stream"),
    ):
        tiny.draw(pipe, [1], 4)
    pipe = PIPELINES["one stream, batched guidance, learned variance (pixart)"].make()
    with dicache.enable(pipe, config=presets.easycache()), pytest.raises(UnsupportedModelError, match="shaped like"):
        PIPELINES["one stream, batched guidance, learned variance (pixart)"].draw(pipe, [1], 6)
    pipe = make_flux()
    probe = SpectrumFiltered(ModulatedInput(), size=(3, 5))
    with (
        dicache.enable(pipe, config=replace(presets.seacache(), probe=probe)),
        pytest.raises(UnsupportedModelError, match="size"),
    ):
        FLUX.draw(pipe, [1], 4)
