"""Single gaps injected into exact runs: what is played is what was drawn, and weights that made the changes are found
again.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch

import dicache
from dicache.config import Config
from dicache.controllers.fixed import Fixed
from dicache.measuring.gap_weights import FIRST, Played, SingleGap, gaps_of, play, schedules, weights
from dicache.measuring.prompt_runs import Drawer
from helpers.calibrating import GUIDED, PROMPTS, STEPS, Captioned


def test_half_of_the_schedules_of_a_prompt_have_one_gap_and_prompts_in_turn_reach_all_steps():
    count, reached = 4, set()
    for position in range(40):
        rows = schedules(position, count, STEPS, seed=0)
        assert rows.shape == (2 * count, STEPS) and rows[:, : FIRST + 1].all()
        gaps = [gaps_of(mask, STEPS) for mask in rows[:count]]
        assert all(len(some) == 1 for some in gaps)
        reached |= {some[0].after for some in gaps}
    assert reached == set(range(FIRST, STEPS - 1))
    np.testing.assert_array_equal(schedules(3, count, STEPS, seed=0), schedules(3, count, STEPS, seed=0))


def test_a_gap_knows_the_computed_step_before_it_and_how_far_back_the_last_one_lies():
    mask = np.array([1, 1, 0, 0, 1, 0, 1, 1, 0], dtype=bool)
    assert gaps_of(mask, 9) == [SingleGap(1, 1, 2), SingleGap(4, 3, 1), SingleGap(7, 1, 1)]
    assert gaps_of(mask, 2)[1] == SingleGap(4, 2, 1)


def test_what_is_played_is_what_a_run_by_these_steps_draws():
    pipe, rows = Captioned(), np.ones((3, STEPS), dtype=bool)
    rows[0, 5], rows[1, 6:8] = False, False
    plain = pipe.draw([5])
    drawer = Drawer(pipe, PROMPTS, STEPS, seed=0, call=GUIDED, images=False)
    played = play(drawer, 5, rows, plain, batch=2)
    np.testing.assert_array_equal(played.masks, rows)
    assert played.change[2] == 0 and played.cosine.shape == (2, 2)
    assert played.cosine.diagonal() == pytest.approx([1.0, 1.0], abs=1e-5)
    for row, change in zip(rows[:2], played.change, strict=False):
        config = Config(Fixed((frozenset(np.flatnonzero(row).tolist()),)))
        with dicache.enable(pipe, config=config):
            alone = pipe.draw([5])
        assert change == pytest.approx(float((alone - plain).norm() / plain.norm()), rel=1e-3)


@pytest.mark.parametrize("lean", [0.0, 0.3])
def test_weights_that_made_the_changes_are_found_again(lean):
    """Errors made early are forgotten; neighbouring gaps lean the same way by `lean`."""
    prompts, count, reach, rng = 8, 8, 9, np.random.default_rng(0)
    true = np.exp(-2 + 2 * np.arange(STEPS + 1) / STEPS)
    local = 0.01 * np.arange(1, reach + 1) * np.ones((prompts, STEPS, reach, reach))
    played = []
    for prompt in range(prompts):
        rows = schedules(prompt, count, STEPS, seed=0)
        hard, squares = rng.lognormal(0, 0.2), []
        for mask in rows:
            error = [
                local[prompt, g.after, g.back - 1, g.steps - 1] * true[g.after + g.steps + 1]
                for g in gaps_of(mask, reach)
            ]
            together = 2 * lean * sum(a * b for a, b in pairwise(error))
            squares.append(hard**2 * (sum(e**2 for e in error) + together))
        cosine = np.full((count, count), lean)
        played.append(Played(rows, np.sqrt(squares), cosine))
    found, correlation = weights(played, local)
    assert found.shape == (STEPS + 1, reach, reach)
    assert correlation[0] == pytest.approx(lean)
    ends = range(FIRST + 2, STEPS)
    assert [found[end, 0, 0] / found[STEPS - 1, 0, 0] for end in ends] == pytest.approx(
        true[ends] / true[STEPS - 1], rel=0.1
    )
    assert torch.tensor(found).isfinite().all()
