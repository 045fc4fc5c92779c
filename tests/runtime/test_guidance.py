"""Guidance branches: which rows are branches of one sample, what they are mixed by, and errors of the mixed output."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dicache.planning.error_law import GUIDED, REMAINS
from dicache.runtime.guidance import Guided, denoised, samples_of
from dicache.solvers.mixture import fit, parallel
from dicache.tensors.tree import to_host
from dicache.types import Step, Timetable
from helpers.stepping import a_step, numbers

SHARES = st.floats(1.1, 9.0)
ONE = numbers(1.0, 1.0)


def drawn(*shape: int, seed: int = 0, **options) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def mixed(*weights: float, order=("cond", "uncond"), widths=(1, 1), samples: int = 2) -> Guided:
    """Of a mixture that is the same for all samples, as a step leaves it."""
    mixture = torch.tensor(weights, dtype=torch.float64)[:, None].expand(-1, samples).clone()
    return Guided(order, widths, mixture)


# Which rows are of one sample.


@given(samples=st.integers(1, 4), chunks=st.integers(1, 3), calls=st.integers(1, 3))
def test_a_step_has_as_many_samples_as_its_latents_repeat(samples, chunks, calls):
    before, after = (drawn(samples, 4, seed=s).repeat(chunks, 1) for s in (0, 1))
    outputs = [drawn(samples * chunks, 4, seed=2 + call) for call in range(calls)]
    assert samples_of([before, after], outputs) == samples


def test_calls_of_one_step_may_have_different_numbers_of_branches():
    latent = drawn(2, 4).repeat(2, 1)
    assert samples_of([latent, latent + 1], [drawn(4, 4, seed=1), drawn(2, 4, seed=2)]) == 2
    assert samples_of([latent, latent + 1], [drawn(4, 4, seed=1), drawn(6, 4, seed=2)]) == 2
    assert samples_of([latent, latent + 1], [drawn(4, 4, seed=1), drawn(3, 4, seed=2)]) == 0
    assert samples_of([drawn(3, 4)], [drawn(3, 4, seed=1), drawn(2, 4, seed=2)]) == 0


def test_equal_outputs_of_equal_latents_are_samples_of_one_seed_unless_another_call_needs_them_to_be_branches():
    latent, output = drawn(1, 4).repeat(2, 1), drawn(1, 4, seed=1).repeat(2, 1)
    assert samples_of([latent, latent], [output]) == 2
    assert samples_of([latent, latent], [output, drawn(1, 4, seed=2)]) == 1


@pytest.mark.parametrize("axis", [1, 2])
def test_pictures_to_go_by_are_joined_behind_what_is_denoised(axis):
    own, beside = drawn(2, 3, 5), drawn(2, 3, 5, seed=1)
    assert torch.equal(denoised(torch.cat([own, beside], dim=axis), own), own)
    assert denoised(own, own) is own
    shorter = own.narrow(axis, 0, 2)
    assert denoised(shorter, own) is shorter, "there is nothing to take off"
    assert denoised(drawn(2, 4, 6), own).shape == (2, 4, 6), "two axes are longer, so nobody knows which is which"
    assert denoised(drawn(2, 15), own).shape == (2, 15)


# The mixture.


@given(scale=SHARES, p=st.floats(0.5, 1.5), c=st.floats(0.05, 2), seed=st.integers(0, 99))
def test_any_step_that_is_linear_shows_how_it_mixed_three_branches(scale, p, c, seed):
    before, *outputs = (drawn(2, 4, 8, seed=4 * seed + k, dtype=torch.float64) for k in range(4))
    weights = (scale, 2.0 - scale, -1.0)
    after = p * before - c * sum(w * v for w, v in zip(weights, outputs, strict=True))
    expected = numbers(*weights)[:, None].expand(3, 2)
    torch.testing.assert_close(fit(before, after, outputs), expected, rtol=1e-6, atol=1e-6)


@given(scale=SHARES, seed=st.integers(0, 99))
def test_where_noise_is_drawn_anew_the_shares_are_measured_of_a_sum_that_is_known(scale, seed):
    before, cond, uncond, noise = (drawn(2, 4, 400, seed=4 * seed + k, dtype=torch.float64) for k in range(4))
    p, c, strength = 0.9, -0.2, 0.02
    after = p * before + c * (scale * cond + (1 - scale) * uncond) + strength * noise
    mixture = fit(before, after, [cond, uncond], (p, c))
    torch.testing.assert_close(mixture.sum(0), ONE)
    assert mixture[0].tolist() == pytest.approx([scale, scale], abs=0.02)


def test_what_no_step_moves_says_nothing_of_the_mixture():
    """Tokens to go by stand beside the latent: whatever is predicted there, nothing is made of it."""
    before, cond, uncond = (drawn(2, 6, 8, seed=k, dtype=torch.float64) for k in range(3))
    after = before - 0.1 * (3 * cond - 2 * uncond)
    after[:, 4:] = before[:, 4:]
    torch.testing.assert_close(fit(before, after, [cond, uncond])[0], numbers(3, 3), rtol=1e-6, atol=1e-6)


def test_each_sample_has_a_mixture_of_its_own():
    before, cond, uncond = (drawn(2, 4, 8, seed=k, dtype=torch.float64) for k in range(3))
    scales = numbers(2.0, 7.0)
    after = before - 0.1 * (uncond + scales[:, None, None] * (cond - uncond))
    torch.testing.assert_close(fit(before, after, [cond, uncond]), torch.stack([scales, 1 - scales]))


def test_one_branch_or_outputs_of_another_shape_count_in_full():
    before, output = drawn(2, 4), drawn(2, 4, seed=1)
    assert torch.equal(fit(before, before - output, [output]), torch.ones(1, 2, dtype=torch.float64))
    assert torch.equal(fit(before, before, [output, output[:, :2]]), torch.ones(2, 2, dtype=torch.float64))
    assert torch.equal(fit(before, drawn(2, 5), [output, output]), torch.ones(2, 2, dtype=torch.float64))


@given(weight=st.floats(-3, 3), tilt=st.floats(1e-3, 1))
def test_of_outputs_that_are_combinations_of_each_other_nothing_can_be_told(weight, tilt):
    latent, output, other = (drawn(2, 4, 8, seed=k) for k in range(3))
    assert parallel(latent, [output, weight * output + (1 - weight) * latent])
    assert not parallel(latent, [output, output + tilt * other])
    assert not parallel(latent, [output[:, :2], output])


# The sums of a step.


@given(scale=SHARES, seed=st.integers(0, 99))
def test_the_truth_and_every_guess_are_mixed_alike(scale, seed):
    cond, uncond, guess, guessed = (drawn(2, 4, seed=4 * seed + k) for k in range(4))
    guided = mixed(scale, 1 - scale)
    guided.add("cond", cond, {0: guess})
    guided.handed("cond", cond)
    assert not guided.complete, "one branch is still to come"
    guided.add("uncond", uncond, {0: guessed})
    guided.handed("uncond", uncond)
    assert guided.complete and not guided.changed
    torch.testing.assert_close(guided.truth, scale * cond + (1 - scale) * uncond, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(guided.guesses[0], scale * guess + (1 - scale) * guessed, rtol=1e-4, atol=1e-4)


@given(scale=SHARES)
def test_who_had_no_guess_of_a_branch_missed_nothing_by_it(scale):
    cond, uncond, guess = (drawn(2, 4, seed=k) for k in range(3))
    for first in (True, False):
        guided = mixed(scale, 1 - scale)
        guided.add("cond", cond, {0: guess} if first else {})
        guided.add("uncond", uncond, {} if first else {0: guess})
        missed = scale * (guess - cond) if first else (1 - scale) * (guess - uncond)
        torch.testing.assert_close(guided.guesses[0] - guided.truth, missed, rtol=1e-4, atol=1e-4)


@given(scale=SHARES)
def test_chunks_of_one_call_are_mixed_like_calls_of_their_own(scale):
    cond, uncond = drawn(2, 4), drawn(2, 4, seed=1)
    apart, together = mixed(scale, 1 - scale), mixed(scale, 1 - scale, order=("main",), widths=(2,))
    apart.add("cond", cond, {})
    apart.add("uncond", uncond, {})
    together.add("main", torch.cat([cond, uncond]), {})
    torch.testing.assert_close(apart.truth, together.truth)


def test_the_truth_is_a_tensor_of_its_own_and_the_outputs_of_pipelines_may_change():
    output = drawn(2, 4)
    guided, expected = mixed(1.0, order=("main",), widths=(1,)), output.clone()
    guided.add("main", output, {})
    guided.handed("main", output)
    output.zero_()
    assert torch.equal(guided.truth, expected)
    unknown, output = Guided(), drawn(2, 4)
    unknown.handed("main", output)
    output.zero_()
    assert torch.equal(unknown.outputs["main"], expected), "the mixture is still to be measured from it"


def test_errors_are_relative_to_the_mixed_output_and_its_length_to_the_final_latent():
    """A final latent of length 10, an output of 5 that is missed by 1, and by nothing."""
    guided = mixed(1.0, order=("main",), widths=(1,), samples=1)
    output = torch.tensor([[3.0, 4.0, 0.0]])
    guided.add("main", output, {0: output + torch.tensor([[0.0, 0.0, 1.0]]), 2: output.clone()})
    latent = torch.tensor([[3.0, -4.0, 10.0]])
    errors, scale, (first,) = guided.measure(latent + 0.5 * output, (1.0, -0.5), 3, torch.tensor([7]))
    assert first.tolist() == [7]
    assert errors[0, [0, 2]].tolist() == pytest.approx([0.2, 0.0]) and errors[0, 1].isnan()
    assert scale.item() == pytest.approx(5 / math.sqrt(125))


def test_equal_guesses_miss_by_exactly_nothing_whatever_they_are_mixed_by():
    cond, uncond = drawn(2, 40), drawn(2, 40, seed=1)
    guided = mixed(7.3, -6.3)
    guided.add("cond", cond, {0: cond.clone()})
    guided.add("uncond", uncond, {0: uncond.clone()})
    errors, *_ = guided.measure(drawn(2, 40, seed=2), (1.0, -0.5), 1, torch.tensor([-1, -1]))
    assert errors.tolist() == [[0.0], [0.0]]


def test_the_final_latent_is_the_latent_where_outputs_are_of_another_shape():
    guided = mixed(1.0, order=("main",), widths=(1,), samples=1)
    guided.add("main", torch.tensor([[3.0, 4.0]]), {})
    _, scale, _ = guided.measure(torch.tensor([[6.0, 8.0, 0.0, 0.0]]).view(1, 2, 2), (9.0, 9.0), 1, torch.tensor([-1]))
    assert scale.item() == pytest.approx(0.5)


# Who is who.


def test_branches_are_told_by_their_names_or_their_place_and_by_the_solvers_call():
    guided = Guided()
    assert guided.branch("cond") == "cond" and guided.branch(None) == "call 0"
    guided.handed("call 0", drawn(2, 4))
    assert guided.branch(None) == "call 1" and guided.branch(None, 1) == "call 0, part 1"
    guided.handed(guided.branch("cond", 1), drawn(2, 4))
    assert guided.came("cond", 1) and not guided.came("cond", 0) and not guided.came(None, 0)


@given(scale=SHARES)
def test_the_strongest_branch_says_what_is_left_of_an_error(scale):
    before, cond, uncond = (drawn(2, 4, 8, seed=k) for k in range(3))
    guided = Guided()
    guided.handed("uncond", uncond)
    guided.handed("cond", cond)
    after = before - 0.1 * (uncond + scale * (cond - uncond))
    measured = guided.fitted(before, after, a_step())
    assert measured.strongest == ("cond", 0) and measured.told_apart
    torch.testing.assert_close(measured.strength, numbers(scale, scale), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        measured.surviving_share, REMAINS / numbers(scale, scale).clamp(max=GUIDED), rtol=1e-3, atol=0
    )
    assert measured.streams == [("uncond", 0), ("cond", 0)] and measured.all_came
    made = measured.made_of(2)
    torch.testing.assert_close(made, uncond + scale * (cond - uncond), rtol=1e-2, atol=1e-2)


def test_one_branch_is_stronger_than_no_other():
    guided = Guided()
    guided.handed("main", drawn(2, 4))
    measured = guided.fitted(drawn(2, 4, seed=1), drawn(2, 4, seed=2), a_step())
    assert not measured.told_apart and measured.strength.tolist() == [1.0, 1.0]
    assert measured.surviving_share.tolist() == [REMAINS, REMAINS]
    assert torch.equal(measured.made_of(2), guided.outputs["main"])


@given(scale=SHARES, first=st.floats(0.2, 0.8))
def test_the_calls_of_one_step_share_out_their_branchs_weight_as_the_solver_weighs_them(scale, first):
    weights, samples = (first, 1 - first), 2
    before = drawn(samples, 4, 8, dtype=torch.float64)
    guided, total = Guided(), torch.zeros_like(before)
    for part, weight in enumerate(weights):
        for k, (name, share) in enumerate((("cond", scale), ("uncond", 1 - scale))):
            output = drawn(samples, 4, 8, seed=3 * part + k + 1, dtype=torch.float64)
            guided.handed(guided.branch(name, part), output)
            total += weight * share * output
    measured = guided.fitted(before, before - 0.1 * total, a_step(weights=weights))
    expected = [first * scale, first * (1 - scale), (1 - first) * scale, (1 - first) * (1 - scale)]
    torch.testing.assert_close(measured.mixture[:, 0], numbers(*expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measured.strength, numbers(scale, scale), rtol=1e-5, atol=1e-6)
    shorter = measured.next_step(1)
    assert shorter.order == ("cond", "uncond") and shorter.outputs == {}
    torch.testing.assert_close(shorter.mixture[:, 0], numbers(scale, 1 - scale), rtol=1e-5, atol=1e-6)
    assert measured.next_step(2).mixture is measured.mixture


def test_a_branch_that_was_not_measured_is_another_and_forgetting_it_forgets_what_follows():
    guided = mixed(3.0, -2.0)
    guided.handed("cond", drawn(2, 4))
    assert guided.changed and not guided.all_came, "one is missing"
    guided.handed("uncond", drawn(2, 4))
    assert not guided.changed
    guided.handed("a third", drawn(2, 4))
    assert guided.changed
    forgotten = guided.unmixed()
    assert forgotten.mixture is None and forgotten.surviving_share is None and forgotten.strongest is None
    assert not forgotten.changed and set(forgotten.outputs) == {"cond", "uncond", "a third"}
    guided.add("a third", drawn(2, 4), {})
    assert guided.truth is None, "what has no weight is not added"


def test_a_watched_loop_waits_until_its_outputs_can_be_told_apart():
    latent, output = drawn(2, 4, 8), drawn(2, 4, 8, seed=1)
    guided = Guided(watched=True)
    guided.handed("call 0", output)
    guided.handed("call 1", 2 * output)
    assert guided.fitted(latent, latent - output, a_step()) is guided
    assert Guided(watched=False, outputs=guided.outputs).fitted(latent, latent - output, a_step()).mixture is not None


@given(scale=SHARES, other=SHARES, rounding=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_a_mixture_is_held_against_what_a_later_step_made_of_its_outputs(scale, other, rounding):
    before, cond, uncond = (drawn(2, 4, 4000, seed=k).to(rounding) for k in range(3))
    guided = mixed(scale, 1 - scale)
    for name, output in (("cond", cond), ("uncond", uncond)):
        guided.handed(name, output)
        guided.add(name, output, {})
    after = (0.9 * before.double() - 0.1 * (other * cond.double() + (1 - other) * uncond.double())).to(rounding)
    step: Step = a_step(solved=(0.9, -0.1), alone=True)
    now = guided.remeasured(before, after, step, to_host(guided.surprise(before, after, step)))
    moved = abs(scale - other) * 2**0.5 / (scale**2 + (1 - scale) ** 2) ** 0.5  # outputs are as good as orthogonal
    if moved < 0.03:
        assert now is None
    elif moved > 0.07:
        assert now.strength.tolist() == pytest.approx([other, other], rel=0.05)
        assert not guided.surprise(before, after, step._replace(alone=False))
        cond.add_(1)
        assert not guided.surprise(before, after, step), "nobody knows what the solver was given"


def test_under_new_noise_the_mixture_is_measured_of_what_the_solver_is_known_to_make():
    timetable = Timetable((1.0, 0.5), (0.5, 0.5), (-1.0, 1.0), 0, random=True)
    before, cond, uncond, noise = (drawn(2, 4, 400, seed=k, dtype=torch.float64) for k in range(4))
    after = 0.8 * before - 0.3 * (4 * cond - 3 * uncond) + 0.3 * noise
    guided = Guided()
    guided.handed("cond", cond)
    guided.handed("uncond", uncond)
    step: Step = a_step(timetable=timetable, solved=(0.8, -0.3))
    assert guided.fitted(before, after, step).strength.tolist() == pytest.approx([4.0, 4.0], abs=0.2)
