"""Layers in 8-bit integers: corrected as the equations say, beside the cache, counted apart, and put back exactly."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dicache
from dicache.errors import ModeError, UnsupportedModelError
from dicache.int8 import quantise
from helpers.watching import untouched
from pipelines.tiny import PIPELINES, make_flux

FLUX = PIPELINES["two streams and one (flux)"]
STEPS = 6


def drawn(pipe, config=None):
    if config is None:
        return FLUX.draw(pipe, [1, 2], STEPS)
    with dicache.enable(pipe, config=config) as cache:
        return FLUX.draw(pipe, [1, 2], STEPS), cache.report().to_dict()


def test_layers_of_blocks_are_in_int8_and_are_put_back_as_they_were():
    pipe = make_flux()
    before, plain = dict(pipe.transformer.named_parameters()), drawn(pipe)
    quantised = quantise(pipe)
    assert quantised.layers and all(
        ".transformer_blocks." in f".{path}" or "single" in path for path in quantised.layers
    )
    assert not torch.equal(drawn(pipe), plain)
    quantised.restore()
    after = dict(pipe.transformer.named_parameters())
    assert before.keys() == after.keys() and all(after[name] is before[name] for name in before)
    assert torch.equal(drawn(pipe), plain) and untouched(pipe)


def test_the_correction_is_the_least_squares_line_of_every_channel_folded():
    pipe, seen = make_flux(), []
    quantised = quantise(pipe)
    path, layer = next((path, layer) for path, layer in quantised.layers.items() if layer.bias is not None)
    weight, bias = quantised.before[path]
    handle = layer.register_forward_hook(lambda m, args, out: seen.append((args[0].clone(), out.clone())))
    quantised.correct(lambda: drawn(pipe))
    handle.remove()
    x = torch.cat([x.flatten(0, -2) for x, _ in seen])
    q = torch.cat([out.flatten(0, -2) for _, out in seen]).double()
    o = F.linear(x, weight, bias).double()
    a = ((q - q.mean(0)) * (o - o.mean(0))).sum(0) / (q - q.mean(0)).square().sum(0)
    expected = a * q + o.mean(0) - a * q.mean(0)
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
    before, after = ((t - o).square().sum(0) for t in (q, layer(x).double()))
    assert (after <= before * 1.0001).all() and after.sum() < before.sum()


def test_the_correction_leaves_the_integers_as_they_are():
    pipe = make_flux()
    quantised = quantise(pipe)
    integers = {path: layer.weight.qdata.clone() for path, layer in quantised.layers.items()}
    quantised.correct(lambda: drawn(pipe))
    for path, layer in quantised.layers.items():
        assert torch.equal(layer.weight.qdata, integers[path])


def test_products_of_integers_are_counted_and_told_apart():
    pipe = make_flux()
    _, full = drawn(pipe, dicache.presets.fora(2))
    quantise(pipe)
    _, report = drawn(pipe, dicache.presets.fora(2))
    assert report["executed_macs"] == full["executed_macs"] and report["uncached_macs"] == full["uncached_macs"]
    assert full["executed_int8_macs"] == 0 and not any("8-bit" in text for text in full["warnings"])
    assert 0 < report["executed_int8_macs"] < report["executed_macs"]
    assert any("8-bit" in text for text in report["warnings"])


@pytest.mark.parametrize("config", [dicache.presets.fora(2), dicache.presets.teacache(0.4)])
def test_skipped_integers_are_not_counted(config):
    pipe = make_flux()
    quantise(pipe)
    (_, cached), (_, whole) = drawn(pipe, config), drawn(pipe, dicache.presets.fora(1))
    share = cached["executed_int8_macs"] / whole["executed_int8_macs"]
    assert share == pytest.approx(sum(s["computed_fraction"] for s in cached["samples"]) / 2, abs=0.1) and share < 1


def test_what_cannot_be_quantised_is_said():
    with pytest.raises(UnsupportedModelError):
        quantise(nn.Sequential(nn.Linear(4, 4)))
    pipe = make_flux()
    with dicache.enable(pipe, error_budget=0.1), pytest.raises(ModeError, match="Quantise first"):
        quantise(pipe)
    quantised = quantise(pipe)
    quantised.forget()
    for act in (quantised.restore, lambda: quantised.correct(lambda: None)):
        with pytest.raises(ModeError, match="let go"):
            act()
