"""An HTTP server around a pipeline: what clients ask for goes to an engine, which runs requests together.

    POST   /generate        {"prompt": "...", "error_budget": 0.05, "seed": 7}: the picture, or JSON where the client
                            accepts that; decisions, work and errors come in the headers or in "report"
    DELETE /requests/{id}   cancels the request that was sent with this "id"
    GET    /health          200, with what runs and waits; 503 once the engine is closed
    GET    /metrics         for Prometheus

`app` makes a FastAPI application, which uvicorn runs in one process; `dicache.serve.deployment` makes one for Ray
Serve. Every error is {"error": "..."}.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicache.serve.answer import JSON, Reply, as_json, refused
from dicache.serve.numbers import TEXT
from dicache.serve.service import HungUp, Service, cancelled
from dicache.serve.wish import GenerateBody

LARGEST_BODY = 1_000_000
"""Bytes."""


class Handler(Protocol):
    """What is behind the routes."""

    async def generate(self, asked: GenerateBody, wants_json: bool, hung_up: HungUp) -> Reply: ...

    async def cancel(self, name: str) -> Reply: ...

    async def health(self) -> Reply: ...

    async def metrics(self) -> Reply: ...


class Here:
    """A service of this process."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def generate(self, asked: GenerateBody, wants_json: bool, hung_up: HungUp) -> Reply:
        return await self.service.generate(asked, wants_json=wants_json, hung_up=hung_up)

    async def cancel(self, name: str) -> Reply:
        return cancelled(name, known_to_one=self.service.cancel(name))

    async def health(self) -> Reply:
        facts = self.service.health()
        return as_json(200 if facts["ok"] else 503, facts)

    async def metrics(self) -> Reply:
        return Reply(200, self.service.numbers.text(), TEXT)


def app(
    pipe: Any,  # noqa: ANN401
    *,
    defaults: Mapping[str, Any] | None = None,
    limits: Mapping[str, int] | None = None,
    **options: Any,  # noqa: ANN401
) -> FastAPI:
    """An application around a pipeline, or around what a function makes when the server starts. `defaults` are the
    pipeline's arguments where a client says nothing; `limits` the greatest values of arguments that memory and time
    grow with, {"height": 1024}, beside those of `dicache.serve.wish`; `options` are those of
    `dicache.serve.engine.Engine`: how many slots, how many may wait, what is asked for where a client does not say.

    `app.state.engine` is the engine, while the server runs.
    """

    @asynccontextmanager
    async def life(application: FastAPI) -> AsyncIterator[None]:
        service = Service(pipe, defaults=defaults, limits=limits, **options)
        application.state.handler, application.state.engine = Here(service), service.engine
        yield
        await service.close()

    application = FastAPI(title="dicache", lifespan=life)
    add_routes(application, lambda: application.state.handler)
    return application


def add_routes(application: FastAPI, handler: Callable[[], Handler]) -> None:
    application.add_middleware(SmallBodies)

    @application.exception_handler(RequestValidationError)
    async def unreadable(http: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(_text_of(each) for each in error.errors())
        if JSON not in http.headers.get("content-type", ""):
            wrong = f"expected a body of JSON, and Content-Type: {JSON}"
        return _response(refused(422, wrong))

    @application.exception_handler(HTTPException)
    async def impossible(_: Request, error: HTTPException) -> Response:
        return _response(refused(error.status_code, error.detail, error.headers))

    @application.post("/generate")
    async def generate(asked: GenerateBody, http: Request) -> Response:
        wants_json = JSON in http.headers.get("accept", "")
        return _response(await handler().generate(asked, wants_json, http.is_disconnected))

    @application.delete("/requests/{name:path}")
    async def cancel(name: str) -> Response:
        return _response(await handler().cancel(name))

    @application.get("/health")
    async def health() -> Response:
        return _response(await handler().health())

    @application.get("/metrics")
    async def metrics() -> Response:
        return _response(await handler().metrics())


def _response(answer: Reply) -> Response:
    return Response(answer.content, answer.status, dict(answer.headers), answer.kind)


def _text_of(wrong: Mapping[str, Any]) -> str:
    """Of one entry of what pydantic found: where, and what."""
    where = ".".join(str(each) for each in wrong["loc"][1:] if isinstance(each, str)) or "the body"
    return f"{where}: {wrong['msg']}"


class SmallBodies:
    """Answers 413 where a client sends more than a request can be."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > LARGEST_BODY:
                answer = refused(413, f"the body is longer than {LARGEST_BODY} bytes.", {"Connection": "close"})
                await _response(answer)(scope, receive, send)
                return
        await self.app(scope, _first({"type": "http.request", "body": body, "more_body": False}, receive), send)


def _first(message: Message, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """That message, then what comes."""
    waiting = [message]

    async def following() -> Message:
        return waiting.pop() if waiting else await receive()

    return following
