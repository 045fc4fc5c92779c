"""Requests of one pipeline with loops of their own, as an engine has them: hand-written, or the pipeline's; and what
listens to those of clients.
"""

import copy
import inspect
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import Any

import torch
import uvicorn
from torch import Tensor

import dicache
from pipelines.tiny import draw_flux

LONG = 600.0


class DrawnError(Exception):
    """The pipeline was about to run."""


def call_of(pipe: Any, draw: Callable[..., Any], sample: int, steps: int, **kwargs: Any) -> dict[str, Any]:
    """The arguments that one of the makers of tiny pipelines calls it with."""
    kind, seen = type(pipe), dict[str, Any]()
    names = list(inspect.signature(kind.__call__).parameters)[1:]

    def listen(self: Any, *args: Any, **named: Any) -> None:
        seen.update(dict(zip(names, args, strict=False)) | named)
        raise DrawnError

    twin = copy.copy(pipe)
    twin.__class__ = type(kind.__name__, (kind,), {"__call__": listen})
    with suppress(DrawnError):
        draw(twin, [sample], steps, **kwargs)
    return seen


def flux_inputs(pipe: Any, sample: int) -> dict[str, Any]:
    """What FLUX calls its transformer with for one sample, at its first step."""
    seen = dict[str, Any]()

    def listen(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)
        raise DrawnError

    handle = pipe.transformer.register_forward_pre_hook(listen, with_kwargs=True, prepend=True)
    with suppress(DrawnError):
        draw_flux(pipe, [sample], 1)
    handle.remove()
    return seen


class Requested:
    """One sample of FLUX in a loop by hand: `inputs` are those of its next call, `advance` makes the step."""

    def __init__(self, pipe: Any, sample: int, steps: int, start: int = 0, **asked: Any) -> None:
        self.kwargs, self.start, self.asked, self.call = flux_inputs(pipe, sample), start, asked, 0
        self.latent: Tensor = self.kwargs["hidden_states"].clone()
        self.scheduler = copy.deepcopy(pipe.scheduler)
        self.scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).tolist())
        self.scheduler.set_begin_index(0)
        self.slot: Any = None
        self.job: Any = None

    def join(self, cache: dicache.Cache) -> Any:
        self.slot = cache.join(scheduler=self.scheduler, **self.asked)
        return self.slot

    @property
    def over(self) -> bool:
        return self.call == len(self.scheduler.timesteps)

    @property
    def inputs(self) -> dict[str, Any]:
        time = self.scheduler.timesteps[self.call].expand(1) / 1000
        return {**self.kwargs, "hidden_states": self.latent, "timestep": time, "return_dict": False}

    def advance(self, output: Any) -> None:
        time = self.scheduler.timesteps[self.call]
        self.latent, self.call = self.scheduler.step(output[0], time, self.latent, return_dict=False)[0], self.call + 1

    @property
    def decisions(self) -> str:
        """What happened at every step, as the report has it."""
        return str(self.slot.report().to_dict()["samples"][0]["actions"])


@torch.no_grad()
def play(cache: dicache.Cache, requests: Sequence[Requested]) -> None:
    """To their ends; each joins at its own tick."""
    tick, active, coming = 0, list[Requested](), list(requests)
    while coming or active:
        for request in [each for each in coming if each.start <= tick]:
            coming.remove(request)
            active.append(request)
            request.join(cache)
        outputs = cache.step([each.slot for each in active], [each.inputs for each in active])
        for request, output in zip(active, outputs, strict=True):
            request.advance(output)
        active, tick = [each for each in active if not each.over], tick + 1


class Listening:
    """A server of an application, on a port of its own of this machine, in a thread."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        end = time.monotonic() + LONG
        while not self.server.started and time.monotonic() < end:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def ask(self, method: str, path: str, body: Any = None, accept: str = "") -> Any:
        return self.send(method, path, None if body is None else json.dumps(body).encode(), accept=accept)

    def send(self, method: str, path: str, data: bytes | None, kind: str = "application/json", accept: str = "") -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=LONG)
        connection.request(method, path, data, {"Content-Type": kind, **({"Accept": accept} if accept else {})})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return SimpleNamespace(status=answer.status, headers=answer.headers, data=data)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(LONG)
