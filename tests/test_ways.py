"""Fitted ways: a budget stands for the fastest that loses no more, what was fitted is what runs, every sample follows
its own, and a profile that holds damaged ones is refused.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from calibrating import GUIDED, PROMPTS, STEPS, ByHand, Captioned, calibrated, made_up
from hypothesis import given
from hypothesis import strategies as st

import dicache
from dicache.approximators.hold import Reuse
from dicache.calibration import calibrate
from dicache.config import Config
from dicache.config import calibrated as by_profile
from dicache.controllers.fixed import masks
from dicache.controllers.on_ways import OnWays
from dicache.controllers.promised import Level
from dicache.errors import ProfileError
from dicache.finders.along import along, uncached
from dicache.metrics import relative_error
from dicache.profile import Profile, load_profile
from dicache.shelf import Shelf
from dicache.types import Action, Course, Quote, Reason, Step
from dicache.waymaking import RIDGE, arrays_of, candidates, fitted
from dicache.ways import Ways

WAYS = Ways(
    np.array([[1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 1, 0]], np.float32),
    np.arange(24, dtype=np.float32).reshape(2, 6, 2),
    np.array([0.01, 0.1], np.float32),
)
COURSE = Course(
    tuple(np.linspace(1, 0.1, 10).tolist()), (0.1,) * 10, tuple(np.log(1 / np.linspace(0.99, 0.1, 10) - 1) / 2), 0
)


@pytest.fixture(scope="module")
def profile():
    return calibrated(Captioned(), prices="fitted")


@given(levels=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_a_budget_stands_for_the_fastest_way_that_loses_no_more(levels):
    found = WAYS.fastest(torch.tensor(levels, dtype=torch.float64))
    for level, way in zip(levels, found.tolist(), strict=True):
        within = [w for w, lost in enumerate(WAYS.lost.tolist()) if lost * (1 - 1e-6) <= level]
        assert way == max(within, default=-1)
    assert torch.equal(WAYS.computes(found, 0), torch.ones(len(levels), dtype=torch.bool))
    assert (WAYS.loses(found) <= torch.tensor(levels) + 1e-6).all()


def test_a_line_belongs_to_the_two_computed_steps_that_it_was_fitted_with():
    which = torch.tensor([0, 1, 1, -1, 0])
    lines = WAYS.lines(which, 2, torch.tensor([1, 1, 0, 1, 1]), torch.tensor([0, 0, -1, 0, -1]))
    assert lines[:2].tolist() == [[4.0, 5.0], [16.0, 17.0]] and lines[2:].isnan().all()
    here, other = torch.tensor([4, 3]), torch.tensor([1, 1])
    last = WAYS.lines(torch.tensor([1, 1]), 5, here, other)
    assert last[0].tolist() == [22.0, 23.0] and last[1].isnan().all()
    assert WAYS.lines(torch.tensor([0]), 3, torch.tensor([1]), torch.tensor([0])).isnan().all()


def test_a_step_computes_where_the_way_says_so_or_nothing_is_known_of_the_sample():
    rule = OnWays(WAYS, (0.2, 0.2, 0.001, 0.05))
    state, actions, unknown = rule.init(4), [], torch.tensor([False, True, False, False])
    for i in range(6):
        cost = torch.full((4,), 0.01, dtype=torch.float64)
        cost = cost.masked_fill(unknown if i == 3 else torch.tensor(i < 2), torch.inf)
        quote = Quote(cost, cost, torch.full((4,), int(Action.REUSE)))
        step = Step(i, 6, 1 - i / 6, 1 / 6, (i + 1) / 6, (1.0, 0.0))
        decision, state = rule.decide(quote, step, state)
        actions.append(decision.action[:, 0])
        lines = rule.slopes(step, state)
        if i == 5:
            assert decision.spent.tolist() == pytest.approx([0.1, 0.1, 0.0, 0.01]) and not lines[0].isnan().any()
            assert lines[1:].isnan().all(), "sample 1 computed a step that its way skips"
            assert decision.reason[2] == Reason.NO_BUDGET
    done = (torch.stack(actions, dim=1) == Action.COMPUTE).int().tolist()
    assert done == [[1, 1, 0, 0, 1, 0], [1, 1, 0, 1, 1, 0], [1] * 6, [1, 1, 0, 1, 1, 1]]


def test_ways_go_from_careful_to_fast_and_those_that_a_faster_one_beats_are_left_out():
    ways = candidates(COURSE)
    counts = [int(way.sum()) for way in ways]
    assert counts == sorted(set(counts), reverse=True) and counts[0] == 8 and counts[-1] <= 3
    assert all(way[:2].all() and way[-1] for way in ways)
    lost = (0.01, 0.03, 0.02, 0.05, np.nan, 0.05)
    found = [[{"slopes": np.full((10, 2), k), "lost": np.array([x])}] for k, x in enumerate(lost)]
    kept = arrays_of([ways[0]] * 6, found)
    assert kept["lost"].tolist() == pytest.approx([0.01, 0.02, 0.05]) and kept["slopes"][:, 0, 0].tolist() == [0, 2, 5]


def test_what_was_fitted_is_what_runs(profile):
    """Of the batch whose moments came last, at its own slopes."""
    pipe, level = Captioned(), profile.arrays["lost"][-1]
    made = fitted(_Drawn(pipe), range(4), [], profile.ways.computed[-1], np.zeros((STEPS, 3, 3)))
    assert made["slopes"] == pytest.approx(profile.arrays["slopes"][-1], rel=1e-3, abs=1e-5)
    assert np.median(made["lost"]) == pytest.approx(level, rel=1e-3)
    exact = pipe.draw(range(4))
    with dicache.enable(pipe, config=by_profile(Shelf((profile,), "named"), Level(float(level)))) as cache:
        played = pipe.draw(range(4))
    assert relative_error(played, exact).numpy() == pytest.approx(made["lost"], rel=1e-2)
    assert (torch.stack([r.action[:, 0] for r in cache.trace.records], 1) == Action.COMPUTE)[0].tolist() == [
        bool(x) for x in profile.ways.computed[-1]
    ]


def test_on_the_prompts_that_they_were_fitted_on_lines_lose_less_than_holding(profile):
    pipe, lost = Captioned(), []
    exact = pipe.draw(range(4))
    for way, level in zip(profile.ways.computed.astype(bool), profile.ways.lost, strict=True):
        for config in (
            by_profile(Shelf((profile,), "named"), Level(float(level))),
            Config(masks([way.tolist()]), approximators=(Reuse(),)),
        ):
            with dicache.enable(pipe, config=config):
                lost.append(relative_error(pipe.draw(range(4)), exact).log().mean())
    assert torch.stack(lost[::2]).mean() < torch.stack(lost[1::2]).mean() - 0.05


def test_batches_add_up_to_one_answer():
    """Two halves of a batch are fitted as the whole is, at the first skipped step, where both have the same past."""
    drawn, way = _Drawn(Captioned()), [True, True, False, True, False, True, True, True, True, True]
    halves, known = [range(2), range(2, 4)], torch.zeros(STEPS, 3, 3, dtype=torch.float64)
    for half in halves:
        last = along(drawn, half, uncached(drawn, half), way, RIDGE, known)
    whole = along(drawn, range(4), uncached(drawn, range(4)), way, RIDGE)
    assert float(last.slopes.a[2]) == pytest.approx(float(whole.slopes.a[2]), rel=1e-3)
    assert float(last.slopes.b[2]) == pytest.approx(float(whole.slopes.b[2]), rel=1e-3)
    assert known.flatten(1).any(1).nonzero().flatten().tolist() == [2, 4]


def test_samples_follow_ways_of_their_own_alike_alone_and_beside_others(profile, tmp_path):
    pipe, (careful, *_, fast) = Captioned(), profile.ways.lost.tolist()
    profile.save(tmp_path / "p.json")
    bounds = [np.quantile(profile.losses("latent")[:, k], 0.95).item() for k in (0, -1)]
    asked = {"profile": tmp_path / "p.json"}
    with dicache.enable(pipe, error_budget=bounds, **asked) as cache:
        both, work = pipe.draw([5, 6]), cache.trace.executed / cache.trace.uncached
    assert careful < fast and work[1] < 0.7 * work[0]
    for k, bound in enumerate(bounds):
        with dicache.enable(pipe, error_budget=bound, **asked) as cache:
            assert torch.allclose(pipe.draw([5 + k])[0], both[k], atol=1e-4)
        assert float((cache.trace.executed / cache.trace.uncached)[0]) == pytest.approx(float(work[k]))
    with dicache.enable(pipe, error_budget=careful / 100, **asked):
        nothing = pipe.draw([5, 6])
    assert torch.equal(nothing, pipe.draw([5, 6]))


def test_ways_are_kept_with_the_profile_and_a_calibration_that_was_killed_goes_on(profile, tmp_path):
    profile.save(tmp_path / "p.json")
    assert np.array_equal(load_profile(tmp_path / "p.json").ways.slopes, profile.ways.slopes)
    assert profile.arrays["levels"].tolist() == profile.ways.lost.tolist()
    pipe = Captioned()
    pipe.fail_after = 14
    with pytest.raises(KeyboardInterrupt):
        calibrated(pipe, prices="fitted", checkpoint=tmp_path / "kept")
    assert list((tmp_path / "kept").glob("way-*.safetensors"))
    pipe.fail_after = None
    again = calibrated(pipe, prices="fitted", checkpoint=tmp_path / "kept")
    for key, value in profile.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], value)


def test_a_pipeline_along_whose_runs_nothing_can_be_fitted_is_refused_and_other_prices_are_named():
    with pytest.raises(ProfileError, match=r'between its denoiser and its scheduler.*Or calibrate with prices="law"'):
        calibrate(ByHand(torch.neg), PROMPTS, steps=STEPS, measuring=4, prices="fitted", progress=False)


def test_fitted_ways_are_not_moved_to_another_course(profile):
    pipe = Captioned()
    with dicache.enable(pipe, error_budget=0.5, profile=[profile, "nearest"]) as cache:
        pipe.draw([3], 12)
    facts = cache.report().to_dict()
    assert not facts.get("profile_fits") and facts["compute_speedup"] > 1


FITTED = {"ways": np.ones((2, 10)), "slopes": np.zeros((2, 10, 2)), "lost": np.array([0.1, 0.2])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": np.full((2, 10), 0.5)}, "must hold 0 and 1"),
        ({"ways": np.eye(2, 10)}, "compute the first two"),
        ({"ways": np.ones((3, 10))}, "'ways' has the shape"),
        ({"slopes": np.zeros((2, 10))}, "'slopes' has the shape"),
        ({"slopes": np.full((2, 10, 2), np.nan)}, "not finite"),
        ({"lost": np.array([0.2, 0.1])}, "must rise"),
        ({"lost": np.array([0.0, 0.1])}, "must rise"),
        ({"lost": None}, "without lost"),
    ],
)
def test_ways_that_cannot_be_are_refused(changes, message):
    base = made_up()
    arrays = {**base.arrays, **{key: value.astype(np.float32) for key, value in FITTED.items()}}
    facts = replace(base.facts, prices="fitted")
    assert Profile(facts, arrays).ways is not None
    arrays |= {key: value.astype(np.float32) for key, value in changes.items() if value is not None}
    arrays = {key: value for key, value in arrays.items() if changes.get(key, value) is not None}
    with pytest.raises(ProfileError, match=message):
        Profile(facts, arrays)


class _Drawn:
    def __init__(self, pipe):
        self.pipe = pipe
        self.drawer = dicache.drawing.Drawer(pipe, PROMPTS, STEPS, 0, GUIDED, images=False)
