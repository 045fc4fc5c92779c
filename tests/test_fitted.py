"""Fitted coefficients: exact where the sites are what the maps are, refused where they do not belong, and the presets
that use them decide and hand out what their equations say and keep the laws.
"""

import json
import pickle
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from safetensors.torch import load_file, save_file
from test_errors import untouched
from test_laws import decisions
from test_presets import FLUX, SIGMAS, B, N, Poisoned, Toy, counted, played

import dicache
from dicache import history, presets
from dicache.approximators.alignment import Align
from dicache.approximators.base import Now, Past
from dicache.approximators.residual import ReuseResidual
from dicache.bench.presets import FITTED
from dicache.config import Config
from dicache.controllers.fixed import accumulated
from dicache.controllers.interval import Interval
from dicache.errors import FittedError, ModeError, UnsupportedModelError
from dicache.estimators.closed_loop import ClosedLoop
from dicache.fitted import KINDS, About, Fitted, described
from dicache.moments import Increments, LowRankIncrements, Moments, Pair, StepMoments
from dicache.probes.site_input import SiteInput
from dicache.reference.weights import MODEL
from dicache.sites import Drafted, Evaluation, Sites, Spans, Sublayers
from tiny import count_macs, draw_wan, make_flux, make_wan

STEPS = 6
C = 4
EVERY = torch.ones(B, dtype=torch.bool)


def made(kind: str, coefficients: dict[str, torch.Tensor], longest: int = 3) -> Fitted:
    """For the toy: one site, the whole evaluation."""
    about = About(kind, {}, "none", tuple(SIGMAS), 1.0, described(Evaluation()), 1, longest, C, 1e-3, "0")
    return Fitted(about, {"": coefficients})


class Captioned:
    """The tiny FLUX pipeline, whose prompts are the numbers of its samples."""

    def __init__(self) -> None:
        self.pipe, self.seeds = make_flux(), []

    @property
    def transformer(self):
        return self.pipe.transformer

    @property
    def scheduler(self):
        return self.pipe.scheduler

    def __call__(self, prompts, *, num_inference_steps, generator, output_type, **kwargs):
        self.seeds += [g.initial_seed() for g in generator]
        return FLUX.draw(self.pipe, [int(p) for p in prompts], num_inference_steps, **kwargs)


@lru_cache
def fitted(kind: str, sites: Sites | None = None, **options) -> Fitted:
    return dicache.fit(
        Captioned(), ["11", "12"], steps=STEPS, kind=kind, sites=sites, longest=2, progress=False, **options
    )


# Where a site is what the map is, the guess is exact.


def pairs(now, then, x_now=None, x_then=None, gap=1):
    return Pair(5, gap, now, then, x_now, x_then)


def past_of(value, x=None, index=4):
    def held(v):
        return history.push(history.empty(1, B), v, SIGMAS[index], EVERY)

    return Past(held(value), held(x if x is not None else value), history.empty(1, B))


@given(seed=st.integers(0, 9), rank=st.integers(1, 6))
def test_maps_of_increments_are_exact_on_linear_sites_and_hold_where_the_input_stands_still(seed, rank):
    torch.manual_seed(seed)
    truth, offset = torch.randn(5, C, dtype=torch.float64), torch.randn(C)
    if rank < C:
        truth = truth[:, :rank] @ torch.randn(rank, C, dtype=torch.float64)  # a map of this rank needs no more
    ridge, low_rank = Increments(1e-12), LowRankIncrements(1e-12, rank)
    for _ in range(3):
        x = torch.randn(2, B, 40, 5)
        v = x @ truth.float() + offset
        for sums in (ridge, low_rank):
            sums.add(pairs(v[0], v[1], x[0], x[1]))
    x = torch.randn(2, B, 7, 5)
    v = x @ truth.float() + offset
    past = past_of(v[0], x[0])
    for kind, sums in (("ridge", ridge), ("low_rank", low_rank)):
        guess = made(kind, sums.solved()).approximator().guess
        torch.testing.assert_close(guess(past, Now(SIGMAS[5], x[1])), v[1], rtol=1e-4, atol=1e-4)
        assert torch.equal(guess(past, Now(SIGMAS[5], x[0])), v[0])


