"""Work that is handed to workers gives what it gives alone, to the bit, whatever the workers are, however many, and
however many of them die; or one error that says how to go on.
"""

import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dicache.api import enable
from dicache.errors import CopyError, ProfileError, WorkerError
from dicache.files.content import digest_of
from dicache.finders.fixed import FixedInterval
from dicache.finders.multistep import Multistep
from dicache.measuring.calibrate import calibrate
from dicache.measuring.schedule_measurements import Calibration
from dicache.ray import executor as ray_executor
from dicache.sites import Evaluation
from helpers.calibrating import GUIDED, Captioned
from helpers.calibrating import PROMPTS as ALL
from helpers.fanning import Deadly, Elsewhere, begin_ray, captioned, processes
from helpers.fuzzing import LONG

PROMPTS, STEPS, LEVELS = ALL[:11], 6, (0.1, 0.5)
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
WORKERS = {
    "a thread": lambda: ThreadPoolExecutor(1),
    "2 threads": lambda: ThreadPoolExecutor(2),
    "4 threads": lambda: ThreadPoolExecutor(4),
    "a process": lambda: processes(1),
    "2 processes": lambda: processes(2),
    "4 processes": lambda: processes(4),
    "another machine": Elsewhere,
}


def profile_of(pipe, executor=None, **options):
    kwargs = {"steps": STEPS, "batch": 4, "levels": LEVELS, "call": GUIDED, "progress": False, **options}
    return calibrate(pipe, PROMPTS, executor=executor, **kwargs)


def digest(profile):
    return digest_of([profile.facts, {key: np.asarray(value) for key, value in profile.arrays.items()}])


def schedules_of(pipe, executor=None, checkpoint=None):
    calibration = Calibration(PROMPTS[:3], 6, batch=2, call={"guidance": 4.0}, checkpoint=checkpoint)
    front = FixedInterval().find(pipe, Evaluation(), calibration, executor=executor)
    fitted = Multistep().find(pipe, Evaluation(), calibration, cost=0.75, executor=executor)
    return digest_of([[each.table, each.error, each.basis] for each in front.members]), digest_of(
        [fitted.table, fitted.error, fitted.fitted.coefficients]
    )


RAY = {f"{workers} Ray actors": workers for workers in (1, 2, 4)}


@pytest.fixture(scope="module")
def alone():
    return digest(profile_of(Captioned()))


@pytest.fixture(scope="module")
def found_alone():
    return schedules_of(Captioned())


@pytest.mark.parametrize("workers", WORKERS)
def test_a_profile_is_the_same_whatever_it_was_measured_with(alone, workers):
    pipe = Captioned()
    with WORKERS[workers]() as executor:
        profile = profile_of(pipe, executor)
    assert digest(profile) == alone and pipe.runs == 0
    assert profile.about["cost"]["samples"] == len(PROMPTS) * (1 + len(LEVELS))


@pytest.mark.long
@pytest.mark.parametrize("workers", WORKERS if LONG > 1 else ("2 threads", "4 processes", "another machine"))
def test_schedules_are_the_same_whatever_they_were_found_with(found_alone, workers):
    with WORKERS[workers]() as executor:
        assert schedules_of(Captioned(), executor) == found_alone


def test_schedules_are_the_same_after_a_worker_died(found_alone, tmp_path):
    mark = tmp_path / "died"
    assert schedules_of(Deadly(2, mark), lambda: processes(2)) == found_alone and mark.exists()


def test_another_machine_is_sent_the_pipeline_once():
    with Elsewhere() as executor:
        profile_of(captioned, executor)
    assert executor.sent == 1


def test_the_pipeline_may_be_made_by_the_workers_and_only_there(alone):
    with processes(2) as executor:
        assert digest(profile_of(captioned, executor)) == alone
    made = []
    with ThreadPoolExecutor(1) as executor:
        assert digest(profile_of(lambda: made.append(Captioned()) or made[0], executor)) == alone
    assert len(made) == 1 and digest(profile_of(captioned)) == alone


def test_a_worker_that_dies_is_replaced_where_executors_can_be_made(alone, tmp_path):
    mark = tmp_path / "died"
    assert digest(profile_of(Deadly(2, mark), lambda: processes(2))) == alone and mark.exists()


