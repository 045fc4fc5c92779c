"""Layers that are removed one after another, from all steps but the first."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import dicache
from dicache.finders import Calibration, Nested
from dicache.sites import Spans
from dicache.types import Action
from helpers.calibrating import PROMPTS

FINDER = Nested(columns=True, fill=Action.ZERO, least=0.4)


@pytest.fixture(scope="module")
def removed(pipe):
    calibration = Calibration(PROMPTS[:2], 4, call={"guidance": 4.0})
    measurements = calibration.on(pipe, Spans(1))
    return measurements, FINDER.tables(measurements, None, 0)


def test_one_layer_goes_at_a_time_that_whose_loss_costs_least(removed):
    measurements, tables = removed
    gone = [frozenset(np.flatnonzero((table == Action.ZERO).any(0)).tolist()) for table in tables]
    assert [len(layers) for layers in gone] == list(range(len(tables))) and len(tables) > 2
    for fewer, more in pairwise(gone):
        assert fewer < more
    for table, layers in zip(tables, gone, strict=True):
        assert not table[0].any() and (table[1:, sorted(layers)] == Action.ZERO).all()
    masks = [np.ones(measurements.basis.shape, dtype=bool) for _ in range(measurements.basis.shape[1])]
    for site, mask in enumerate(masks):
        mask[1:, site] = False
    losses = measurements.errors([measurements.filled(mask, Action.ZERO) for mask in masks]).mean(1)
    saved = [cell.macs for cell in measurements.basis.cells]
    assert gone[1] == {int(np.argmin(losses / saved))}


def test_a_removed_layer_does_not_run_after_the_first_step(pipe, removed):
    measurements, tables = removed
    schedule = FINDER.schedules(measurements, [tables[2]], 0)[0]
    calls = dict.fromkeys(np.flatnonzero((tables[2] == Action.ZERO).any(0)).tolist(), 0)
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    with dicache.enable(pipe, schedule=schedule):
        pipe.draw([0], steps=4)  # costs are counted

        def count(site):
            def counted(module, args, output):
                calls[site] += 1

            return blocks[site].attn.register_forward_hook(counted)

        handles = [count(site) for site in calls]
        latents = pipe.draw([0], steps=4)
        for handle in handles:
            handle.remove()
    rows = measurements.basis.rows[0]
    assert all(number == rows for number in calls.values()) and torch.isfinite(latents).all()