@given(seed=st.integers(0, 9), gap=st.integers(1, 3))
def test_lines_are_exact_on_values_that_change_by_a_line_per_channel(seed, gap):
    torch.manual_seed(seed)
    a, b = torch.randn(C), torch.randn(C)
    lines, by_step = Moments(N, 3), StepMoments(N, 3)
    for _ in range(3):
        then = torch.randn(B, 6, C)
        for sums in (lines, by_step):
            sums.add(pairs(a * then + b, then, gap=gap))
    then = torch.randn(B, 6, C)
    past = past_of(then, index=5 - gap)
    for kind, sums in (("affine", lines), ("scale_shift", by_step)):
        guess = made(kind, sums.solved()).approximator().guess(past, Now(SIGMAS[5], None))
        torch.testing.assert_close(guess, a * then + b, rtol=1e-4, atol=1e-4)


def test_a_line_belongs_to_its_gap_and_a_scale_and_shift_to_its_step():
    torch.manual_seed(0)
    then = torch.randn(B, 6, C)
    lines, by_step = Moments(N, 2), StepMoments(N, 2)
    for sums in (lines, by_step):
        sums.add(pairs(2 * then, then, gap=1))
        sums.add(pairs(4 * then, then, gap=2))
    affine = made("affine", lines.solved(), 2).approximator()
    scale = made("scale_shift", by_step.solved(), 2).approximator()
    mixed = torch.tensor([SIGMAS[4], SIGMAS[3], SIGMAS[2]])  # a row of each gap, and one of a gap that was not fitted
    past = past_of(then)
    past = past._replace(outputs=past.outputs._replace(sigmas=mixed[None].double()))
    guess = affine.guess(past, Now(SIGMAS[5], None))
    torch.testing.assert_close(guess, torch.tensor([2.0, 4.0, 1.0])[:, None, None] * then, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scale.guess(past, Now(SIGMAS[5], None)), 3 * then, rtol=1e-5, atol=1e-5)
    assert torch.equal(affine.guess(past, Now(SIGMAS[9], None)), then)  # a step of which nothing was seen


def test_weighted_channels_are_kept_better_at_low_rank():
    torch.manual_seed(0)
    loud = torch.tensor([9.0, 1.0, 1.0, 1.0])
    sums = {alpha: LowRankIncrements(1e-9, 1, alpha) for alpha in (0.0, 0.5)}
    truth = torch.eye(C)
    for one in sums.values():
        x = loud * torch.randn(2, B, 200, C)
        one.add(pairs(x[0] @ truth, x[1] @ truth, x[0], x[1]))
    full = sums[0.0].weight().float()
    cut = {alpha: (lambda m: m["down"] @ m["up"])(one.solved()) for alpha, one in sums.items()}
    assert (cut[0.5] - full)[0, 0].abs() < 1e-4 < (cut[0.0] - full).norm()


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(C, C)

    def forward(self, hidden_states):
        return hidden_states + 0.3 * self.linear(hidden_states)


