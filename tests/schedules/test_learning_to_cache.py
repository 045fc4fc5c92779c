"""Learning-to-Cache: the stand-in is the schedule it stands for, and what is learned beats chance."""

import itertools

import numpy as np
import pytest
import torch

import dicache
from dicache.errors import ScheduleError
from dicache.finders.learning_to_cache import LearningToCache, ranked, recorded
from dicache.measuring.schedule_measurements import Calibration
from dicache.regressions.soft_gates import Branch, SoftGates
from dicache.schedules.action_table import computes, table_of
from dicache.schedules.schedule import Schedule
from dicache.schedules.setting import Origin
from dicache.sites import Evaluation, Spans, Sublayers
from helpers.calibrating import PROMPTS, Captioned

STEPS = 6
ORIGIN = Origin("by hand", {}, 0, 1, "", dicache.__version__)


@pytest.fixture(scope="module")
def pipe():
    return Captioned()


@pytest.fixture(scope="module")
def calibration():
    return Calibration(PROMPTS[:3], STEPS, call={"guidance": 4.0})


@pytest.mark.parametrize("sites", [Evaluation(), Spans(), Sublayers()])
def test_a_gate_open_is_the_model_and_shut_is_what_the_session_reuses(pipe, calibration, sites):
    measurements = calibration.on(pipe, sites)
    letters = "".join("#="[i % 2] for i in range(measurements.basis.shape[1]))
    lines = ["#" * len(letters), letters if len(letters) > 1 else "=", *["#" * len(letters)] * 4]
    plan, outputs = Schedule(measurements.basis, table_of(lines), ORIGIN), []
    with dicache.enable(pipe, schedule=plan):
        handle = pipe.transformer.register_forward_hook(lambda m, a, output: outputs.append(output[0].clone()))
        pipe.draw([0, 1, 2], STEPS)
        handle.remove()
    runs = recorded(measurements, np.zeros_like(plan.table))
    shut = torch.from_numpy(computes(plan.table)[1]).float()
    with SoftGates(pipe.transformer, runs.sites) as router, torch.no_grad():
        for k, branch in enumerate(router.pair(runs, 1)):
            assert torch.equal(router.mixed(branch, torch.ones(len(letters))), branch.truth)
            mixed = router.mixed(branch, shut)
            torch.testing.assert_close(mixed, outputs[2 + k], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(mixed, branch.truth, rtol=1e-3)


def test_training_leaves_the_model_as_it_was_and_full_steps_full(pipe):
    calibration, again = (Calibration(PROMPTS[:1], 4, call={"guidance": 4.0}) for _ in range(2))
    before = {name: (p.clone(), p.requires_grad) for name, p in pipe.transformer.named_parameters()}
    hooks = [len(m._forward_hooks) for m in pipe.transformer.modules()]
    finder = LearningToCache(iterations=1, rounds=2, rate=0.5)
    plan = finder.find(pipe, Spans(), calibration, cost=0.7)
    assert plan.work <= 0.7 and computes(plan.table)[0::2].all()
    for name, parameter in pipe.transformer.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    assert [len(m._forward_hooks) for m in pipe.transformer.modules()] == hooks
    assert (finder.find(pipe, Spans(), again, cost=0.7).table == plan.table).all()


def test_learned_scores_lose_less_in_a_step_than_chance_at_equal_cells(pipe):
    """The one-step error of the output that is trained on, with half of the sites of every pair skipped."""
    gains, finder = [], LearningToCache(iterations=3, rate=0.5)
    for seed in range(2):
        drawn = Calibration(PROMPTS[2 * seed : 2 * seed + 2], 4, seed=9 * seed, call={"guidance": 4.0})
        measurements = drawn.on(pipe, Spans())
        scores, runs = (
            finder.scores(measurements, None, seed),
            recorded(measurements, np.zeros(measurements.basis.shape, np.uint8)),
        )
        rng, trained, chance = np.random.default_rng(seed), [], []
        with SoftGates(pipe.transformer, runs.sites) as router, torch.no_grad():
            for step in (1, 3):
                pair = router.pair(runs, step)
                random = [rng.permutation(5) for _ in range(8)]
                lost = [
                    float(finder.wrong(router, pair, torch.from_numpy(np.argsort(np.argsort(s)) >= 2).float()))
                    for s in (scores[step], *random)
                ]
                trained.append(lost[0])
                chance.append(np.mean(lost[1:]))
        gains.append(np.mean(chance) / np.mean(trained))
    assert np.mean(gains) > 1.3, gains


def test_small_errors_count_in_half_precision():
    truth = torch.full((1, 64), 0.01, dtype=torch.float16)

    class Slightly:
        def mixed(self, branch, beta):
            return branch.truth * 1.002

    lost = LearningToCache().wrong(Slightly(), [Branch(None, truth, {}, [1.0])], torch.ones(1))
    assert lost.item() == pytest.approx(0.002**2, rel=0.5)


def test_at_no_price_everything_computes_and_at_a_high_one_nothing_does(pipe, calibration):
    measurements = calibration.on(pipe, Spans())
    runs = recorded(measurements, np.zeros(measurements.basis.shape, np.uint8))
    with SoftGates(pipe.transformer, runs.sites) as router:
        for weight, most in ((0.0, 1.0), (10.0, 0.1)):
            finder = LearningToCache(space="eps", weight=weight, iterations=2, rate=0.5)
            beta = finder._trained(measurements, router, runs, 3, 1.0, torch.zeros(5))["scores"]
            assert (beta > 0.5).all() if weight == 0 else (beta < most).all()


def test_cells_are_skipped_from_the_lowest_score_on_and_only_in_cache_steps():
    scores = np.array([[1.0, 1.0], [0.3, 0.9], [1.0, 1.0], [0.1, 0.5], [1.0, 1.0]])
    masks = ranked(scores)
    order = [tuple(np.argwhere(a != b)[0].tolist()) for a, b in itertools.pairwise(masks)]
    assert order == [(3, 0), (1, 0), (3, 1), (1, 1)]


def test_sites_of_several_modules_and_options_that_make_no_sense_are_refused(pipe, calibration):
    with pytest.raises(ScheduleError, match="sites of one module each"):
        LearningToCache(iterations=1).find(pipe, Spans(2), calibration, cost=0.8)
    for wrong in ({"space": "y"}, {"iterations": 0}, {"rate": 0.0}):
        with pytest.raises(ScheduleError, match=r"Expected|expected"):
            LearningToCache(**wrong)
