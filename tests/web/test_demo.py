"""The demo's page through its HTTP interface: no browser, a real server on this machine's loopback."""

import base64
import io
import json
import socket
import threading
from http.client import HTTPConnection
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from PIL import Image

import dicache
from dicache.cli.serving import serve_demo
from dicache.errors import PipelineError
from dicache.reference.draw import draw, pictures
from dicache.web.application import CAPTIONS, demo
from dicache.web.drawing import REMEMBERED, Painter, Wish
from helpers.requesting import LONG, Listening

STEPS = 8


@pytest.fixture(scope="module")
def painter():
    return Painter()


@pytest.fixture(scope="module")
def server(painter):
    server = Listening(demo(error_budget=0.1, steps=STEPS, painter=painter))
    yield server
    server.stop()


def events(server, **asked):
    """Names and facts, in their order."""
    asked = {"caption": CAPTIONS[0], "error_budget": 0.1, "seed": 3, "steps": STEPS, **asked}
    answer = server.ask("GET", f"/draw?{urlencode(asked)}")
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in answer.data.decode().strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def picture(url):
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_page_has_all_it_needs_in_itself(server):
    answer = server.ask("GET", "/")
    text = answer.data.decode()
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/html")
    assert '"error_budget": 0.1' in text and "http://" not in text and "https://" not in text
    assert all(caption in text for caption in CAPTIONS)


def test_both_runs_are_told_step_by_step_and_are_those_of_enable(server, painter):
    told = events(server)
    names = [name for name, _ in told]
    assert names == ["exact"] * STEPS + ["uncached"] + ["step"] * STEPS + ["done"]
    steps, done = [facts for name, facts in told if name == "step"], told[-1][1]
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    with dicache.enable(painter.pipe, error_budget=0.1) as cache:
        latents, _ = draw(painter.pipe, [CAPTIONS[0]], [3], STEPS)
    sample = cache.report().to_dict()["samples"][0]
    assert [[step["action"]] for step in steps] == sample["actions"] and done["decisions"] == cache.report().strip(0)
    assert done["estimated_error"] == sample["estimated_error"] == steps[-1]["estimated_error"]
    assert done["speedup"] > 1 > done["work"] and 0 < done["true_error"] < 1
    pixels = torch.from_numpy(np.array(picture(done["picture"]))) / 255
    expected = pictures(painter.pipe, latents)[0].permute(1, 2, 0)
    assert torch.allclose(pixels, expected, atol=1 / 255)
    assert picture(dict(told)["uncached"]["picture"]).size == (32, 32)


def test_a_slider_that_moves_draws_the_cached_picture_alone(server):
    events(server, seed=4)
    told = events(server, seed=4, error_budget=0)
    assert [name for name, _ in told] == ["uncached"] + ["step"] * STEPS + ["done"]
    assert told[-1][1]["true_error"] == 0 and told[-1][1]["picture"] == told[0][1]["picture"]
    assert set(told[-1][1]["decisions"]) == {"#"}


def test_of_uncached_runs_the_last_ones_are_remembered():
    painter = Painter()
    for seed in range(REMEMBERED + 2):
        painter._exact(Wish(CAPTIONS[0], seed, 2), lambda name, facts: None)
    assert [wish.seed for wish in painter.remembered] == list(range(2, REMEMBERED + 2))


def test_what_cannot_be_drawn_is_told(server):
    (only,) = events(server, caption="a photo of a cat")
    assert only[0] == "refused" and "does not know the word 'a'. Known words" in only[1]["error"]
    for wrong in ({"error_budget": -1}, {"error_budget": "nan"}, {"steps": 1}, {"steps": 9999}, {"caption": "x" * 999}):
        asked = {"caption": CAPTIONS[0], "error_budget": 0.1, "steps": STEPS, **wrong}
        assert server.ask("GET", f"/draw?{urlencode(asked)}").status == 422


def test_whoever_hangs_up_ends_the_drawing_and_the_next_is_served(server, painter):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=LONG)
    connection.request("GET", "/draw?" + urlencode({"caption": CAPTIONS[1], "error_budget": 0.1, "steps": 100}))
    answer = connection.getresponse()
    assert answer.read(10).startswith(b"event: exa")
    answer.close()
    connection.close()
    assert events(server)[-1][0] == "done"
    assert Wish(CAPTIONS[1], 0, 100) not in painter.remembered


def test_the_command_says_where_the_page_is(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PipelineError, match=rf"127\.0\.0\.1:{port} cannot be listened on: .*Use --port 0"):
            serve_demo(0.05, STEPS, "127.0.0.1", port)


def test_two_draw_one_after_the_other(server):
    seen = []
    threads = [threading.Thread(target=lambda k=k: seen.append(events(server, seed=10 + k)[-1][0])) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert seen == ["done", "done"]