class Straight(torch.nn.Module):
    """A denoiser of three linear blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(Linear() for _ in range(3))

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


def straight():
    pipe = SimpleNamespace(transformer=Straight(), scheduler=FlowMatchEulerDiscreteScheduler())

    @torch.no_grad()
    def draw(prompts, *, num_inference_steps, generator, output_type):
        pipe.scheduler.set_timesteps(num_inference_steps)
        x = torch.cat([torch.randn(1, 16, C, generator=g) for g in generator])
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.transformer(x, t), t, x, return_dict=False)[0]
        return x

    class Pipe(SimpleNamespace):
        def __call__(self, *args, **kwargs):
            return draw(*args, **kwargs)

    return Pipe(transformer=pipe.transformer, scheduler=pipe.scheduler)


@pytest.mark.parametrize("kind", ["ridge", "low_rank"])
def test_a_model_of_linear_blocks_is_drawn_exactly_from_half_of_its_blocks(kind):
    pipe = straight()
    found = dicache.fit(pipe, ["a"] * 4, steps=STEPS, kind=kind, rank=C, ridge=1e-9, progress=False)
    generators = [[torch.Generator().manual_seed(77)] for _ in range(3)]
    options = {"num_inference_steps": STEPS, "output_type": "latent"}
    plain = pipe(["b"], generator=generators[0], **options)
    config = Config(Interval(2), ClosedLoop(), (found.approximator(),), found.probe, found.sites)
    with dicache.enable(pipe, config=config) as cache:
        drawn = pipe(["b"], generator=generators[1], **options)
    assert "*" in decisions(cache)[0]
    torch.testing.assert_close(drawn, plain, rtol=1e-4, atol=1e-4)
    with dicache.enable(pipe, config=Config(Interval(2), ClosedLoop(), sites=Spans(1))) as cache:
        held = pipe(["b"], generator=generators[2], **options)
    assert (held - plain).abs().max() > 1e-3


# Fitting.


def test_fitting_is_deterministic_draws_every_prompt_with_its_seed_and_leaves_the_pipeline_as_it_was():
    pipe = Captioned()
    options = {"steps": STEPS, "kind": "affine", "batch": 2, "progress": False, "seed": 5}
    one, two = (dicache.fit(pipe, ["1", "2", "3"], **options) for _ in range(2))
    assert pipe.seeds == [5, 6, 7] * 2 and untouched(pipe.pipe)
    assert one.about == two.about and one.about.prompts == 3 and len(one.coefficients) == 5
    for site, named in one.coefficients.items():
        assert all(torch.equal(t, two.coefficients[site][name]) for name, t in named.items())


def test_lists_and_tensors_per_prompt_are_cut_like_the_prompts_and_the_guidance_is_measured():
    seen = []

    class Noted(Captioned):
        def __call__(self, prompts, *, words, table, **kwargs):
            seen.append((list(prompts), words, table.tolist()))
            return super().__call__(prompts, guided=True, **kwargs)

    found = dicache.fit(
        Noted(),
        ["1", "2", "3"],
        steps=4,
        kind="affine",
        batch=2,
        progress=False,
        words=["x", "y", "z"],
        table=torch.arange(3),
    )
    assert seen == [(["1", "2"], ["x", "y"], [0, 1]), (["3"], ["z"], [2])]
    assert found.about.guidance == pytest.approx(4.0, rel=1e-3)


PLACES = [("ridge", None), ("low_rank", Sublayers()), ("affine", Evaluation()), ("scale_shift", None)]


@pytest.mark.parametrize(("kind", "sites"), PLACES)
def test_maps_are_nearer_to_what_they_were_fitted_on_than_holding(kind, sites):
    """On the recorded run itself, the step before held, the worst of all sites."""
    found = fitted(kind, sites)
    held = Config(Interval(1), ClosedLoop(), presets.fora().approximators, sites=found.sites)
    means = []
    for config in (replace(held, approximators=(found.approximator(),), probe=found.probe), held):
        with dicache.enable(pipe := make_flux(), config=config) as cache:
            FLUX.draw(pipe, [11, 12], STEPS)
        errors = torch.stack([record.realised for record in cache.trace.records])
        means.append(errors[~errors.isnan()].square().mean())
    assert means[0] < means[1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "spline"}, ModeError, "spline"),
        ({"prompts": []}, ModeError, "prompts"),
        ({"prompts": "1"}, ModeError, "prompts"),
        ({"longest": 0}, ModeError, "longest"),
        ({"longest": STEPS}, ModeError, "longest"),
        ({"rank": 0}, ModeError, "rank"),
        ({"ridge": 0.0}, ModeError, "ridge"),
        ({"sites": Drafted()}, FittedError, "Drafted"),
        ({"unknown": 1}, TypeError, "unknown"),
    ],
)
def test_a_fit_that_makes_no_sense_is_refused_and_the_pipeline_is_as_it_was(options, error, message):
    pipe = Captioned()
    with pytest.raises(error, match=message):
        dicache.fit(pipe, **{"prompts": ["1"], "steps": STEPS, "progress": False, **options})
    assert untouched(pipe.pipe)


def test_values_that_are_no_tokens_are_refused_by_the_fit_and_by_the_guess():
    wan = make_wan()

    class Video(Captioned):
        transformer, scheduler = wan.transformer, wan.scheduler

        def __call__(self, prompts, *, num_inference_steps, **kwargs):
            return draw_wan(wan, [1], num_inference_steps, guided=False)

    with pytest.raises(UnsupportedModelError, match="rows, tokens, channels"):
        dicache.fit(Video(), ["1"], steps=4, kind="affine", sites=Evaluation(), progress=False)
    with pytest.raises(UnsupportedModelError, match="one denoiser"):
        dicache.fit(wan.transformer, ["1"], steps=4)
    for kind, found in ((k, fitted(k).approximator()) for k in KINDS):
        flat = past_of(torch.randn(B, C))
        with pytest.raises(UnsupportedModelError, match="rows, tokens, channels"):
            found.guess(flat, Now(found.sigmas[3], None, site="transformer_blocks.0"))
        if KINDS[kind].reads_feature:
            with pytest.raises(UnsupportedModelError, match="SiteInput"):
                found.guess(past_of(torch.randn(B, 3, 32)), Now(0.5, None, site="transformer_blocks.0"))


def test_coefficients_of_another_model_other_sites_or_other_steps_are_refused():
    found = fitted("affine")
    config = Config(Interval(2), ClosedLoop(), (found.approximator(),), sites=found.sites)
    with pytest.raises(FittedError, match="another model"):
        dicache.enable(make_wan(), config=config)
    pipe = make_flux()
    with pytest.raises(FittedError, match="nothing was fitted for site"):
        dicache.enable(pipe, config=replace(config, sites=Sublayers()))
    assert untouched(pipe)
    with dicache.enable(pipe, config=config), pytest.raises(FittedError, match=f"fitted for {STEPS} steps"):
        FLUX.draw(pipe, [1], STEPS + 3)
    with dicache.enable(
        make_flux(), config=presets.icc(fitted("low_rank", Sublayers()))
    ):  # a map of changes has no steps
        FLUX.draw(pipe, [1], STEPS + 3)
    with pytest.raises(ModeError, match="kind 'affine'"):
        presets.icc(found)


@pytest.mark.parametrize("form", [Align(), ReuseResidual(), fitted("ridge").approximator()])
def test_what_reads_a_probe_needs_one(form):
    with pytest.raises(ModeError, match=f"{type(form).__name__} reads a probe"):
        Config(Interval(2), approximators=(form,), sites=Spans(1))


# The file.


@pytest.fixture
def file(tmp_path) -> Path:
    fitted("low_rank", Sublayers()).save(tmp_path / "found.safetensors")
    return tmp_path / "found.safetensors"


@pytest.mark.parametrize(("kind", "sites"), PLACES)
def test_what_was_saved_is_loaded(kind, sites, tmp_path):
    found = fitted(kind, sites)
    found.save(tmp_path / "found")
    again = dicache.Fitted.load(tmp_path / "found")
    assert same(found, again) and again.sites == found.sites and again.probe == found.probe
    assert [p.name for p in tmp_path.iterdir()] == ["found"]


def same(one: Fitted, two: Fitted) -> bool:
    return (
        one.about == two.about
        and one.coefficients.keys() == two.coefficients.keys()
        and all(
            torch.equal(t, two.coefficients[site][n])
            for site, named in one.coefficients.items()
            for n, t in named.items()
        )
    )


def refused(path: Path) -> None:
    with pytest.raises(FittedError, match="no fitted coefficients"):
        Fitted.load(path)


@given(data=st.binary(max_size=300), headed=st.booleans())
def test_bytes_of_anything_else_are_refused(data, headed, tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "any"
    path.write_bytes(len(data).to_bytes(8, "little") + data if headed else data)
    refused(path)


@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_refused(share, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "found"
    fitted("low_rank", Sublayers()).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path)


@given(place=st.floats(0, 0.9999), value=st.integers(1, 255), header=st.booleans())
def test_a_file_with_one_byte_changed_is_refused_or_the_same(place, value, header, tmp_path_factory):
    path = tmp_path_factory.mktemp("flip") / "found"
    found = fitted("low_rank", Sublayers())
    found.save(path)
    whole = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(whole[:8], "little") if header else len(whole)
    whole[int(place * end)] ^= value
    path.write_bytes(whole)
    try:
        assert same(Fitted.load(path), found)  # spaces after the header may be anything that JSON skips
    except FittedError as error:
        assert "no fitted coefficients" in str(error)


def forged(path: Path, change) -> None:
    """Rewrite a file with its header's fields and tensors changed, and a checksum that fits."""
    from safetensors import safe_open

    from dicache.fitted import _digest

    with safe_open(path, framework="pt") as f:
        fields = json.loads(f.metadata()["dicache.fitted"])
    tensors = load_file(path)
    text = change(fields, tensors)
    text = json.dumps(fields) if text is None else text
    save_file(tensors, path, {"dicache.fitted": text, "sha256": _digest(text, tensors)})


