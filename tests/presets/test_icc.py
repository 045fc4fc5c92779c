"""ICC as published: every linear layer corrected by the cut of its own weights, what lies between computed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import dicache
from dicache import presets
from dicache.config import Config
from dicache.controllers.interval import Interval
from dicache.estimators.closed_loop import ClosedLoop
from dicache.regressions.moments import Pair, WeightCuts
from dicache.sites import Linears
from helpers.fits import STEPS, fitted
from helpers.watching import strips
from pipelines.tiny import PIPELINES, make_flux

FLUX = PIPELINES["two streams and one (flux)"]


def test_all_linear_layers_but_those_that_read_the_time_are_sites():
    pipe = make_flux()
    with dicache.enable(pipe, config=Config(Interval(2), ClosedLoop(), sites=Linears())) as cache:
        FLUX.draw(pipe, [1], STEPS)
        paths = {site.path for site in cache.trace.sites}
    linear = {name for name, m in pipe.transformer.named_modules() if isinstance(m, nn.Linear) and "blocks" in name}
    assert linear - paths == {name for name in linear if "norm" in name} and paths < linear


def drawn(coefficients, interval=2):
    pipe = make_flux()
    with dicache.enable(pipe, config=presets.icc(coefficients, interval)) as cache:
        latents = FLUX.draw(pipe, [1, 2], STEPS)
    return latents, float(cache.trace.executed.sum() / cache.trace.uncached.sum()), strips(cache)


def test_at_full_rank_nothing_is_lost_and_at_low_rank_less_is_executed():
    plain = FLUX.draw(make_flux(), [1, 2], STEPS)
    full, dear, marks = drawn(fitted("low_rank", Linears(), rank=512))
    assert all("*" in strip for strip in marks)
    torch.testing.assert_close(full, plain, rtol=1e-4, atol=1e-4)
    cut, work, _ = drawn(fitted("low_rank", Linears(), rank=30))
    _, least, _ = drawn(fitted("low_rank", Linears(), rank=2))
    held, _, _ = drawn(replace_with_nothing(fitted("low_rank", Linears(), rank=2)))
    errors = [float((latents - plain).norm() / plain.norm()) for latents in (full, cut, held)]
    assert errors == sorted(errors) and errors[1] < 0.7 * errors[2]  # of 32: random weights have no smaller rank
    assert 0.5 < least < work < dear and least < 0.95


def replace_with_nothing(coefficients):
    """Maps of zeros, which hold."""
    zeros = {
        site: {k: torch.zeros_like(t) for k, t in named.items()} for site, named in coefficients.coefficients.items()
    }
    return replace(coefficients, coefficients=zeros)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_map_is_the_weighted_cut_of_the_weights(rank):
    """R^-1 [R W L]_r L^-1, with magnitudes set to 0 .. 1 over the channels of each row and at least a thousandth."""
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 5).double(), torch.randn(2, 3, 7, 6, dtype=torch.float64)
    y = layer(x).detach()
    sums = WeightCuts(layer.weight, rank)
    sums.add(Pair(1, 1, y[1], y[0], x[1], x[0]))
    sums.add(Pair(2, 2, y[1], y[0], x[1], x[0]))  # longer gaps are of values that were counted

    def weights(values):
        mean = values.abs().mean(1)
        low, high = mean.min(1, keepdim=True).values, mean.max(1, keepdim=True).values
        usual = ((mean - low) / (high - low)).sum(0)
        return usual.clamp(min=float(usual.max()) / 1000).sqrt()

    into, out = weights(x[1]), weights(y[1])
    u, s, v = torch.linalg.svd(torch.diag(into) @ layer.weight.T.detach() @ torch.diag(out))
    expected = torch.diag(1 / into) @ u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank] @ torch.diag(1 / out)
    solved = sums.solved()
    torch.testing.assert_close((solved["down"] @ solved["up"]).double(), expected, rtol=1e-4, atol=1e-5)
