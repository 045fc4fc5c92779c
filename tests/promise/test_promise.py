"""The promise: what a confidence is worth, how a profile is measured and chosen, and what a report says of it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

import dicache
from dicache.controllers.planned import Planned
from dicache.errors import BudgetError, ModeError, ProfileError, UnsupportedModelError
from dicache.measuring.calibrate import calibrate, finer
from dicache.models.identity import identity
from dicache.planning.error_law import MARGIN
from dicache.promise import metrics
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.keep_budget import Promised, parse_budget
from dicache.promise.learn_then_test import CERTAINTY, accepted, failures_allowed, prompts_needed, rising
from dicache.promise.metrics import asked, loss, resolved
from dicache.promise.profile import Profile
from dicache.types import LATENT, Quote, RunFacts, Step, Timetable, Wanted
from helpers.calibrating import GUIDED, LEVELS, PROMPTS, STEPS, Captioned, calibrated, made_up


@pytest.fixture(scope="module")
def profile():
    return calibrated(Captioned())


# What a confidence is worth.


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("prompts", [60, 150])
def test_nine_of_ten_calibrations_cover_at_least_their_confidence(confidence, prompts):
    rng, levels = np.random.default_rng(3), np.geomspace(0.02, 0.5, 40)

    def losses(n):
        return levels * rng.lognormal(0, 0.4, (n, 1)) * rng.lognormal(0, 0.1, (n, len(levels)))

    fresh = losses(20_000)
    covered = []
    for _ in range(400):
        count = accepted(losses(prompts), 0.1, confidence)
        covered.append(1.0 if count == 0 else (fresh[:, count - 1] <= 0.1).mean())
    surviving_share = np.mean(np.array(covered) >= confidence)
    assert surviving_share >= CERTAINTY - 3 * (CERTAINTY * (1 - CERTAINTY) / 400) ** 0.5
    assert np.mean(covered) < confidence + (1 - confidence) * 0.95  # and the budget is not merely left unused


@given(st.integers(1, 400), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_the_fewest_prompts_are_those_with_which_no_failure_is_allowed(prompts, confidence):
    allowed = failures_allowed(prompts, confidence)
    assert (allowed >= 0) == (prompts >= prompts_needed(confidence))
    assert allowed < prompts * (1 - confidence) + 1


def test_levels_after_one_that_failed_are_not_used_even_if_they_would_pass():
    losses = np.zeros((50, 4))
    losses[:40, 1] = 1.0
    assert accepted(losses, 0.5, 0.9) == 1
    assert accepted(np.ones((50, 4)), 0.5, 0.9) == 0


@given(st.lists(st.tuples(st.floats(1e-6, 1), st.floats(0, 1)), max_size=60))
def test_the_map_from_estimate_to_truth_rises_whatever_the_pairs(pairs):
    x, y = np.array(pairs).reshape(-1, 2).T
    knots, values = rising(x, y)
    assert len(knots) == len(values) <= 33
    assert (np.diff(knots) > 0).all() and (np.diff(values) >= -1e-12).all()


def test_a_profile_with_too_few_prompts_says_how_many_a_confidence_needs():
    few = made_up(prompts=20)
    assert few.level(Wanted("latent", 0.2), 0.8) >= 0
    with pytest.raises(ProfileError, match=r"needs a profile tested on 22 prompts or more; .* was tested on 20"):
        few.level(Wanted("latent", 0.2), 0.9)


@given(st.floats(0.001, 2.0), st.sampled_from([0.8, 0.9, 0.95]))
def test_a_surer_promise_or_a_smaller_budget_never_spends_more(bound, confidence):
    profile = made_up()
    level = profile.level(Wanted("latent", bound), confidence)
    assert level in (0.0, *np.float32(LEVELS).tolist())
    assert (
        profile.level(Wanted("latent", bound), 0.5) >= level >= profile.level(Wanted("latent", bound / 2), confidence)
    )


# Metrics.


def test_metrics_are_those_of_torchmetrics_with_the_sign_turned():
    images, reference = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    known = resolved(("latent", "psnr", "ssim"))
    for i in range(3):
        pair = (images[i : i + 1], reference[i : i + 1])
        assert loss("psnr", known["psnr"], *pair).item() == pytest.approx(
            -peak_signal_noise_ratio(*pair, data_range=1.0)
        )
        assert loss("ssim", known["ssim"], *pair).item() == pytest.approx(
            -structural_similarity_index_measure(*pair, data_range=1.0)
        )


@pytest.mark.parametrize("metric", ["lpips", {"latent": lambda a, b: a}, {"mine": 3}])
def test_a_metric_that_is_none_is_refused(metric):
    with pytest.raises(ProfileError, match="metric"):
        resolved(metric)


def test_a_metric_that_gives_no_number_per_image_is_refused():
    for broken in (lambda a, b: torch.tensor(1.0), lambda a, b: torch.full((2,), torch.nan)):
        with pytest.raises(ProfileError, match=r"'mine' gave .* Expected 2 finite numbers"):
            loss("mine", broken, torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))


# Calibration.


def test_calibration_measures_everything_and_is_fixed_by_its_seed(profile):
    again = calibrated(Captioned())
    for key, value in profile.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], value)
    assert profile.facts.guidance == pytest.approx(4.0, abs=1e-2) and profile.facts.steps == STEPS
    assert profile.prompts == 12 and profile.about["cost"]["samples"] == 12 * (1 + len(LEVELS))
    work = profile.arrays["work"].mean(0)
    assert (np.diff(work) <= 1e-6).all() and work[-1] < 1
    other = calibrated(Captioned(), seed=1)
    assert not np.array_equal(other.arrays["loss.latent"], profile.arrays["loss.latent"])


def test_a_calibration_that_was_killed_goes_on_and_ends_the_same(profile, tmp_path):
    pipe = Captioned()
    pipe.fail_after = 7
    with pytest.raises(KeyboardInterrupt):
        calibrated(pipe, checkpoint=tmp_path)
    pipe.fail_after, before = None, pipe.runs
    resumed = calibrated(pipe, checkpoint=tmp_path)
    whole = Captioned()
    calibrated(whole)
    a_batch = 1 + len(LEVELS)
    assert pipe.runs < whole.runs + a_batch and pipe.runs - before < whole.runs
    for key, value in profile.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[key], value)
    with pytest.raises(ProfileError, match="holds other measurements"):
        calibrated(Captioned(), checkpoint=tmp_path, seed=3)


def test_more_levels_are_added_without_drawing_the_others_again(profile, tmp_path):
    calibrated(Captioned(), checkpoint=tmp_path)
    more, whole = calibrated(Captioned(), finer(LEVELS), checkpoint=tmp_path), calibrated(Captioned(), finer(LEVELS))
    assert more.about["cost"]["samples"] == 12 * (1 + len(LEVELS) - 1)  # the uncached runs, and the levels between
    for key, value in whole.arrays.items():
        np.testing.assert_allclose(more.arrays[key], value, rtol=1e-5)  # other rows ran together: last bits may differ
    np.testing.assert_array_equal(more.arrays["loss.latent"][:, ::2], profile.arrays["loss.latent"])
    between = np.sqrt(more.arrays["levels"][:-2:2] * more.arrays["levels"][2::2])
    np.testing.assert_allclose(more.arrays["levels"][1::2], between, rtol=1e-6)


def test_more_prompts_are_added_without_drawing_the_others_again(profile, tmp_path):
    def first(prompts, **kwargs):
        options = {"steps": STEPS, "batch": 4, "levels": LEVELS, "call": GUIDED, "progress": False}
        return calibrate(Captioned(), prompts, **options, **kwargs)

    with pytest.warns(UserWarning, match="8 prompts are too few"):
        few = first(PROMPTS[:8], checkpoint=tmp_path)
    more = first(PROMPTS, checkpoint=tmp_path)
    assert few.prompts == 8 and more.about["cost"]["samples"] == 4 * (1 + len(LEVELS))
    for key, value in profile.arrays.items():
        np.testing.assert_array_equal(more.arrays[key], value)
    np.testing.assert_array_equal(few.arrays["loss.latent"], more.arrays["loss.latent"][:8])
    other = first([*PROMPTS[:8], *PROMPTS[:4]], checkpoint=tmp_path)
    assert not np.array_equal(other.arrays["loss.latent"][8:], more.arrays["loss.latent"][8:])


def test_a_calibration_that_cannot_be_is_refused_before_anything_is_drawn():
    pipe = Captioned()
    with pytest.raises(ProfileError, match="no metric 'lpips'"):
        calibrate(pipe, PROMPTS, steps=STEPS, progress=False, metric="lpips")
    with pytest.raises(ProfileError, match="too few"):
        calibrate(pipe, PROMPTS[:3], steps=STEPS, progress=False)
    assert pipe.runs == 0


# Running by a profile.


def fitted(pipe, **facts):
    """A made-up profile, tested on 60 prompts, that fits runs of this pipeline."""
    real = calibrated(pipe).facts
    known = {
        "scheduler": real.scheduler,
        "sigmas": real.sigmas,
        "guidance": real.guidance,
        "size": real.size,
        "controls": real.controls,
    } | facts
    return made_up(real.model, **known)


def test_a_promise_is_made_where_the_profile_fits_and_the_report_says_all_of_it():
    pipe = Captioned()
    profile = fitted(pipe)
    with dicache.enable(pipe, error_budget=[0.07, 0.9], confidence=0.9, profile=profile) as cache:
        pipe.draw([1, 2])
    facts = cache.report().to_dict()
    assert facts["profile"] == profile.name and facts["profile_fits"] and facts["confidence"] == 0.9
    assert any("promised with confidence 0.9" in warning for warning in facts["warnings"])
    assert not any("without calibration" in warning for warning in facts["warnings"])
    assert [sample["budget"] for sample in facts["samples"]] == [0.07, 0.9]
    small, large = (sample["computed_fraction"] for sample in facts["samples"])
    assert large < small


def test_a_sample_is_decided_alike_alone_and_beside_others_by_a_profile():
    pipe = Captioned()
    with dicache.enable(pipe, error_budget=0.9, profile=fitted(pipe)) as cache:
        pipe.draw([1])
        alone = cache.report().strip(0)
        pipe.draw([5, 1, 7])
        assert cache.report().strip(1) == alone and "#" in alone and alone != "#" * STEPS


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": STEPS + 2}, "steps"),
        ({"guidance": 1.0}, "guidance"),
        ({"guidance": 2.5}, "guidance"),
        ({"height": 64}, "size"),
    ],
)
def test_a_run_at_another_setting_than_the_profiles_raises_and_says_in_what(change, word):
    pipe = Captioned()
    with (
        dicache.enable(pipe, error_budget=0.5, confidence=0.9, profile=fitted(pipe)),
        pytest.raises(ProfileError, match=f"differs in {word}: .*dicache.calibrate"),
    ):
        pipe.draw([1], **change)


def test_beside_a_control_that_the_profile_has_not_seen_nothing_is_promised():
    def steered(module, args, kwargs):
        return args, {**kwargs, "controlnet_block_samples": [torch.zeros(1, 1, 1)]}

    pipe = Captioned()
    with dicache.enable(pipe, error_budget=0.5, confidence=0.9, profile=fitted(pipe)) as cache:
        pipe.draw([1])
        assert any("promised with confidence" in warning for warning in cache.report().warnings)
        handle = pipe.transformer.register_forward_pre_hook(steered, prepend=True, with_kwargs=True)
        with pytest.raises(ProfileError, match=r"differs in controls: .* nothing .* controlnet_block_samples\b"):
            pipe.draw([1])
        handle.remove()
        pipe.draw([1])


def test_the_nearest_profile_runs_anything_promises_nothing_and_says_so():
    pipe = Captioned()
    with dicache.enable(pipe, error_budget=0.5, profile=[fitted(pipe), "nearest"]) as cache:
        pipe.draw([1, 2], steps=STEPS + 4)
    facts = cache.report().to_dict()
    assert facts["confidence"] is None and not facts["profile_fits"] and facts["compute_speedup"] > 1
    assert any("nothing is promised" in warning for warning in facts["warnings"])


def test_the_nearest_profile_is_moved_to_the_run_with_what_its_levels_lost():
    one, other = made_up(), made_up(steps=20)
    twice = tuple(1 - k / (2 * STEPS) for k in range(2 * STEPS))
    timetable = Timetable(twice, (0.05,) * 2 * STEPS, twice, 0, solver="Other()")
    moved = ProfileChoice((one, other), "nearest").fitting(RunFacts(timetable, 2.0), needed=False)
    assert moved.arrays is other.arrays
    assert (moved.facts.scheduler, moved.facts.sigmas, moved.facts.guidance) == ("Other()", twice, 2.0)


def test_where_a_profile_stops_to_fit_half_way_the_budget_is_again_what_was_asked_for():
    """Not that of the profile, which is in units of its own."""
    profile, budget = made_up(), 0.3
    sigmas = profile.facts.sigmas
    timetable = Timetable(sigmas, (0.1,) * STEPS, tuple(-s for s in sigmas), 0, solver="Solver()")
    rule = Promised(ProfileChoice((profile,), "found"), parse_budget(budget))
    state, cost = rule.init(2), torch.full((2,), 0.01, dtype=torch.float64)
    for i, guidance in enumerate((None, 1.0, 1.0, 2.0)):
        quote = Quote(cost, cost, torch.ones(2, dtype=torch.int64), RunFacts(timetable, guidance))
        step = Step(i, STEPS, sigmas[i], 0.1, (i + 1) / STEPS, (1.0, 0.0), timetable=timetable)
        _, state = rule.decide(quote, step, state)
        level = profile.level(Wanted(LATENT, budget), None) if guidance == 1.0 else budget / MARGIN
        assert state.way.account.budget.tolist() == pytest.approx([level] * 2)
        assert (state.profile is profile) == (guidance == 1.0)


def test_the_profile_is_chosen_once_a_run_and_not_at_every_step(monkeypatch):
    pipe, choices = Captioned(), []
    choose = ProfileChoice.fitting
    monkeypatch.setattr(
        ProfileChoice,
        "fitting",
        lambda self, facts, needed: choices.append(facts) or choose(self, facts, needed=needed),
    )
    with dicache.enable(pipe, error_budget=0.5, profile=fitted(pipe)) as cache:
        choices.clear()
        pipe.draw([1, 2])
        assert [facts.guidance is None for facts in choices] == [True, False], "before and after guidance is measured"
        assert choices[-1] is cache.session.run.facts


def test_a_confidence_without_any_profile_of_the_model_says_how_to_make_one():
    pipe = Captioned()
    with pytest.raises(ProfileError, match=r"no profile of this FluxTransformer2DModel.*dicache\.calibrate"):
        dicache.enable(pipe, error_budget=0.1, confidence=0.9)
    with pytest.raises(ProfileError, match="no profile"):
        dicache.enable(pipe, error_budget=dicache.Psnr(30))
    dicache.enable(pipe, error_budget=0.1).disable()


def test_a_budget_too_small_to_vouch_for_computes_everything_bitwise_and_says_so():
    pipe = Captioned()
    plain = pipe.draw([1])
    with dicache.enable(pipe, error_budget=1e-4, confidence=0.9, profile=fitted(pipe)) as cache:
        assert torch.equal(pipe.draw([1]), plain)
    assert any("smaller than the profile can vouch for with confidence 0.9" in w for w in cache.report().warnings)


def test_the_smallest_budget_that_a_report_names_is_one_that_a_level_above_zero_keeps_and_no_smaller_one_is():
    pipe = Captioned()
    profile = fitted(pipe)
    for confidence in (None, 0.8, 0.9, 0.95):
        smallest = profile.smallest(LATENT, confidence)
        told = Wanted(LATENT, float(asked(smallest)))
        assert smallest.bound <= told.bound < 1.01 * smallest.bound
        assert profile.level(smallest, confidence) > 0 and profile.level(told, confidence) > 0
        assert profile.level(Wanted(LATENT, smallest.bound * 0.999), confidence) == 0
    with dicache.enable(pipe, error_budget=1e-4, confidence=0.9, profile=profile) as cache:
        pipe.draw([1])
    least = asked(profile.smallest(LATENT, 0.9))
    assert any(warning.endswith(f"The smallest that it can is {least}.") for warning in cache.report().warnings)


def test_levels_at_which_everything_was_computed_vouch_for_nothing():
    arrays = {key: value.copy() for key, value in made_up().arrays.items()}
    arrays["work"][:, 0], arrays["loss.latent"][:, 0] = 1.0, 0.0
    profile = Profile(made_up().facts, arrays)
    smallest = profile.smallest(LATENT, 0.9)
    assert smallest.bound > 0 and profile.level(smallest, 0.9) == profile.saving == arrays["levels"][1]
    assert 0 < profile.level(Wanted(LATENT, smallest.bound * 0.999), 0.9) < profile.saving


@given(st.floats(-200, 200).filter(lambda bound: abs(bound) > 1e-9))
def test_a_budget_is_told_as_it_is_asked_for_and_never_as_a_harder_one(bound):
    told = {metric: eval(asked(Wanted(metric, bound)), vars(metrics)) for metric in ("psnr", "ssim", "mine")}
    for metric, wanted in told.items():
        assert wanted.metric == metric and wanted.bound >= bound - 1e-6 * abs(bound)
        assert wanted.bound == pytest.approx(bound, rel=0.02)
    assert float(asked(Wanted(LATENT, bound))) == told["mine"].bound


def test_a_metric_the_profile_lacks_is_an_error_that_says_which_it_has():
    pipe = Captioned()
    with (
        dicache.enable(pipe, error_budget=dicache.Psnr(30), profile=fitted(pipe)),
        pytest.raises(ProfileError, match="was not calibrated for psnr: it has latent"),
    ):
        pipe.draw([1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"error_budget": 0.1, "speedup": 2.0}, "exactly one"),
        ({"speedup": 2.0, "confidence": 0.9}, "go with error_budget. Leave them out"),
        ({"speedup": 2.0, "profile": "nearest"}, "go with error_budget. Leave them out"),
        ({"error_budget": 0.1, "confidence": 1.5}, "above 0 and below 1"),
        ({"error_budget": 0.1, "confidence": True}, "above 0 and below 1"),
        ({"error_budget": 0.1, "confidence": 0.9, "profile": "nearest"}, "drops the promise"),
        ({"speedup": 0.5}, "speedup is 0.5"),
        ({"speedup": "fast"}, "speedup is the text"),
        ({"speedup": [2.0, float("nan")]}, "speedup contains nan"),
    ],
)
def test_contradictions_are_refused_and_leave_the_model_alone(arguments, message):
    pipe = Captioned()
    with pytest.raises(ModeError, match=message):
        dicache.enable(pipe, **arguments)
    with pytest.raises(BudgetError):
        dicache.enable(pipe, error_budget=[dicache.Psnr(30), "x"])
    dicache.enable(pipe, error_budget=0.1).disable()


# Which model is this?


def test_a_model_whose_weights_are_offloaded_runs_without_a_profile_and_says_so_where_one_is_named():
    pipe = Captioned()
    pipe.transformer.to("meta")
    with dicache.enable(pipe, error_budget=0.1) as cache:
        assert isinstance(cache.session.config.controller, Planned)
    with pytest.raises(UnsupportedModelError, match="offloaded"):
        dicache.enable(pipe, error_budget=0.1, profile="nearest")
    reference = dicache.reference.pipeline()
    reference.transformer.to("meta")
    with dicache.enable(reference, error_budget=0.1) as cache:
        assert isinstance(cache.session.config.controller, Planned)


def test_the_identity_is_of_the_weights_and_of_nothing_else():
    one, other = Captioned().transformer, Captioned().transformer
    assert identity(one) == identity(other)
    with torch.no_grad():
        next(other.parameters()).mul_(1.001)
    assert identity(one) != identity(other) != identity(other.to(torch.bfloat16))
