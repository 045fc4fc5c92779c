"""Exact cases are exact, and the parts that no preset uses do what they say."""

import math
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

import dicache
from dicache import presets
from dicache.approximators.alignment import Align
from dicache.approximators.base import Target
from dicache.approximators.newton import Newton
from dicache.approximators.taylor import Taylor
from dicache.config import Config
from dicache.controllers.threshold import Threshold
from dicache.errors import UnsupportedModelError
from dicache.estimators.base import Evidence
from dicache.estimators.relative_change import RelativeChange
from dicache.presets.parts.foca import FoCa
from dicache.presets.parts.magcache import measure_ratios, nearest
from dicache.presets.parts.racer import Disagreement
from dicache.presets.parts.seacache import SpectrumFiltered, gains
from dicache.presets.parts.sencache import measure_sensitivities
from dicache.presets.parts.teacache import Polynomial
from dicache.probes.base import Probe, View
from dicache.probes.first_blocks import FirstBlocks
from dicache.probes.first_blocks_residual import FirstBlocksResidual
from dicache.probes.modulated_input import ModulatedInput
from dicache.probes.raw_latent import RawLatent
from helpers.toy import TIMETABLE, UNEVEN, N, histories_at, step
from pipelines.tiny import PIPELINES, STEPS, make_flux

FLUX = PIPELINES["two streams and one (flux)"]


@given(times=UNEVEN, order=st.integers(1, 3))
def test_polynomials_of_their_order_are_exact_at_uneven_times(times, order):
    coefficients = torch.randn(order + 1, 2, 3, dtype=torch.float64)

    def value(sigma, degree=order):
        return sum(c * sigma**k for k, c in enumerate(coefficients[: degree + 1]))

    guess = Newton(order).guess(histories_at(times[: order + 1], value), Target(times[order + 1], None))
    torch.testing.assert_close(guess, value(times[order + 1]), rtol=1e-6, atol=1e-6)
    for linear in (Taylor(order), FoCa()):
        histories = histories_at(times[: linear.needs], lambda sigma: value(sigma, 1))
        guess = linear.guess(histories, Target(times[linear.needs], None))
        torch.testing.assert_close(guess, value(times[linear.needs], 1), rtol=1e-6, atol=1e-6)


def test_alignment_is_exact_where_probe_and_output_go_along_a_line():
    value = feature = lambda sigma: torch.full((2, 3), 3 - 2 * sigma)
    guess = Align().guess(histories_at((1.0, 0.8), value, feature), Target(0.7, value(0.7)))
    torch.testing.assert_close(guess, value(0.7))


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


def test_a_table_of_another_length_is_read_at_the_nearest_step():
    assert [nearest((1, 2, 3), i, 6) for i in range(6)] == [1, 1, 2, 2, 3, 3]
    assert nearest((1, 2, 3), 0, 1) == 1


def test_the_tables_of_a_model_are_measured_along_its_run():
    pipe = make_flux()
    pipe.scheduler.set_timesteps(STEPS)
    sigmas = pipe.scheduler.sigmas[:STEPS].tolist()
    ratios = measure_ratios(pipe.transformer, lambda: FLUX.draw(pipe, [1, 2], STEPS), STEPS)
    table = measure_sensitivities(pipe.transformer, lambda: FLUX.draw(pipe, [1, 2], STEPS), sigmas)
    assert [len(column) for column in (ratios, *table)] == [STEPS] * 4
    assert all(math.isfinite(number) and number > 0 for column in (ratios, *table[:2]) for number in column)
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
    looked = Looked(FirstBlocks(), FirstBlocksResidual(), ModulatedInput(), RawLatent())
    pipe = make_flux()
    with dicache.enable(pipe, config=Config(Threshold(0.0), probe=looked)) as cache:
        FLUX.draw(pipe, [1, 2], 4)
        assert torch.equal(looked.features.pop(), cache.session.run.latent)
    after, added, modulated = looked.features
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
    for half_log_snr in (-3.0, 0.0, 3.0):
        gain = gains(8, 8, 2.0, half_log_snr)
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
        a = math.exp(TIMETABLE.half_log_snrs[index])  # b = 1
        frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None, :])
        power = np.where(frequency == 0, 1.0, frequency) ** -2
        power = power / power[frequency > 0].mean()
        gain = np.where(frequency == 0, 1 / a, a * power / (a * a * power + 1))
        gain = gain / gain.mean()
        image = feature.numpy().reshape(2, *size, 3)
        expected = np.fft.ifft2(np.fft.fft2(image, axes=(1, 2)) * gain[None, :, :, None], axes=(1, 2)).real
        np.testing.assert_allclose(found.numpy(), expected.reshape(2, tokens, 3), rtol=1e-4, atol=1e-5)
    adrift = view._replace(step=view.step._replace(timetable=None))
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