def test_without_a_maker_a_lost_worker_is_one_error_and_the_checkpoint_is_gone_on_from(alone, tmp_path):
    folder, mark = tmp_path / "checkpoint", tmp_path / "died"
    with processes(1) as executor, pytest.raises(WorkerError, match=rf"{folder}: the same call goes on there"):
        profile_of(Deadly(3, mark), executor, checkpoint=folder)
    assert mark.exists()
    with processes(2) as executor:
        profile = profile_of(Captioned(), executor, checkpoint=folder)
    assert digest(profile) == alone and profile.about["cost"]["resumed"] >= 1
    assert profile.about["cost"]["samples"] < len(PROMPTS) * (1 + len(LEVELS))


def test_work_that_takes_every_worker_down_ends():
    with pytest.raises(WorkerError, match=r"3 times over the same work.*checkpoint='folder'"):
        profile_of(Deadly(0), lambda: processes(1))


def test_a_search_goes_on_from_its_checkpoint_with_or_without_workers(found_alone, tmp_path):
    assert schedules_of(Captioned(), checkpoint=tmp_path) == found_alone
    with ThreadPoolExecutor(2) as executor:
        assert schedules_of(Captioned(), executor, checkpoint=tmp_path) == found_alone


@contextlib.contextmanager
def enabled(pipe):
    with enable(pipe, error_budget=0.1):
        yield pipe


def test_what_goes_wrong_in_a_worker_is_the_error_that_it_is_alone():
    for workers in ("2 threads", "2 processes"):
        with WORKERS[workers]() as executor:
            with pytest.raises(ProfileError, match="only whole runs"):
                profile_of(Captioned(), executor, steps=2)
            with enabled(Captioned()) as pipe, pytest.raises(CopyError, match="disable"):
                profile_of(pipe, executor)


def test_what_cannot_be_sent_says_so():
    pipe = Captioned()
    pipe.negative = lambda sample: sample
    with processes(1) as executor:
        with pytest.raises(WorkerError, match=r"cannot be sent to workers.*a function of a module"):
            profile_of(pipe, executor)
        with pytest.raises(WorkerError, match=r"cannot be sent to workers.*no lambdas"):
            profile_of(Captioned(), executor, call={**GUIDED, "joint_attention_kwargs": lambda: None})
    for wrong in (2, "threads"):
        with pytest.raises(WorkerError, match=r"Expected a concurrent.futures.Executor"):
            profile_of(Captioned(), wrong)
    with pytest.raises(WorkerError, match="not an Executor"):
        profile_of(Captioned(), lambda: None)


@pytest.fixture(scope="module")
def ray():
    """One for all: it takes long to begin."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dicache[ray]'")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # what tests are made of
        begin_ray(num_cpus=4)
    yield ray
    ray.shutdown()


@pytest.mark.parametrize("workers", RAY)
def test_ray_gives_what_one_process_gives(ray, alone, found_alone, workers):
    with ray_executor(RAY[workers]) as executor:
        assert digest(profile_of(Captioned(), executor)) == alone
        assert schedules_of(Captioned(), executor) == found_alone
    assert ray.is_initialized()  # whoever began it ends it


def test_a_ray_actor_that_dies_is_replaced(ray, alone, found_alone, tmp_path):
    marks = [tmp_path / "profile", tmp_path / "schedule"]
    with ray_executor(2) as executor:
        assert digest(profile_of(Deadly(2, marks[0]), executor)) == alone
        assert schedules_of(Deadly(2, marks[1]), executor) == found_alone
        assert all(mark.exists() for mark in marks)
        with pytest.raises(ProfileError, match="only whole runs"):
            profile_of(Captioned(), executor, steps=2)


def test_workers_that_ray_has_no_room_for_are_named(ray, caplog):
    with ray_executor(5):
        assert "5 workers need 5 of CPU, and the cluster has 4" in caplog.text
    caplog.clear()
    with ray_executor(5, num_cpus=0.5):
        assert not caplog.text


def test_ray_that_is_not_there_or_has_no_workers_says_so(monkeypatch):
    with pytest.raises(WorkerError, match="1 or more"):
        ray_executor(0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerError, match=r"pip install 'dicache\[ray\]'"):
        ray_executor(1)
