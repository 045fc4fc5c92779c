"""What a server gains, and whether it holds: clients on this machine's loopback ask a server of the reference model.

    python -m dicache.bench.studies.serving                 8 clients, uncached and with budgets from .02 to .2 mixed
    python -m dicache.bench.studies.serving --soak 10000    small requests: 5 % are cancelled, 1 % cannot be served

It needs `pip install 'dicache[serve]'`. The server runs in a process of its own, which has all cores; the clients only
wait. Each client asks for the next request when it has the answer to the one before. Both arms draw the same captions
with the same seeds, by turns where there are several rounds. Printed are images a second, the seconds of a request in
the median and in nine of ten, executed work as the server counts it, and the seconds of processors that an image took,
which are about the same whatever else the machine does.
"""

import argparse
import json
import math
import multiprocessing
import queue
import random
import socket
import statistics
import threading
import time
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

import dicache.reference
from dicache.bench.harness.store import RESULTS
from dicache.files.atomic import write_text
from dicache.reference.scenes import prompts
from dicache.serve import app

BUDGETS = (0.02, 0.05, 0.1, 0.2)
CANCELLED, POISONED = 0.05, 0.01
POISON: tuple[dict[str, Any], ...] = (
    *({"prompt": "unknown words"}, {"arguments": {"nothing": 1}}, {"error_budget": math.nan}, {"steps": -1}),
    *({"height": 10**6}, {"height": 64, "arguments": {"latents": [[0.0]]}}, {"guidance": 1e308}),
)
"""What cannot be served; of the last one the model makes no numbers."""
COUNTED = {"work", "served", "calls_a_step"}
"""What is no matter of speed."""
PATIENCE = 600.0
"""Seconds that a client waits for an answer."""


class Answer(NamedTuple):
    status: int
    seconds: float


def serve(port: int, slots: int, waiting: int) -> None:
    """In a process of its own."""
    application = app(dicache.reference.pipeline(), slots=slots, queue=waiting, error_budget=0.05)
    uvicorn.run(application, host="127.0.0.1", port=port, log_level="error")


class Client:
    """Of a server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:  # noqa: ANN401
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def draw(self, body: dict[str, Any]) -> Answer:
        """Asked again where the server is full."""
        started = time.monotonic()
        while (status := self.ask("POST", "/generate", body)[0]) == 429:
            time.sleep(0.1)
        return Answer(status, time.monotonic() - started)

    def numbers(self) -> dict[str, float]:
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def wait(self) -> None:
        """Until it is there."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                self.ask("GET", "/health")
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("the server did not begin.")


def load(
    client: Client, bodies: list[dict[str, Any]], clients: int, chance: random.Random | None = None
) -> list[Answer]:
    """All answers. With `chance`, some of the requests that are being served are cancelled by their id."""
    bodies_left: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for body in bodies:
        bodies_left.put(body)
    answers: list[Answer] = []

    def work() -> None:
        while True:
            try:
                body = bodies_left.get_nowait()
            except queue.Empty:
                return
            cancels = chance is not None and chance.random() < CANCELLED
            if cancels:
                delay = threading.Timer(0.02, client.ask, ("DELETE", f"/requests/{body['id']}"))
                delay.start()
            answers.append(client.draw(body))
            if cancels:
                delay.join()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


class Round(NamedTuple):
    """Of one arm: what it took, and by how much the server's counters rose."""

    answers: list[Answer]
    wall: float
    risen: dict[str, float]


def one_round(client: Client, bodies: list[dict[str, Any]], clients: int) -> Round:
    before, started = client.numbers(), time.monotonic()
    answers = load(client, bodies, clients)
    wall, after = time.monotonic() - started, client.numbers()
    return Round(answers, wall, {name: value - before.get(name, 0.0) for name, value in after.items()})


def arm(rounds: list[Round]) -> dict[str, float]:
    answers = [answer for each in rounds for answer in each.answers]
    seconds = sorted(answer.seconds for answer in answers)

    def risen(name: str) -> float:
        return sum(each.risen[name] for each in rounds)

    return {
        "images_per_second": len(answers) / sum(each.wall for each in rounds),
        "p50": statistics.median(seconds),
        "p90": seconds[int(0.9 * len(seconds))],
        "work": risen('dicache_macs_total{kind="executed"}') / risen('dicache_macs_total{kind="uncached"}'),
        "served": sum(answer.status == 200 for answer in answers),
        "calls_a_step": risen("dicache_calls_total") / risen("dicache_steps_total"),
        "processor_seconds_an_image": risen("process_cpu_seconds_total") / len(answers),
    }


def compared(client: Client, requests: int, clients: int, steps: int, rounds: int = 1) -> dict[str, Any]:
    captions = list(islice(prompts("calibration", requests), requests))
    common = [{"prompt": caption, "steps": steps, "seed": k, "guidance": 3.5} for k, caption in enumerate(captions)]
    one_round(client, [{**body, "error_budget": 0.0, "steps": 4} for body in common[:clients]], clients)  # warms up
    plain, cached = list[Round](), list[Round]()
    for _ in range(rounds):
        plain.append(one_round(client, [{**body, "error_budget": 0.0} for body in common], clients))
        budgets = [{**body, "error_budget": BUDGETS[k % 4]} for k, body in enumerate(common)]
        cached.append(one_round(client, budgets, clients))
    arms = {"uncached": arm(plain), "cached": arm(cached)}
    ratios = {name: value / arms["uncached"][name] for name, value in arms["cached"].items() if name not in COUNTED}
    return {"requests": requests, "clients": clients, "steps": steps, "rounds": rounds, **arms} | ratios


def soaked(client: Client, requests: int, clients: int) -> dict[str, Any]:
    """Statuses, and the server's memory in quarters."""
    chance, captions = random.Random(0), list(islice(prompts("calibration", 64), 64))
    memory, statuses = [], dict[int, int]()
    for quarter in range(4):
        bodies = []
        for k in range(requests // 4):
            body = {"prompt": captions[k % 64], "steps": 2 + k % 3, "seed": k, "id": f"{quarter}-{k}"}
            if chance.random() < POISONED:
                body |= chance.choice(POISON)
            bodies.append({"error_budget": chance.choice((0.0, *BUDGETS)), **body})
        for answer in load(client, bodies, clients, chance):
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
        memory.append(client.numbers()["process_resident_memory_bytes"])
        print(f"{(quarter + 1) * (requests // 4)} requests, {memory[-1] / 1e6:.0f} MB, {statuses}", flush=True)
    health = json.loads(client.ask("GET", "/health")[1])
    lost = requests - sum(statuses.values())
    return {"requests": requests, "lost": lost, "statuses": statuses, "memory": memory, "left": health}


def main() -> None:
    parser = argparse.ArgumentParser(description="Clients ask a server of the reference model.")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=1, help="how often each arm is drawn, by turns")
    parser.add_argument("--soak", type=int, default=0, help="so many small requests in the place of the comparison")
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.json")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port, args.clients, 64), daemon=True)
    server.start()
    try:
        client = Client(port)
        client.wait()
        if args.soak:
            facts = soaked(client, args.soak, args.clients)
        else:
            facts = compared(client, args.requests, args.clients, args.steps, args.rounds)
    finally:
        server.terminate()
        server.join()
    print(json.dumps(facts, indent=1))
    write_text(args.out, json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
