"""What a server does with an engine, whatever brings the requests: a web framework in this process, or another process.

A client that hangs up cancels its request. Where as many wait as may, the answer is 429 with the seconds after which it
is worth while to ask again.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import torch

from dicache.errors import BusyError, DicacheError
from dicache.fanout.workers import is_factory
from dicache.serve.answer import Reply, as_json, drawn, refused
from dicache.serve.engine import Engine
from dicache.serve.numbers import Numbers
from dicache.serve.request import CancelledError, Request
from dicache.serve.wish import LIMITS, GenerateBody

HUNG_UP = 499
"""What nginx answers to nobody: the client has closed the connection, or cancelled."""
LISTENING = 0.25
"""Seconds between two looks at whether the client is still there."""
HungUp = Callable[[], Awaitable[bool]]
"""Whether the client is gone."""


class Service:
    """Of a pipeline, or what a function makes. `defaults`, `limits` and `options` are those of `dicache.serve.app`."""

    defaults: dict[str, Any]
    limits: dict[str, int]

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401
        *,
        defaults: Mapping[str, Any] | None = None,
        limits: Mapping[str, int] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.defaults, self.limits = dict(defaults or {}), {**LIMITS, **(limits or {})}
        self.engine: Engine = Engine(pipe() if is_factory(pipe) else pipe, **options)
        self.numbers: Numbers = Numbers(self.engine)
        self.named: dict[str, Request] = {}
        """Those that run or wait, by the name that the client gave them."""

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.close)

    async def generate(self, asked: GenerateBody, *, wants_json: bool, hung_up: HungUp | None = None) -> Reply:
        """Where the task is cancelled, the request is."""
        if asked.id is not None and asked.id in self.named:
            return refused(409, f"a request with the id {asked.id:.100} runs or waits. Give every request its own.")
        try:
            call = asked.call(self.engine.pipe, self.defaults, self.limits)
            request = self.engine.submit(call, **asked.options())
        except BusyError as error:
            return refused(429, error, {"Retry-After": str(self._worth_while_after())})
        except DicacheError as error:
            return refused(422, error)
        if asked.id is not None:
            self.named[asked.id] = request
        try:
            return await self._answer(request, wants_json, hung_up)
        except asyncio.CancelledError:
            request.cancel()
            raise
        except CancelledError as error:
            return refused(HUNG_UP, error)
        except Exception as error:
            return refused(422 if _is_the_clients(error, asked) else 500, error)
        finally:
            if asked.id is not None:
                del self.named[asked.id]

    async def _answer(self, request: Request, wants_json: bool, hung_up: HungUp | None) -> Reply:
        future = asyncio.wrap_future(request.future)
        while not future.done():
            await asyncio.wait({future}, timeout=LISTENING)
            if hung_up is not None and not future.done() and await hung_up():
                request.cancel()
        served = future.result()
        self.numbers.latency.observe(served.seconds)
        return await asyncio.to_thread(drawn, served, request.id, wants_json=wants_json)

    def cancel(self, name: str) -> bool:
        """Whether there is such a request."""
        request = self.named.get(name)
        if request is not None:
            request.cancel()
        return request is not None

    def health(self) -> dict[str, Any]:
        engine = self.engine
        facts = {"pipeline": type(engine.pipe).__name__, "running": len(engine.running), "waiting": len(engine.queue)}
        return {"ok": engine.alive, **facts}

    def _worth_while_after(self) -> int:
        """Seconds until a place is likely to be free: what the last requests took, over the slots."""
        seconds = list(self.engine.counts.seconds)
        return max(1, math.ceil(sum(seconds) / len(seconds) / self.engine.most_at_once)) if seconds else 1


def cancelled(name: str, *, known_to_one: bool) -> Reply:
    """What `DELETE /requests/{name}` is answered."""
    return as_json(200, {"cancelled": name}) if known_to_one else refused(404, f"no request {name:.200} runs or waits.")


def _is_the_clients(error: Exception, asked: GenerateBody) -> bool:
    """Whether it is what pipelines raise for what they cannot draw, and not what befell this one."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return False
    return isinstance(error, DicacheError | TypeError | ValueError) or bool(asked.arguments)
