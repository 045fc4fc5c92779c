"""Schedules found by a score of one's own in place of the latent's error."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from schedules.conftest import GUIDED

import dicache
from dicache.errors import ScheduleError
from dicache.finders import Annealing, Calibration, Ecad, FixedInterval, Nested, Objective
from dicache.promise.metrics import relative_error
from dicache.reference.scenes import prompts
from dicache.schedules.pareto import ParetoSet
from dicache.schedules.schedule import Schedule
from dicache.sites import Evaluation
from helpers.calibrating import PROMPTS, Captioned

CALL = {"guidance": 4.0}


def searched(objective, **options):
    return Calibration(PROMPTS[:2], 6, call=CALL, objective=objective, **options)


def calm(latents, prompts):
    """How near latents are to flat; this model's are less so the more is skipped."""
    return -latents.flatten(1).std(1)


CALM = Objective(calm, latents=True)


def test_scores_are_those_of_what_a_schedule_draws(pipe):
    drawn = searched(CALM)
    measurements = drawn.on(pipe, Evaluation())
    tables = FixedInterval().tables(measurements, None, 0)[:3]
    reference = pipe.draw([0, 1], steps=6, guidance=4.0)
    scores = measurements.scores(tables)
    assert scores[0] == pytest.approx(calm(reference, None).numpy(), rel=1e-5)
    basis, origin = measurements.basis, FixedInterval().schedules(measurements, tables[2:], 0)[0].origin
    with dicache.enable(pipe, schedule=Schedule(basis, tables[2], origin)):
        latents = pipe.draw([0, 1], steps=6, guidance=4.0)
    assert scores[2] == pytest.approx(calm(latents, None).numpy(), rel=1e-5)
    assert measurements.errors(tables)[2] == pytest.approx(relative_error(latents, reference).numpy(), rel=1e-4)
    assert (measurements.losses(tables) == -scores).all()


@pytest.mark.parametrize(
    "finder", [Ecad(generations=4, population=6), Annealing(trials=8, rounds=1), Nested(), FixedInterval()]
)
def test_what_is_found_scores_no_less_than_what_is_found_by_the_error(pipe, finder):
    by_score, by_error = (finder.find(pipe, Evaluation(), searched(o), cost=0.55) for o in (CALM, None))
    measurements = searched(CALM).on(pipe, Evaluation())
    scores = measurements.scores([by_score.table, by_error.table]).mean(1)
    assert scores[0] >= scores[1] - 1e-6 and by_score.score == pytest.approx(scores[0], rel=1e-6)
    error = measurements.errors([by_score.table]).mean()
    assert by_error.score is None and by_score.error == pytest.approx(error, rel=1e-4)


def test_evolution_ends_at_the_best_of_all_tables(pipe):
    """Three steps have four tables, all of which are tried."""
    drawn = Calibration(PROMPTS[:2], 3, call=CALL, objective=CALM)
    front = Ecad(generations=5, population=6, seeds=(FixedInterval(),)).find(pipe, Evaluation(), drawn)
    measurements = drawn.on(pipe, Evaluation())
    masks = [np.array([[True], [a], [b]]) for a in (True, False) for b in (True, False)]
    tables = [measurements.filled(mask) for mask in masks]
    points = list(zip(measurements.scores(tables).mean(1), measurements.basis.work(np.stack(tables)), strict=True))
    best = {(s, w) for s, w in points if not any(a >= s and b <= w and (a, b) != (s, w) for a, b in points)}
    assert {(s.score, s.work) for s in front.members} == best


def test_a_budget_is_what_the_score_may_fall_by(pipe):
    drawn = searched(CALM)
    front = FixedInterval().find(pipe, Evaluation(), drawn)
    everything = drawn.on(pipe, Evaluation()).scores([front.members[0].table])
    full = FixedInterval().schedules(drawn.on(pipe, Evaluation()), [np.zeros_like(front.members[0].table)], 0)[0]
    assert everything.shape == (1, 2)
    for budget in (0.0, 0.01, 1.0):
        found = FixedInterval().find(pipe, Evaluation(), drawn, budget=budget)
        assert found.score >= full.score - budget
        cheaper = [s for s in front.members if s.work < found.work]
        assert all(s.score < full.score - budget for s in cheaper)


def near(pipe):
    """How near latents are to those of the same prompts uncached."""
    uncached = dict(zip(PROMPTS[:2], pipe.draw([0, 1], steps=6, guidance=4.0), strict=True))
    return Objective(lambda x, prompts: -relative_error(x, torch.stack([uncached[p] for p in prompts])), "near", True)


