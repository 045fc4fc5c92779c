"""Audits: what they find is what an uncached run shows."""

import pytest
import torch
from calibrating import STEPS, Captioned
from diffusers import DPMSolverMultistepScheduler

import dicache
from dicache.audit import Audited, summary
from dicache.errors import ModeError
from tiny import PIPELINES


def true_errors(plain, cached):
    return ((cached - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)).tolist()


@pytest.mark.parametrize("name", PIPELINES)
def test_an_audit_finds_the_error_that_an_uncached_run_shows(name):
    tiny = PIPELINES[name]
    pipe = tiny.make()
    plain = tiny.draw(pipe, [1, 2], STEPS)
    with dicache.enable(pipe, error_budget=0.5, audit=1.0) as cache:
        cached = tiny.draw(pipe, [1, 2], STEPS)
    audit = cache.report().to_dict()["audit"]
    if plain.shape[1] != 16 and "pixart" in name:  # learned variance: outputs are not shaped like the latent
        assert audit["samples"] == 0
        return
    assert audit["errors"] == pytest.approx(true_errors(plain, cached), rel=0.02, abs=1e-5)


def test_audits_follow_a_multistep_solver_and_change_nothing_of_the_run():
    pipe = Captioned()
    pipe.pipe.scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        use_dynamic_shifting=True,
        time_shift_type="exponential",
    )
    plain = pipe.draw([1, 2, 3])
    with dicache.enable(pipe, error_budget=0.5) as cache:
        unwatched = pipe.draw([1, 2, 3])
    with dicache.enable(pipe, error_budget=0.5, audit=1.0) as cache:
        cached = pipe.draw([1, 2, 3])
    assert torch.equal(cached, unwatched)
    assert cache.report().to_dict()["audit"]["errors"] == pytest.approx(true_errors(plain, cached), rel=0.02)


def test_audits_take_their_share_of_the_samples_over_runs():
    pipe = Captioned()
    with dicache.enable(pipe, error_budget=0.5, audit=0.3) as cache:
        for k in range(8):
            pipe.draw(range(6 * k, 6 * k + 6))
        found = cache.report().to_dict()["audit"]
    assert 6 <= found["samples"] <= 24 and found["within"] is not None


def test_too_few_within_budget_is_called_drift_and_chance_is_not():
    good, bad = Audited(0.04, 0.05), Audited(0.06, 0.05)
    assert not summary([good] * 88 + [bad] * 12, 0.9)["drift"]
    assert summary([good] * 75 + [bad] * 25, 0.9)["drift"]
    assert summary([], 0.9)["p"] is None and summary([good], None)["p"] is None


@pytest.mark.parametrize("audit", [-0.1, 1.5, True, "all"])
def test_a_share_that_is_none_is_refused(audit):
    with pytest.raises(ModeError, match="audit is"):
        dicache.enable(Captioned(), error_budget=0.1, audit=audit)