def setting(name, value):
    def change(fields, tensors):
        fields[name] = value

    return change


def tensor(change):
    def changed(fields, tensors):
        name = next(iter(tensors))
        tensors[name] = change(tensors[name])

    return changed


HOSTILE = {
    "kind": setting("kind", "__class__"),
    "version": setting("format", 2),
    "no steps": setting("sigmas", []),
    "steps of text": setting("sigmas", "abc"),
    "endless steps": setting("sigmas", [float("inf")]),
    "huge steps": setting("sigmas", [10**400]),
    "no model": setting("model", None),
    "negative gap": setting("longest", -1),
    "rank of text": setting("rank", "5"),
    "rank too small": setting("rank", 2),
    "sites": setting("sites", {"name": "Drafted"}),
    "options of sites": setting("sites", {"name": "Spans", "size": 0}),
    "sites that are a list": setting("sites", []),
    "an unknown field": setting("run", "rm"),
    "a list": lambda fields, tensors: "[]",
    "deep": lambda fields, tensors: "[" * 100_000,
    "no json": lambda fields, tensors: "{",
    "not finite": tensor(lambda t: t * torch.nan),
    "another type": tensor(lambda t: t.half()),
    "another shape": tensor(lambda t: t[:, :-1].contiguous()),
    "another rank": tensor(lambda t: t[None].contiguous()),
    "no tensors": lambda fields, tensors: tensors.clear(),
    "one less": lambda fields, tensors: (tensors.pop(next(iter(tensors))), None)[1],
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_forged_header_is_refused(change, file):
    forged(file, change)
    refused(file)


def test_coefficients_for_other_channels_are_refused_where_they_are_used(file):
    forged(file, tensor(lambda t: t[:-1].contiguous()))
    with (
        dicache.enable(pipe := make_flux(), config=presets.icc(Fitted.load(file))),
        pytest.raises(FittedError, match="channels"),
    ):
        FLUX.draw(pipe, [1], STEPS)


def test_an_honest_rewrite_is_not(file):
    forged(file, lambda fields, tensors: None)
    assert same(Fitted.load(file), fitted("low_rank", Sublayers()))


def test_a_missing_file_a_folder_a_pickle_and_other_weights_are_refused_and_so_is_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "pickle").write_bytes(pickle.dumps({"ridge": 1}))
    for path in (tmp_path / "none", tmp_path, tmp_path / "pickle", MODEL):
        refused(path)
    with pytest.raises(FittedError, match="cannot be written"):
        fitted("low_rank", Sublayers()).save(tmp_path / "nowhere" / "found")


