"""The server on Ray Serve: two replicas, of which one is killed while it holds requests. Needs `ray[serve]`."""

import functools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from dicache.bench.studies.serving import Client
from helpers.fanning import GO, begin_ray, marked, replicas
from helpers.requesting import LONG

CAPTION = "center large red circle on white background"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return Path(tmp_path_factory.mktemp("replicas"))


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dicache[serve]'")
    from ray import serve

    import dicache.serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # what tests are made of
        begin_ray(num_cpus=2)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    make = functools.partial(marked, folder)
    serve.run(dicache.serve.deployment(make, replicas=2, slots=1, queue=8, error_budget=0.05))
    yield Client(port)
    serve.shutdown()
    ray.shutdown()


def draw(client: Client, **body: Any) -> tuple[int, bytes]:
    return client.ask("POST", "/generate", {"prompt": CAPTION, "steps": 4, **body})


def health(client: Client) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(client.ask("GET", "/health")[1])
    return facts


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.1)


@pytest.mark.filterwarnings("ignore")  # Ray's own, at its begin and end
def test_requests_of_a_killed_replica_are_drawn_by_another_and_a_new_one_takes_its_place(client, folder):
    answers, threads = dict[int, tuple[int, bytes]](), list[threading.Thread]()
    while len(threads) < 4 or health(client)["running"] < 2:  # until either replica holds some
        seed = len(threads)
        threads.append(threading.Thread(target=lambda seed=seed: answers.update({seed: draw(client, seed=seed)})))
        threads[-1].start()
        until(lambda: sum(health(client)[name] for name in ("running", "waiting")) == len(threads))
    first, second = replicas(folder)
    os.kill(first, signal.SIGKILL)
    until(lambda: len(replicas(folder)) == 3)
    (folder / GO).touch()
    for thread in threads:
        thread.join(LONG)
    assert {status for status, _ in answers.values()} == {200} and len(answers) == len(threads)
    assert all(draw(client, seed=seed)[1] == picture for seed, (_, picture) in answers.items())
    until(lambda: health(client)["replicas"] == 2)
    assert second in replicas(folder)


@pytest.mark.filterwarnings("ignore")
def test_a_request_that_every_replica_is_lost_over_is_one_error(client, folder):
    (folder / GO).unlink(missing_ok=True)
    until(lambda: health(client)["replicas"] == 2)
    answers, began = list[tuple[int, bytes]](), len(replicas(folder))
    thread = threading.Thread(target=lambda: answers.append(draw(client)))
    thread.start()
    for lost in (1, 2):
        until(lambda: health(client)["running"] == 1)
        for process in replicas(folder)[-2:]:
            os.kill(process, signal.SIGKILL)
        until(lambda lost=lost: len(replicas(folder)) == began + 2 * lost)
    thread.join(LONG)
    (folder / GO).touch()
    ((status, content),) = answers
    assert status == 503 and "2 replicas were lost" in json.loads(content)["error"]
    assert draw(client)[0] == 200


@pytest.mark.filterwarnings("ignore")
def test_ids_numbers_and_errors_are_those_of_all_replicas(client, folder):
    (folder / GO).touch()
    until(lambda: health(client)["replicas"] == 2)
    answers = list[int]()
    for name in "abcd":
        body = {"steps": 900, "error_budget": 0.0, "id": name}
        threading.Thread(target=lambda body=body: answers.append(draw(client, **body)[0])).start()
    until(lambda: sum(health(client)[name] for name in ("running", "waiting")) == 4)
    assert draw(client, id="a")[0] == 409
    assert [client.ask("DELETE", f"/requests/{name}")[0] for name in "abcd"] == [200] * 4
    until(lambda: len(answers) == 4)
    assert answers == [499] * 4 and client.ask("DELETE", "/requests/a")[0] == 404
    numbers = client.numbers()
    names = {key.partition('replica="')[2].partition('"')[0] for key in numbers if key.startswith("dicache_requests")}
    assert len(names) == 2 and sum(numbers[key] for key in numbers if 'outcome="cancelled"' in key) == 4
    assert draw(client, prompt="unknown words")[0] == 422 and client.ask("GET", "/nothing")[0] == 404


@pytest.mark.filterwarnings("ignore")
def test_who_hangs_up_is_cancelled_wherever_the_request_runs(client, folder):
    until(lambda: health(client)["running"] == 0)
    connection = HTTPConnection("127.0.0.1", client.port, timeout=LONG)
    body = {"prompt": CAPTION, "steps": 900, "error_budget": 0.0}
    connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
    until(lambda: health(client)["running"] == 1)
    connection.close()
    until(lambda: health(client)["running"] == 0)
