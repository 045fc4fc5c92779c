"""LazyDiT's gates: fitted odds are those of the recorded errors, decide each sample by its own input, and hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

import dicache
from dicache import presets
from dicache.approximators.fitted.about import described
from dicache.approximators.fitted.sublayer_gates import CERTAIN
from dicache.errors import ModeError
from dicache.regressions.logistic import GateSamples, logistic
from dicache.regressions.moments import Pair
from dicache.sites import Sublayers
from helpers.fits import STEPS, C, fitted, made
from helpers.toy import B, N, Toy, played
from pipelines.tiny import PIPELINES, make_flux

DRAWN = np.random.default_rng(4)


@pytest.mark.parametrize("seed", range(4))
def test_a_sample_computes_where_its_own_input_makes_an_error_likely_and_after_the_longest_gap(seed):
    weight = DRAWN.normal(size=(N, C)).astype(np.float32)
    bias = DRAWN.normal(size=(N, 3)).astype(np.float32)
    toy = Toy.drawn(seed, (5, C))
    toy.feature = 5 * (toy.feature.mean(2) - 2)
    gates = made("gate", {"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    gates = replace(gates, about=replace(gates.about, sites=described(Sublayers())))
    strips, handed = played(presets.lazydit(gates, 0.4), toy)
    for b in range(B):
        last, strip = None, ""
        for i in range(N):
            gap = N if last is None else i - last
            odds = 1.0 if gap > 3 else expit(toy.feature[i, b] @ weight[i] + bias[i, gap - 1])
            last = i if odds >= 0.4 else last
            np.testing.assert_array_equal(handed[i, b], toy.output[last, b])
            strip += "#" if odds >= 0.4 else "="
        assert strips[b] == strip
    assert len(set(strips)) > 1 and any("=" in strip for strip in strips)


def test_without_inputs_the_odds_are_how_often_the_errors_were_above():
    groups = np.repeat([0, 1], 50)
    over = np.concatenate([np.arange(50) < 10, np.arange(50) < 40])
    _, b = logistic(np.zeros((100, 2)), groups, over, 0.1)
    np.testing.assert_allclose(expit(b), [0.2, 0.8], atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_regression_is_at_the_least_of_its_convex_loss(seed):
    random = np.random.default_rng(seed)
    z, groups = random.normal(size=(40, 3)), random.integers(0, 2, 40)
    over, ridge = z[:, 0] + 0.5 * random.normal(size=40) > 0, 0.05

    def loss(w, b):
        margin = np.where(over, 1, -1) * (z @ w + b[groups])
        return np.log1p(np.exp(-margin)).mean() + ridge / 2 * w @ w + 1e-4 / 2 * b @ b

    w, b = logistic(z, groups, over, ridge)
    least = loss(w, b)
    for _ in range(50):
        assert loss(w + 0.05 * random.normal(size=3), b + 0.05 * random.normal(size=2)) > least
    assert w[0] > abs(w[1:]).max()


def test_samples_are_told_apart_and_gaps_that_were_never_seen_always_compute():
    torch.manual_seed(0)
    samples = GateSamples(4, 2, 1e-3, 0.5)
    for _ in range(8):
        hard = torch.arange(B) % 2
        x = torch.randn(B, 6, C) + 5 * hard[:, None, None] * torch.eye(C)[0]
        then = torch.randn(B, 6, C)
        for gap in (1, 2):
            samples.add(Pair(2, gap, then * (1 + hard[:, None, None]), then, x, x))
    named = samples.solved()
    gates = made("gate", named, longest=2).approximator()
    easy, hard = torch.zeros(1, C), 5 * torch.eye(C)[:1]
    sigma = gates.sigmas[2]
    assert gates.odds("", sigma, easy, torch.tensor([1])) < 0.5 < gates.odds("", sigma, hard, torch.tensor([1]))
    assert (named["bias"][3] == CERTAIN).all() and gates.odds("", sigma, easy, torch.tensor([3])) == 1


def test_masks_differ_within_a_batch():
    pipe = make_flux()
    with dicache.enable(pipe, config=presets.lazydit(fitted("gate", threshold=0.3))) as cache:
        PIPELINES["two streams and one (flux)"].draw(pipe, [1, 2, 3], STEPS)
    actions = torch.stack([record.action for record in cache.trace.records])  # (steps, B, S)
    assert (actions != actions[:, :1]).any() and 0 < (actions == 0).double().mean() < 1


def test_a_fit_of_another_kind_is_refused():
    with pytest.raises(ModeError, match="kind='gate'"):
        presets.lazydit(fitted("ridge"))