# The presets decide and hand out what their equations say.

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
    "cachequant": (Config(Interval(4), ClosedLoop(), (LINES.approximator(),)), lambda: counted(4, 2), affine),
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
    "cachequant": lambda: Config(Interval(3), ClosedLoop(), (fitted("affine").approximator(),), sites=Spans(1)),
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
        session = cache._session
        handles = [
            pipe.transformer.get_submodule(site.parts[0]).register_forward_hook(
                seen(site, session, exact), with_kwargs=True
            )
            for site in session.sites
        ]
        macs = count_macs(pipe.transformer)
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
        for place in run.places:
            (past,) = place.past.values()
            for row in range(3):
                value = exact[place.site.path, past.outputs.sigmas[0, row].item()][row]
                torch.testing.assert_close(past.outputs.values[0][row], value, rtol=1e-5, atol=1e-5)
            kept = [value.clone() for value in (*past.outputs.values, *past.features.values)]
            feature = past.features.values[0].clone() if past.features.values else None
            now = Now(run.step.sigma, feature, course=run.step.course, site=place.site.path)
            config.approximators[0].guess(past, now).fill_(7.0)
            assert all(
                torch.equal(a, b) for a, b in zip(kept, (*past.outputs.values, *past.features.values), strict=True)
            )
        # 7. What is reported as saved was not executed, and what the maps multiply is.
        assert trace.executed.sum().item() == pytest.approx(sum(macs), rel=1e-6)
        assert cache.report().compute_speedup > 1.0 or name == "icc"
        # 10. Memory is what was planned, the maps with it.
        assert config.approximators[0].held < trace.cache_bytes <= trace.planned_bytes
    # 4. An unknown prediction computes its row and no other.
    if not isinstance(config.estimator, ClosedLoop):
        config = replace(config, estimator=Poisoned(config.estimator, 1))
        with dicache.enable(pipe, config=config) as cache:
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
        FLUX.draw(pipe, [1, 2], 4)
        (past,) = cache._session.run.places[1].past.values()
        joined = torch.cat([inputs["encoder_hidden_states"], inputs["hidden_states"]], dim=1)
        assert torch.equal(past.features.values[0], joined)
        assert torch.equal(past.features.sigmas[0], past.outputs.sigmas[0])


def test_the_bench_sweeps_every_fitted_preset():
    assert [arm.name.removeprefix("preset ") for arm in FITTED] == ["fastcache", "icc", "block_caching"]
