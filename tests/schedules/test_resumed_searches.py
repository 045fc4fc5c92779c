"""A search that was stopped goes on where it was, whatever finder it is of, to what it would have found."""

from dataclasses import replace

import pytest

from dicache.errors import ScheduleError
from dicache.finders.annealing import Annealing
from dicache.finders.ecad import Ecad
from dicache.finders.fixed import FixedInterval
from dicache.finders.learning_to_cache import LearningToCache
from dicache.finders.multistep import Multistep
from dicache.finders.nested import Nested
from dicache.measuring.schedule_measurements import Calibration, ScheduleMeasurements
from dicache.schedules.action_table import lines_of
from dicache.schedules.pareto import ParetoSet
from dicache.sites import Evaluation, Spans
from helpers.calibrating import PROMPTS, Captioned

SEARCHES = (
    (Annealing(trials=4, rounds=1), Evaluation(), 0.6),
    (Nested(width=2, least=0.6), Evaluation(), 0.6),
    (Ecad(generations=3, population=6, seeds=(FixedInterval(),)), Evaluation(), None),
    (LearningToCache(iterations=1), Spans(), 0.8),
    (Multistep(ridge=1), Evaluation(), 0.75),
)


def drawn(folder, prompts=PROMPTS[:2], **more):
    return Calibration(prompts, 6, batch=2, call={"guidance": 4.0}, checkpoint=folder, **more)


def members(answer):
    schedules = answer.members if isinstance(answer, ParetoSet) else (answer,)
    return [(lines_of(schedule.table), schedule.error) for schedule in schedules]


@pytest.fixture
def draws(monkeypatch):
    """Batches of schedules that are drawn; stops at the one that `draws[0]` says."""
    played, count = ScheduleMeasurements._played, [10**9, 0]

    def play(self, *args):
        if count[1] == count[0]:
            raise KeyboardInterrupt
        count[1] += 1
        return played(self, *args)

    monkeypatch.setattr(ScheduleMeasurements, "_played", play)
    return count


@pytest.mark.parametrize(("finder", "sites", "cost"), SEARCHES, ids=[finder.name for finder, *_ in SEARCHES])
def test_a_search_that_was_stopped_goes_on_to_the_same_answer_and_draws_nothing_twice(
    finder, sites, cost, tmp_path, draws
):
    def search(folder):
        draws[1] = 0
        return members(finder.find(Captioned(), sites, drawn(folder), cost=cost))

    expected = search(None)
    every = draws[1]
    draws[0] = every // 2
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "c")
    assert len(list((tmp_path / "c").glob("errors-*.safetensors"))) == every // 2
    draws[0] = 10**9
    assert search(tmp_path / "c") == expected and draws[1] == every - every // 2
    assert search(tmp_path / "c") == expected and draws[1] == 0


def test_the_front_so_far_is_in_the_folder(tmp_path, draws):
    finder = Ecad(generations=3, population=6, seeds=(FixedInterval(),))
    front = finder.find(Captioned(), Evaluation(), drawn(str(tmp_path)))
    assert members(ParetoSet.load(tmp_path / "front.json")) == members(front)


def test_trained_scores_are_kept_pair_by_pair(tmp_path, monkeypatch):
    finder, train, pairs = LearningToCache(iterations=1), LearningToCache._trained, []

    def trained(self, *args):
        pairs.append(args[3])
        if len(pairs) == 2:
            raise KeyboardInterrupt
        return train(self, *args)

    monkeypatch.setattr(LearningToCache, "_trained", trained)
    with pytest.raises(KeyboardInterrupt):
        finder.find(Captioned(), Spans(), drawn(tmp_path), cost=0.8)
    finder.find(Captioned(), Spans(), drawn(tmp_path), cost=0.8)
    assert pairs == [1, 3, 3, 5]


def test_a_folder_is_of_one_model_its_steps_and_prompts(tmp_path):
    pipe, finder = Captioned(), FixedInterval()
    finder.find(pipe, Evaluation(), drawn(tmp_path), cost=0.6)
    finder.find(pipe, Evaluation(), drawn(tmp_path), cost=0.4)
    for other in (drawn(tmp_path, PROMPTS[2:4]), drawn(tmp_path, seed=3), replace(drawn(tmp_path), steps=7)):
        with pytest.raises(ScheduleError, match="holds other measurements"):
            finder.find(pipe, Evaluation(), other, cost=0.6)
    with pytest.raises(ScheduleError, match="holds other measurements"):
        finder.find(pipe, Spans(), drawn(tmp_path), cost=0.6)
