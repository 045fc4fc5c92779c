"""SenCache's threshold for a model that nobody swept, from the run that its table was made on."""

import numpy as np
import pytest
import torch

import dicache
from dicache import presets
from dicache.errors import ModeError
from dicache.presets import SensitivityTable, measure_sensitivities
from dicache.presets.parts.sencache import threshold_for
from helpers.watching import strips
from pipelines.tiny import PIPELINES, make_flux

FLUX, STEPS = PIPELINES["two streams and one (flux)"], 12


@pytest.fixture(scope="module")
def measured():
    """A table, and the latents that the denoiser was called with."""
    pipe, latents = make_flux(), []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: latents.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )

    def draw():
        FLUX.draw(pipe, [1, 2], STEPS)

    draw()
    handle.remove()
    sigmas = pipe.scheduler.sigmas[:STEPS].tolist()
    return measure_sensitivities(pipe.transformer, draw, sigmas), torch.stack(latents), sigmas


def test_the_errors_of_all_pairs_are_those_of_the_estimate(measured):
    table, latents, sigmas = measured
    x = latents.double().numpy()
    moved = np.sqrt(((x[:, None] - x) ** 2).mean(axis=tuple(range(2, x.ndim + 1))))
    waited = np.abs(np.subtract.outer(sigmas, sigmas))
    expected = np.array(table.latent)[:, None] * moved + np.array(table.time)[:, None] * waited
    np.testing.assert_allclose(np.array(table.errors), expected, rtol=1e-4, atol=1e-6)


def made_up(steps: int, seed: int) -> SensitivityTable:
    """Errors that grow with the gap, at another pace from every anchor."""
    pace = np.random.default_rng(seed).lognormal(0, 0.7, steps)
    errors = pace[:, None] * np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
    return SensitivityTable(tuple(pace), tuple(pace), tuple(map(tuple, errors.tolist())))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("work", [0.3, 0.5, 0.8, 1.0])
def test_the_threshold_found_computes_what_was_asked_for_and_a_little_less_computes_more(seed, work):
    table = made_up(20, seed)
    found = threshold_for(table, work, 0.1, 10)
    assert len(table.computed(found, 0.1 * found, 10)) <= work * 20
    below = found * 0.99
    assert len(table.computed(below, 0.1 * below, 10)) > work * 20 or work == 1


def test_a_run_at_the_found_threshold_computes_what_was_asked_for():
    pipe = make_flux()

    def draw():
        FLUX.draw(pipe, [1], STEPS)

    draw()
    table = measure_sensitivities(pipe.transformer, draw, pipe.scheduler.sigmas[:STEPS].tolist())
    done = []
    for work in (0.75, 0.5, 0.34):
        with dicache.enable(pipe, config=presets.sencache(table, work=work)) as cache:
            draw()
        computed, bound = strips(cache)[0].count("#"), round(work * STEPS)
        assert bound - 2 <= computed <= bound + 1
        done.append(computed)
    assert done == sorted(done, reverse=True)


def test_both_thresholds_are_scaled_and_no_gap_is_longer_than_allowed():
    table = made_up(20, 0)
    rule = presets.sencache(table, 0.2, early=0.02, work=0.5, longest=3).controller
    assert rule.inner.early == pytest.approx(0.1 * rule.inner.threshold) and rule.longest == 3
    chosen = table.computed(1e9, 1e9, 3)
    assert chosen == list(range(0, 20, 4))


@pytest.mark.parametrize("work", [0.0, 0.05, 1.2, -1.0, float("nan")])
def test_a_share_that_cannot_be_had_is_refused(work):
    with pytest.raises(ModeError, match="Expected a share of the 20 steps"):
        presets.sencache(made_up(20, 0), work=work)


def test_a_table_without_a_run_is_refused():
    with pytest.raises(ModeError, match="measure_sensitivities"):
        presets.sencache(SensitivityTable((1.0,) * 5, (1.0,) * 5), work=0.5)
