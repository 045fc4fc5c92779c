"""Ranks that have parts of the tokens decide alike, draw the same, and what one process draws."""

import pytest
import torch
from ranks.processes import CELLS, STEPS, VIDEO, draw_cells, drawn, run

from pipelines import tiny


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    ranks = run(draw_cells, tmp_path_factory.mktemp("ranks"))
    assert all(isinstance(rank, dict) for rank in ranks), ranks
    return ranks


@pytest.fixture(scope="module")
def alone():
    return {way: drawn(tiny.make_flux, tiny.draw_flux, way) for way, _ in CELLS}


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
def test_ranks_decide_alike_and_draw_what_one_process_does(cells, alone, cell):
    first, second = (rank[cell] for rank in cells)
    assert first["actions"] == second["actions"] == alone[cell[0]]["actions"]
    assert any(action != "compute" for sample in first["actions"] for step in sample for action in step), (
        "something was skipped"
    )
    assert torch.equal(first["latents"], second["latents"])
    assert torch.allclose(first["latents"], alone[cell[0]]["latents"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
def test_a_step_takes_one_exchange_at_most_and_whole_evaluations_none(cells, cell):
    at_begin = 1
    assert at_begin <= cells[0][cell]["exchanges"] <= at_begin + (0 if cell[0] == "whole" else STEPS)


def test_a_site_at_which_tokens_are_parted_sees_the_part_in_either_order(cells):
    one = drawn(tiny.make_wan, tiny.draw_wan, "first-block probe", **VIDEO)
    first, second = (rank["wan"] for rank in cells)
    assert first["actions"] == second["actions"] == one["actions"]
    assert torch.equal(first["latents"], second["latents"])
    assert torch.allclose(first["latents"], one["latents"], atol=1e-4, rtol=1e-4)
