"""Fitted coefficients: exact where the sites are what the maps are, refused where they do not belong, and the presets
that use them decide and hand out what their equations say and keep the laws.
"""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import dicache
from dicache import presets
from dicache.approximators.alignment import Align
from dicache.approximators.base import Histories, Target
from dicache.approximators.fitted.about import KINDS
from dicache.config import Config
from dicache.controllers.interval import Interval
from dicache.errors import FittedError, ModeError, UnsupportedModelError
from dicache.estimators.closed_loop import ClosedLoop
from dicache.presets.parts.easycache import ReuseResidual
from dicache.regressions.moments import Increments, LowRankIncrements, Moments, Pair, StepMoments
from dicache.sites import Drafted, Evaluation, Spans, Sublayers
from dicache.tensors import history
from helpers.fits import EVERY, PLACES, STEPS, C, Captioned, fitted, made, straight
from helpers.toy import SIGMAS, B, N
from helpers.watching import strips, untouched
from pipelines.tiny import PIPELINES, draw_wan, make_flux, make_wan

FLUX = PIPELINES["two streams and one (flux)"]
# Where a site is what the map is, the guess is exact.


def pairs(target, then, x_now=None, x_then=None, gap=1):
    return Pair(5, gap, target, then, x_now, x_then)


def past_of(value, x=None, index=4):
    def one_value(v):
        return history.push(history.empty(1, B), v, SIGMAS[index], EVERY)

    return Histories(one_value(value), one_value(x if x is not None else value), history.empty(1, B))


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
    histories = past_of(v[0], x[0])
    for kind, sums in (("ridge", ridge), ("low_rank", low_rank)):
        guess = made(kind, sums.solved()).approximator().guess
        torch.testing.assert_close(guess(histories, Target(SIGMAS[5], x[1])), v[1], rtol=1e-4, atol=1e-4)
        assert torch.equal(guess(histories, Target(SIGMAS[5], x[0])), v[0])


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
    histories = past_of(then, index=5 - gap)
    for kind, sums in (("affine", lines), ("scale_shift", by_step)):
        guess = made(kind, sums.solved()).approximator().guess(histories, Target(SIGMAS[5], None))
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
    histories = past_of(then)
    histories = histories._replace(outputs=histories.outputs._replace(sigmas=mixed[None].double()))
    guess = affine.guess(histories, Target(SIGMAS[5], None))
    torch.testing.assert_close(guess, torch.tensor([2.0, 4.0, 1.0])[:, None, None] * then, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scale.guess(histories, Target(SIGMAS[5], None)), 3 * then, rtol=1e-5, atol=1e-5)
    assert torch.equal(affine.guess(histories, Target(SIGMAS[9], None)), then)  # a step of which nothing was seen


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


@pytest.mark.parametrize("kind", ["ridge", "low_rank"])
def test_a_model_of_linear_blocks_is_drawn_exactly_from_half_of_its_blocks(kind):
    pipe = straight()
    coefficients = dicache.fit(pipe, ["a"] * 4, steps=STEPS, kind=kind, rank=C, ridge=1e-9, progress=False)
    generators = [[torch.Generator().manual_seed(77)] for _ in range(3)]
    options = {"num_inference_steps": STEPS, "output_type": "latent"}
    plain = pipe(["b"], generator=generators[0], **options)
    config = Config(Interval(2), ClosedLoop(), (coefficients.approximator(),), coefficients.probe, coefficients.sites)
    with dicache.enable(pipe, config=config) as cache:
        drawn = pipe(["b"], generator=generators[1], **options)
    assert "*" in strips(cache)[0]
    torch.testing.assert_close(drawn, plain, rtol=1e-4, atol=1e-4)
    with dicache.enable(pipe, config=Config(Interval(2), ClosedLoop(), sites=Spans(1))) as cache:
        reused = pipe(["b"], generator=generators[2], **options)
    assert (reused - plain).abs().max() > 1e-3


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

    coefficients = dicache.fit(
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
    assert coefficients.about.guidance == pytest.approx(4.0, rel=1e-3)


@pytest.mark.parametrize(("kind", "sites"), PLACES)
def test_maps_are_nearer_to_what_they_were_fitted_on_than_holding(kind, sites):
    """On the recorded run itself, the step before held, the worst of all sites."""
    coefficients = fitted(kind, sites)
    reusing = Config(Interval(1), ClosedLoop(), presets.fora().approximators, sites=coefficients.sites)
    means = []
    for config in (replace(reusing, approximators=(coefficients.approximator(),), probe=coefficients.probe), reusing):
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
        ({"kind": "gate", "threshold": 0.0}, ModeError, "threshold"),
        ({"kind": "gate", "sites": Evaluation()}, ModeError, "inside the denoiser"),
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
    for kind, approximator in ((k, fitted(k).approximator()) for k in KINDS if k != "innovation"):
        flat = past_of(torch.randn(B, C))
        with pytest.raises(UnsupportedModelError, match="rows, tokens, channels"):
            approximator.guess(flat, Target(approximator.sigmas[3], None, site="transformer_blocks.0"))
        if KINDS[kind].reads_feature and not KINDS[kind].pooled:
            with pytest.raises(UnsupportedModelError, match="SiteInput"):
                approximator.guess(past_of(torch.randn(B, 3, 32)), Target(0.5, None, site="transformer_blocks.0"))


def test_coefficients_of_another_model_other_sites_or_other_steps_are_refused():
    coefficients = fitted("affine")
    config = Config(Interval(2), ClosedLoop(), (coefficients.approximator(),), sites=coefficients.sites)
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
        presets.icc(coefficients)


@pytest.mark.parametrize("approximator", [Align(), ReuseResidual(), fitted("ridge").approximator()])
def test_what_reads_a_probe_needs_one(approximator):
    with pytest.raises(ModeError, match=f"{type(approximator).__name__} reads a probe"):
        Config(Interval(2), approximators=(approximator,), sites=Spans(1))
