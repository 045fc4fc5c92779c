"""The server, as clients meet it: a real one on this machine's loopback."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
import torch
from PIL import Image

import dicache
import dicache.reference
from dicache.cli.serving import _limit
from dicache.errors import ModeError
from dicache.serve import app
from dicache.serve.http_server import LARGEST_BODY
from helpers.requesting import LONG, Listening

PROMPT = next(iter(dicache.reference.prompts("calibration", 1)))


class Server(Listening):
    @property
    def engine(self) -> Any:
        return self.application.state.engine

    def draw(self, accept: str = "", **body: Any) -> Any:
        return self.ask("POST", "/generate", {"prompt": PROMPT, "steps": 8, **body}, accept)


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = dicache.reference.pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def server(pipe) -> Iterator[Server]:
    server = Server(app(pipe, slots=3, queue=2, error_budget=0.05, audit=1.0))
    yield server
    server.stop()


def drawn(pipe: Any, seed: int, budget: float) -> tuple[Any, dict[str, Any]]:
    with dicache.enable(pipe, error_budget=budget) as cache:
        output = pipe(PROMPT, num_inference_steps=8, generator=torch.Generator().manual_seed(seed))
    return output.images[0], cache.report().to_dict()


def test_a_picture_and_what_it_cost(pipe, server):
    answer = server.draw(seed=3, error_budget=0.2)
    assert answer.status == 200 and answer.headers["content-type"] == "image/png"
    picture = Image.open(io.BytesIO(answer.data))
    assert picture.size == (32, 32)
    facts = server.draw("application/json", seed=3, error_budget=0.2)
    content = json.loads(facts.data)
    report = content["report"]
    assert float(answer.headers["X-Dicache-Speedup"]) == pytest.approx(report["compute_speedup"], abs=1e-3)
    assert float(answer.headers["X-Dicache-Budget"]) == report["samples"][0]["budget"] == 0.2
    assert content["seconds"] >= content["waited"] >= 0
    same = Image.open(io.BytesIO(base64.b64decode(content["images"][0]["base64"])))
    assert same.tobytes() == picture.tobytes()
    expected, alone = drawn(pipe_alone(), 3, 0.2)
    assert report["samples"][0]["actions"] == alone["samples"][0]["actions"]
    apart = torch.tensor(list(expected.tobytes())).int() - torch.tensor(list(picture.tobytes())).int()
    assert int(apart.abs().max()) <= 1


def pipe_alone() -> Any:
    pipe = dicache.reference.pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_many_clients_at_once_are_served_together(server):
    before, answers = server.engine.counts.steps, dict[int, Any]()

    def ask(seed: int) -> None:
        while (answer := server.draw(seed=seed, error_budget=0.1)).status == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            time.sleep(0.05)
        answers[seed] = answer

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert [answers[seed].status for seed in range(8)] == [200] * 8
    assert len({answer.data for answer in answers.values()}) == 8
    assert server.engine.counts.steps - before < 8 * 8 * 2  # with the audits


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"error_budget": -1}, 422, "error_budget"),
        ({"error_budget": 0.1, "speedup": 2.0}, 422, "exactly one"),
        ({"no_such_word": 1}, 422, "no_such_word"),
        ({"arguments": {"no_such_word": 1}}, 422, "no_such_word"),
        ({"prompt": "what the model has no words for"}, 422, "does not know the word"),
        ({"confidence": 0.9, "error_budget": 1e-9}, 422, "profile"),
        ({"arguments": {"output_type": "latent"}}, 422, "answers with pictures"),
        ({"arguments": {"callback_on_step_end": "print"}}, 422, "is the server's"),
        ({"arguments": {"num_inference_steps": 4}}, 422, "Say 'steps'"),
        ({"arguments": {"prompt": [PROMPT] * 1000}}, 422, "Say 'prompt'"),
        ({"arguments": {"sigmas": [float("nan")]}}, 422, "NaN"),
        ({"arguments": {"sigmas": [0.5] * 1001}}, 422, "steps is 1001"),
        ({"arguments": {"num_images_per_prompt": 0}}, 422, "from 1 to 8"),
        ({"arguments": {"num_images_per_prompt": 10**9}}, 422, "from 1 to 8"),
        ({"arguments": {"prompt_2": "red " * 10_000}}, 422, "40000 characters"),
        ({"arguments": {"latents": [[0.0]]}}, 422, "'list' object"),
        ({"arguments": {"\ud800": 1}}, 422, "takes no \ud800"),
        ({"prompt": "\ud800"}, 422, "unicode string"),
        ({"prompt": "red " * 10_000}, 422, "at most 10000 characters"),
        ({"height": 10**6}, 422, "height is 1000000"),
        ({"steps": 10**6}, 422, "steps is 1000000"),
        ({"steps": -1}, 422, "steps: Input should be greater"),
        ({"error_budget": float("nan")}, 422, "finite number"),
        ({"id": ""}, 422, "id: String should have at least 1"),
    ],
)
def test_what_cannot_be_served_says_why(server, body, status, word):
    answer = server.draw(**body)
    assert answer.status == status and word in json.loads(answer.data)["error"]


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"", 422, "the body: Field required"),
        (b"{", 422, "the body: JSON decode error"),
        (b"[]", 422, "the body: Input should be a valid dictionary"),
        (b"[" * 100_000, 400, "parsing the body"),
        (b'{"prompt":"\xff"}', 400, "parsing the body"),
        (b'{"steps":' + b"9" * 5000 + b"}", 400, "parsing the body"),
        (b'{"prompt":"' + b"x" * LARGEST_BODY + b'"}', 413, "longer than"),
    ],
    ids=["nothing", "cut", "list", "deep", "bytes", "number", "long"],
)
def test_what_is_no_request_is_told_so(server, data, status, word):
    answer = server.send("POST", "/generate", data)
    assert answer.status == status and word in json.loads(answer.data)["error"]


def test_every_error_has_one_form(server):
    for method, path, status in (
        ("GET", "/generate", 405),
        ("GET", "/nothing", 404),
        ("DELETE", "/requests/a%2Fb", 404),
    ):
        answer = server.ask(method, path)
        assert answer.status == status and json.loads(answer.data)["error"]
    answer = server.send("POST", "/generate", b"prompt=x", "application/x-www-form-urlencoded")
    assert answer.status == 422 and "Content-Type: application/json" in json.loads(answer.data)["error"]


def test_health_and_numbers(server):
    server.draw(seed=1)
    health = json.loads(server.ask("GET", "/health").data)
    assert health["ok"] and health["pipeline"] == "FluxPipeline"
    lines = server.ask("GET", "/metrics").data.decode().splitlines()
    numbers = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(numbers['dicache_requests_total{outcome="served"}']) >= 1
    assert (
        0
        < float(numbers['dicache_macs_total{kind="executed"}'])
        < float(numbers['dicache_macs_total{kind="uncached"}'])
    )
    assert float(numbers["dicache_request_seconds_count"]) >= 1
    audited = [float(numbers[f'dicache_audits_total{{budget="{kind}"}}']) for kind in ("within", "passed")]
    assert audited[0] > 0
    before = float(numbers['dicache_audits_total{budget="none"}'])
    server.draw(seed=1, speedup=2.0)  # there is no budget that it could pass
    end = time.monotonic() + LONG
    while server.engine.counts.audits["none"] == before and time.monotonic() < end:
        time.sleep(0.02)
    assert server.engine.counts.audits["none"] == before + 1


def test_a_request_is_cancelled_by_its_name_or_by_hanging_up(server):
    assert server.ask("DELETE", "/requests/nobody").status == 404
    before = server.engine.counts.cancelled
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(server.draw(steps=900, error_budget=0.0, id="mine")))
    thread.start()
    end = time.monotonic() + LONG
    while server.ask("DELETE", "/requests/mine").status == 404 and time.monotonic() < end:
        time.sleep(0.02)
    thread.join(LONG)
    assert answers[0].status == 499
    connection = HTTPConnection("127.0.0.1", server.port, timeout=LONG)
    body = {"prompt": PROMPT, "steps": 900, "error_budget": 0.0}
    connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
    while not server.engine.running and time.monotonic() < end:
        time.sleep(0.02)
    connection.close()
    while server.engine.counts.cancelled < before + 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert server.engine.counts.cancelled == before + 2


def test_who_waits_and_hangs_up_makes_room_at_once(server):
    """The server has three slots, and two may wait."""
    end, before = time.monotonic() + LONG, server.engine.counts.cancelled
    body = json.dumps({"prompt": PROMPT, "steps": 900, "error_budget": 0.0})
    connections = [HTTPConnection("127.0.0.1", server.port, timeout=LONG) for _ in range(5)]
    for connection in connections:
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
    while (len(server.engine.running), len(server.engine.queue)) != (3, 2) and time.monotonic() < end:
        time.sleep(0.02)
    assert server.draw(steps=2).status == 429
    for request in list(server.engine.queue):
        request.cancel()
    assert not server.engine.queue and server.engine.counts.cancelled == before + 2
    for connection in connections:
        connection.close()
    while server.engine.running and time.monotonic() < end:
        time.sleep(0.02)
    assert server.engine.counts.cancelled == before + 5 and server.draw(steps=2).status == 200


def test_an_id_is_of_one_request_at_a_time(server):
    answers = list[Any]()
    thread = threading.Thread(target=lambda: answers.append(server.draw(steps=900, error_budget=0.0, id="a/b")))
    thread.start()
    end, named = time.monotonic() + LONG, server.application.state.handler.service.named
    while not named and time.monotonic() < end:
        time.sleep(0.02)
    again = server.draw(id="a/b")
    assert again.status == 409 and "Give every request its own" in json.loads(again.data)["error"]
    assert server.ask("DELETE", "/requests/a%2Fb").status == 200
    thread.join(LONG)
    assert answers[0].status == 499 and server.draw(id="a/b", steps=2).status == 200


def test_the_server_leaves_the_pipeline_as_it_was():
    pipe = pipe_alone()
    before = {name: dict(vars(module)) for name, module in pipe.transformer.named_modules()}
    server = Server(app(lambda: pipe, slots=1, error_budget=0.05, limits={"height": 32}))
    assert server.draw(seed=1, height=32).status == 200 and server.draw(height=64).status == 422
    server.stop()
    after = {name: dict(vars(module)) for name, module in pipe.transformer.named_modules()}
    assert {n: v.keys() for n, v in before.items()} == {n: v.keys() for n, v in after.items()}


def test_a_limit_of_the_command_line_is_a_name_and_a_number():
    assert _limit("height=1024") == ("height", 1024)
    for wrong in ("height", "height=much", "=3", "height=0", "height=-1"):
        with pytest.raises(ModeError, match="Expected NAME=NUMBER"):
            _limit(wrong)
