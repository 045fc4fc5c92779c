"""The server on Ray Serve: replicas that have a pipeline each, and a front that has none and hands requests to them.

    serve.run(dicache.serve.deployment(make_pipe, replicas=2, gpus=1))

A replica that is lost does not take its requests with it: the front hands them to another one, where they are drawn
from their seeds again and come out the same; Ray begins a replica anew in its place, also where its engine has ended.
A request over which two replicas were lost is answered with 503. The front knows all replicas: an id is found wherever
its request runs, health is that of all, and metrics are told apart by a label `replica`.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from prometheus_client.core import Metric

from dicache.errors import BusyError, WorkerError
from dicache.serve.answer import Reply, as_json, refused
from dicache.serve.engine import QUEUE, SLOTS
from dicache.serve.http_server import add_routes
from dicache.serve.numbers import TEXT, Merged
from dicache.serve.service import HUNG_UP, LISTENING, HungUp, Service, cancelled
from dicache.serve.wish import GenerateBody

LOST = 2
"""Replicas that may be lost over one request: what it asks for may be what they were lost of."""
SPARE = 32
"""Of calls to a replica, beside requests: for health, numbers, and to say that no more may wait."""
AGAIN = 10
"""Seconds after which it is worth while to ask again where replicas were lost."""
PATIENCE = 10.0
"""Seconds in which a replica has to say how it is."""


class Replica:
    """Of what Ray calls a deployment: a service in a process of its own."""

    def __init__(self, make: Callable[[], Any], options: Mapping[str, Any]) -> None:
        self.service: Service = Service(make, **options)

    async def generate(self, asked: Mapping[str, Any], wants_json: bool) -> Reply:
        return await self.service.generate(GenerateBody(**asked), wants_json=wants_json)

    def cancel(self, name: str) -> bool:
        return self.service.cancel(name)

    def health(self) -> dict[str, Any]:
        return self.service.health()

    def metrics(self) -> tuple[str, list[Metric]]:
        return _ray_serve().get_replica_context().replica_id.unique_id, self.service.numbers.metrics()

    def check_health(self) -> None:
        """Ray asks now and then, and begins a replica anew where this raises."""
        if not self.service.engine.alive:
            raise BusyError("the engine has ended.")


class Front:
    """Behind the routes: all replicas, of which `replicas` is Ray's handle."""

    def __init__(self, replicas: Any) -> None:  # noqa: ANN401
        self.replicas = replicas
        self.names: set[str] = set()
        """Of requests that run or wait."""

    async def generate(self, asked: GenerateBody, wants_json: bool, hung_up: HungUp) -> Reply:
        if asked.id is None:
            return await self._generate(asked, wants_json, hung_up)
        if asked.id in self.names:
            return refused(409, f"a request with the id {asked.id:.100} runs or waits. Give every request its own.")
        self.names.add(asked.id)
        try:
            return await self._generate(asked, wants_json, hung_up)
        finally:
            self.names.remove(asked.id)

    async def _generate(self, asked: GenerateBody, wants_json: bool, hung_up: HungUp) -> Reply:
        from ray.exceptions import RayActorError

        for _ in range(LOST):
            response = self.replicas.generate.remote(asked.model_dump(exclude_unset=True), wants_json)
            try:
                return await _waited_for(response, hung_up)
            except RayActorError:
                continue
        lost = f"{LOST} replicas were lost while they drew this request. Ask again later, or for less."
        return refused(503, lost, {"Retry-After": str(AGAIN)})

    async def cancel(self, name: str) -> Reply:
        return cancelled(name, known_to_one=any(await self._all("cancel", name)))

    async def health(self) -> Reply:
        each = await self._all("health")
        facts = {
            "ok": any(one["ok"] for one in each),
            "pipeline": each[0]["pipeline"] if each else None,
            "running": sum(one["running"] for one in each),
            "waiting": sum(one["waiting"] for one in each),
            "replicas": len(each),
        }
        return as_json(200 if facts["ok"] else 503, facts)

    async def metrics(self) -> Reply:
        return Reply(200, Merged(dict(await self._all("metrics"))).text(), TEXT)

    async def _all(self, method: str, *arguments: Any) -> list[Any]:  # noqa: ANN401
        """What each replica says that is there."""
        response = self.replicas.broadcast(method, *arguments)
        results = await response.results_async(timeout_s=PATIENCE, return_exceptions=True)
        return [result for result in results if not isinstance(result, BaseException)]


async def _waited_for(response: Any, hung_up: HungUp) -> Reply:  # noqa: ANN401
    """Raises RayActorError where the replica is lost."""

    async def result() -> Reply:
        return await response  # type: ignore[no-any-return]

    task = asyncio.ensure_future(result())
    try:
        while not (await asyncio.wait({task}, timeout=LISTENING))[0]:
            if await hung_up():
                response.cancel()
                return refused(HUNG_UP, "the client hung up.")
        return task.result()
    except asyncio.CancelledError:  # so Ray says that the client hung up
        response.cancel()
        raise
    finally:
        task.cancel()


def deployment(make: Callable[[], Any], *, replicas: int = 1, gpus: float = 0.0, **options: Any) -> Any:  # noqa: ANN401
    """An application for `serve.run`, or for `serve run module:application`. `make` is a function that makes the
    pipeline, in each replica; `gpus` is how many each has; `options` are those of `dicache.serve.app`. Raises
    WorkerError where `ray[serve]` is not installed.
    """
    serve = _ray_serve()
    application = FastAPI(title="dicache")
    add_routes(application, _front)
    at_once = options.get("slots", SLOTS) + options.get("queue", QUEUE) + SPARE
    behind = serve.deployment(
        Replica, num_replicas=replicas, max_ongoing_requests=at_once, ray_actor_options={"num_gpus": gpus}
    )
    front = serve.deployment(
        serve.ingress(application)(Front),
        name="Dicache",
        max_ongoing_requests=2 * replicas * at_once,
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(behind.bind(make, options))


def _front() -> Front:
    """That of this process."""
    front: Front = _ray_serve().get_replica_context().servable_object
    return front


def _ray_serve() -> Any:  # noqa: ANN401
    try:
        from ray import serve
    except ImportError as error:
        raise WorkerError("Ray Serve is not installed: pip install 'dicache[serve]'.") from error
    return serve
