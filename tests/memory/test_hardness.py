"""How hard prompts are: a ridge of those seen, the prompt's own runs, bounded, by tenant, and added to by processes."""

import multiprocessing

import numpy as np
import pytest
import torch

import dicache
from dicache.errors import DicacheWarning
from dicache.memory.hardness import FEWEST, OF_A_RUN, Hardness, added, solved
from dicache.memory.store import Memory
from dicache.reference.scenes import prompts
from dicache.types import RunFacts
from helpers.toy import TIMETABLE

D = 6


def facts(prints):
    return RunFacts(TIMETABLE, 3.5, {"embeds": torch.as_tensor(prints)})


def random_prompts(n, seed=0):
    prints = np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)
    logs = prints[:, 0] - 0.5 * prints[:, 3]
    return prints, logs.astype(np.float64)


def ridge(e, logs):
    """As the equations have it, from all runs at once."""
    mean, scale = e.mean(0), e.std(0)
    z = (e - mean) / scale
    w = np.linalg.solve(z.T @ z + D * np.eye(D), z.T @ (logs - logs.mean())) / scale
    return logs.mean() - mean @ w, w


def test_sums_give_the_ridge_of_the_equations():
    e, logs = random_prompts(50)
    sums = np.zeros((D + 3, D + 3))
    for i in range(0, 50, 10):
        z = np.concatenate([np.ones((10, 1)), np.zeros((10, 1)), e[i : i + 10], logs[i : i + 10, None]], axis=1)
        sums += z.T @ z
    constants, w = solved(sums)
    expected = ridge(e.astype(np.float64), logs)
    np.testing.assert_allclose(w, expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(constants[0], expected[0], rtol=1e-5, atol=1e-6)


def test_estimates_of_runs_have_a_constant_of_their_own_and_count_a_quarter():
    e, logs = random_prompts(60)
    sums = added(np.zeros((D + 3, D + 3)), e[:30], logs[:30], True)
    sums = added(sums, e[30:], logs[30:] - 0.8, False)
    constants, w = solved(sums)
    assert constants[1] == pytest.approx(-0.8, abs=0.1) and np.abs(w[[0, 3]] - [1, -0.5]).max() < 0.2
    assert sums[0, 0] == pytest.approx(30 + OF_A_RUN * 30, rel=0.02)


def test_prompts_are_judged_by_those_like_them_and_by_their_own_runs(tmp_path):
    hardness = Hardness(Memory(tmp_path / "m"), "model")
    e, logs = random_prompts(200)
    assert hardness.predict(facts(e)) is None
    hardness.learn(facts(e[: FEWEST - 1]), np.exp(logs[: FEWEST - 1]), True)
    assert hardness.predict(facts(e)) is None
    hardness.learn(facts(e[FEWEST - 1 : 100]), np.exp(logs[FEWEST - 1 : 100]), True)
    unseen = hardness.predict(facts(e[100:])).numpy()
    assert np.corrcoef(unseen, logs[100:])[0, 1] > 0.95
    odd = facts(e[100:101])
    before = float(hardness.predict(odd)[0])
    for _ in range(3):
        hardness.learn(odd, [np.exp(5.0)], True)
    after, other = float(hardness.predict(odd)[0]), hardness.predict(facts(e[101:])).numpy()
    assert after - before > 3 and np.abs(other - unseen[1:]).mean() < 1


def test_another_tenant_model_or_setting_knows_nothing_of_it(tmp_path):
    e, logs = random_prompts(40)
    Hardness(Memory(tmp_path / "m", "a"), "model").learn(facts(e), np.exp(logs), True)
    assert Hardness(Memory(tmp_path / "m", "a"), "model").predict(facts(e)) is not None
    assert Hardness(Memory(tmp_path / "m", "b"), "model").predict(facts(e)) is None
    assert Hardness(Memory(tmp_path / "m", "a"), "other").predict(facts(e)) is None
    elsewhere = RunFacts(TIMETABLE, 1.0, facts(e).own_conditions)
    assert Hardness(Memory(tmp_path / "m", "a"), "model").predict(elsewhere) is None


def test_what_is_remembered_is_bounded_and_what_is_damaged_is_written_anew(tmp_path):
    memory = Memory(tmp_path / "m", most_entries=20)
    hardness = Hardness(memory, "model")
    e, logs = random_prompts(100)
    for i in range(0, 100, 10):
        hardness.learn(facts(e[i : i + 10]), np.exp(logs[i : i + 10]), True)
        assert memory.size()[0] <= 20
    wide = np.concatenate([e, e], axis=1)
    assert hardness.predict(facts(wide)) is None
    memory.write(hardness._key(facts(e)), b"no such thing")
    assert hardness.predict(facts(e)) is None
    hardness.learn(facts(e), np.exp(logs), True)
    assert hardness.predict(facts(e)) is not None


def test_what_is_not_finite_teaches_nothing(tmp_path):
    hardness = Hardness(Memory(tmp_path / "m"), "model")
    hardness.memory.check()
    e, _ = random_prompts(3)
    hardness.learn(facts(e), [float("nan"), 0.0, float("inf")], True)
    assert hardness.memory.size() == (0, 0)


def test_a_memory_that_breaks_is_one_warning_and_runs_go_on(tmp_path):
    hardness = Hardness(Memory(tmp_path / "m"), "model")
    e, logs = random_prompts(3)
    (tmp_path / "m").write_bytes(b"x" * 5000)
    with pytest.warns(DicacheWarning, match="equally hard"):
        hardness.learn(facts(e), np.exp(logs), True)
    hardness.learn(facts(e), np.exp(logs), True)
    assert hardness.predict(facts(e)) is None


def learn_often(path, tenant, times):
    hardness = Hardness(Memory(path, tenant), "model")
    e, logs = random_prompts(4)
    for _ in range(times):
        hardness.learn(facts(e), np.exp(logs), True)


def test_processes_add_to_one_another(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=learn_often, args=(tmp_path / "m", "a", 15)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    together, alone = Hardness(Memory(tmp_path / "m", "a"), "model"), Hardness(Memory(tmp_path / "n", "a"), "model")
    learn_often(tmp_path / "n", "a", 60)
    e, _ = random_prompts(4)
    np.testing.assert_allclose(together.predict(facts(e)).numpy(), alone.predict(facts(e)).numpy(), rtol=1e-9)
    assert together.memory.size()[0] == 5


CAPTIONS = prompts("calibration", 16, seed=8)


def test_a_pipeline_learns_from_its_runs_and_deals_by_it(reference, tmp_path):
    call = {"num_inference_steps": 20, "output_type": "latent", "guidance_scale": 1.0}
    memory = Memory(tmp_path / "m", "me")
    counts = []
    for _ in range(2):
        with dicache.enable(reference, speedup=2.0, memory=memory, audit=1.0) as cache:
            reference(CAPTIONS, generator=torch.Generator().manual_seed(0), **call)
            report = cache.report().to_dict()
        counts.append([sample["actions"].count(["compute"]) for sample in report["samples"]])
    assert memory.size()[0] > 16 and len(set(counts[0])) == 1 < len(set(counts[1]))
    assert sum(counts[0]) == sum(counts[1])