def test_minus_the_error_as_an_objective_finds_what_the_error_does(pipe):
    by_score, by_error = (FixedInterval().find(pipe, Evaluation(), searched(o)) for o in (near(pipe), None))
    assert [s.letters for s in by_score.members] == [s.letters for s in by_error.members]
    assert [s.score for s in by_score.members] == pytest.approx([-s.error for s in by_error.members], abs=1e-6)


def test_a_front_of_scores_gives_the_best_score_and_the_cheapest_above_one(pipe, tmp_path):
    front = FixedInterval().find(pipe, Evaluation(), searched(near(pipe)))
    front.save(tmp_path / "front.json")
    loaded = ParetoSet.load(tmp_path / "front.json")
    assert [s.score for s in loaded.members] == [s.score for s in front.members]
    assert "objective" in loaded.members[0].origin.arguments and "score" in repr(loaded.members[0])
    best = max(loaded.members, key=lambda s: s.score)
    assert loaded.at(1.0).score == best.score == loaded.scoring(best.score).score
    assert loaded.scoring(-100.0).work == min(s.work for s in loaded.members)
    with pytest.raises(ScheduleError, match="the best is"):
        loaded.scoring(best.score + 1)
    with pytest.raises(ScheduleError, match="no scores"):
        FixedInterval().find(pipe, Evaluation(), searched(None)).scoring(0.0)
    loaded.share(tmp_path / "shared")
    assert len(front.members) > 2 and "| score |" in (tmp_path / "shared" / "README.md").read_text()


@pytest.mark.parametrize(
    "score",
    [
        lambda latents, prompts: latents.flatten(1).sum(1) * torch.nan,
        lambda latents, prompts: latents.sum(),
        lambda latents, prompts: latents,
        lambda latents, prompts: [torch.inf] * len(latents),
    ],
)
def test_anything_but_a_finite_number_a_sample_is_refused(pipe, score):
    with pytest.raises(ScheduleError, match=r"<lambda> gave .* finite numbers"):
        FixedInterval().find(pipe, Evaluation(), searched(Objective(score, latents=True)), cost=0.6)


def test_latents_that_are_not_finite_are_the_worst_and_are_not_shown():
    shown = []

    def score(latents, prompts):
        shown.append(list(prompts))
        return latents.flatten(1).sum(1)

    latents = torch.ones(3, 2)
    latents[1, 0] = torch.nan
    assert Objective(score).of(latents, None, ["a", "b", "c"]).tolist() == [2.0, -torch.inf, 2.0]
    assert Objective(score).of(latents * torch.inf, None, ["a", "b", "c"]).tolist() == [-torch.inf] * 3
    assert shown == [["a", "c"]]


def test_what_is_no_function_and_a_checkpoint_of_a_nameless_one_are_refused(tmp_path):
    with pytest.raises(ScheduleError, match="Expected a function"):
        searched("clip")
    with pytest.raises(ScheduleError, match="name="):
        searched(lambda images, prompts: images, checkpoint=tmp_path)
    assert searched(calm, checkpoint=tmp_path).objective is calm


def test_pictures_and_their_prompts_are_given(scenes):
    """By the model's own reader, that reads captions back."""
    pipe, reader, seen = dicache.reference.pipeline(), dicache.reference.Reader.shipped(), []

    def read(images, captions):
        seen.append((tuple(images.shape[1:]), float(images.min()), float(images.max()), set(captions)))
        return reader.score(images, captions)

    captions = prompts("calibration", 2, seed=300)
    drawn = Calibration(captions, 4, call=GUIDED, objective=read)
    front = FixedInterval().find(pipe, Evaluation(), drawn)
    assert all(shape == (3, 32, 32) and 0 <= low and high <= 1 for shape, low, high, _ in seen)
    assert set().union(*(some for *_, some in seen)) == set(captions)
    assert all(0 <= s.score <= 1 for s in front.members)


def test_a_search_by_a_score_goes_on_from_its_checkpoint_and_another_one_does_not_use_it(tmp_path):
    pipe = Captioned()
    finder, by = FixedInterval(), {"checkpoint": tmp_path}
    first = finder.find(pipe, Evaluation(), searched(CALM, **by))
    runs = pipe.runs
    again = finder.find(pipe, Evaluation(), searched(CALM, **by))
    assert [s.score for s in again.members] == [s.score for s in first.members]
    assert pipe.runs == runs + 1  # the uncached run
    finder.find(pipe, Evaluation(), searched(Objective(calm, "other", latents=True), **by))
    assert pipe.runs > runs + 2


def test_workers_give_the_same_scores():
    here = FixedInterval().find(Captioned(), Evaluation(), searched(CALM, batch=2))
    with ThreadPoolExecutor(2) as executor:
        there = FixedInterval().find(Captioned(), Evaluation(), searched(CALM, batch=2), executor=executor)
    assert [s.score for s in there.members] == [s.score for s in here.members]
