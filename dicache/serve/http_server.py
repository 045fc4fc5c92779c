"""An HTTP server around a pipeline: what clients ask for goes to an engine, which runs requests together.

    POST   /generate        {"prompt": "...", "error_budget": 0.05, "seed": 7}: the picture, or JSON where the client
                            accepts that; decisions, work and errors come in the headers or in "report"
    DELETE /requests/{id}   cancels the request that was sent with this "id"
    GET    /health          200, with what runs and waits; 503 once the engine is closed
    GET    /metrics         for Prometheus

`app` makes a FastAPI application, which uvicorn runs in one process; `deployment` makes one for Ray Serve, with as many
replicas as Ray is asked for. A client that hangs up cancels its request. Where as many wait as may, the answer is 429
with the seconds after which it is worth while to ask again.
"""

import asyncio
import base64
import io
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL.Image import Image
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field

from dicache.errors import BusyError, DicacheError, PipelineError
from dicache.fanout.workers import is_factory
from dicache.hosts.pipeline_call import guided, taken_by
from dicache.serve.engine import Engine
from dicache.serve.request import CancelledError, Served

HUNG_UP = 499
"""What nginx answers to nobody: the client has closed the connection, or cancelled."""
LISTENING = 0.25
"""Seconds between two looks at whether the client is still there."""
LONGEST = 300
"""Characters of an error's text."""


class GenerateBody(BaseModel):
    """What a client may ask for. What is left out is the pipeline's own, or what the server was started with."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    negative_prompt: str | None = None
    steps: int | None = Field(None, ge=1, le=1000)
    guidance: float | None = Field(None, ge=0, allow_inf_nan=False)
    height: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)
    error_budget: float | None = Field(None, ge=0, allow_inf_nan=False)
    speedup: float | None = Field(None, ge=1, allow_inf_nan=False)
    evaluations: int | None = Field(None, ge=1)
    confidence: float | None = Field(None, gt=0, lt=1)
    arguments: dict[str, Any] = {}
    """Further ones of the pipeline's call."""
    id: str | None = Field(None, max_length=200)
    """Of the request, to cancel it by."""

    def options(self) -> dict[str, Any]:
        """As `Engine.submit` takes them."""
        return self.model_dump(include={"error_budget", "speedup", "evaluations", "confidence"}, exclude_none=True)

    def call(self, pipe: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        """As the pipeline takes it; the noise is that of the seed, on the host."""
        own = {"prompt": self.prompt, "negative_prompt": self.negative_prompt, "height": self.height}
        own |= {"width": self.width, "num_inference_steps": self.steps}
        if self.guidance is not None:
            own |= guided(pipe, self.guidance, self.negative_prompt)
        arguments = {name: value for name, value in own.items() if value is not None}
        generator = {"generator": torch.Generator().manual_seed(self.seed)} if "generator" in taken_by(pipe) else {}
        return {**defaults, **arguments, **self.arguments, **generator}


def app(
    pipe: Any,  # noqa: ANN401
    *,
    defaults: Mapping[str, Any] | None = None,
    **options: Any,  # noqa: ANN401
) -> FastAPI:
    """An application around a pipeline, or around what a function makes when the server starts. `defaults` are the
    pipeline's arguments where a client says nothing; `options` are those of `dicache.serve.engine.Engine`: how many
    slots, how many may wait, what is asked for where a client does not say.

    `app.state.engine` is the engine, while the server runs.
    """

    @asynccontextmanager
    async def life(application: FastAPI) -> AsyncIterator[None]:
        made = pipe() if is_factory(pipe) else pipe
        engine = application.state.engine = Engine(made, **options)
        registry = CollectorRegistry()
        registry.register(Numbers(engine))
        ProcessCollector(registry=registry)
        application.state.latency = Histogram(
            "dicache_request_seconds", "From when a request came until it was served.", registry=registry
        )
        application.state.registry, application.state.named = registry, {}
        yield
        await asyncio.to_thread(engine.close)

    application = FastAPI(title="dicache", lifespan=life)

    @application.exception_handler(RequestValidationError)
    async def unreadable(_: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors())
        return _refused(PipelineError(wrong), 422)

    @application.post("/generate")
    async def generate(asked: GenerateBody, http: Request) -> Response:
        engine: Engine = application.state.engine
        try:
            request = engine.submit(asked.call(engine.pipe, defaults or {}), **asked.options())
        except BusyError as error:
            return _refused(error, 429, {"Retry-After": str(_worth_while_after(engine))})
        except DicacheError as error:
            return _refused(error, 422)
        named = application.state.named
        if asked.id is not None:
            named[asked.id] = request
        try:
            future = asyncio.wrap_future(request.future)
            while not future.done():
                await asyncio.wait({future}, timeout=LISTENING)
                if not future.done() and await http.is_disconnected():
                    request.cancel()
            served = future.result()
            application.state.latency.observe(served.seconds)
            return await asyncio.to_thread(
                _answer, served, request.id, "application/json" in http.headers.get("accept", "")
            )
        except asyncio.CancelledError:  # the server ends
            request.cancel()
            raise
        except CancelledError as error:
            return _refused(error, HUNG_UP)
        except (DicacheError, TypeError, ValueError) as error:  # what pipelines refuse
            return _refused(error, 422)
        except Exception as error:
            return _refused(error, 500)
        finally:
            if named.get(asked.id) is request:
                del named[asked.id]

    @application.delete("/requests/{name}")
    async def cancel(name: str) -> Response:
        request = application.state.named.get(name)
        if request is None:
            return JSONResponse({"error": f"no request {name:.200} runs or waits."}, 404)
        request.cancel()
        return JSONResponse({"cancelled": name})

    @application.get("/health")
    async def health() -> Response:
        engine: Engine = application.state.engine
        facts = {"pipeline": type(engine.pipe).__name__, "running": len(engine.running), "waiting": len(engine.queue)}
        return JSONResponse({"ok": engine.alive, **facts}, 200 if engine.alive else 503)

    @application.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(application.state.registry), media_type="text/plain; version=0.0.4")

    return application


def deployment(make: Callable[[], Any], *, replicas: int = 1, gpus: float = 0.0, **options: Any) -> Any:  # noqa: ANN401
    """The same for Ray Serve: `serve.run(dicache.serve.deployment(make))`, or `serve run module:application`. `make` is
    a function that makes the pipeline, in each replica; `options` are those of `app`. Needs `ray[serve]`.
    """
    from ray import serve

    application = app(make, **options)
    served = serve.deployment(num_replicas=replicas, ray_actor_options={"num_gpus": gpus})
    return served(serve.ingress(application)(type("Dicache", (), {}))).bind()


class Numbers(Collector):
    """What an engine has done, as Prometheus reads it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> list[Metric]:
        engine, counts = self.engine, self.engine.counts
        requests = CounterMetricFamily("dicache_requests", "Requests by what became of them.", labels=["outcome"])
        for outcome in ("served", "failed", "cancelled", "refused"):
            requests.add_metric([outcome], vars(counts)[outcome])
        work = CounterMetricFamily("dicache_macs", "Multiply-accumulates of the denoiser.", labels=["kind"])
        work.add_metric(["executed"], counts.executed)
        work.add_metric(["uncached"], counts.uncached)
        audits = CounterMetricFamily("dicache_audits", "Samples that were drawn again uncached.", labels=["budget"])
        within = sum(audited.budget is not None and audited.error <= audited.budget for audited in engine.audits)
        audits.add_metric(["within"], within)
        audits.add_metric(["passed"], len(engine.audits) - within)
        return [
            requests,
            work,
            audits,
            CounterMetricFamily(
                "dicache_steps", "Joint calls of the denoiser, or none where all skipped.", counts.steps
            ),
            CounterMetricFamily("dicache_calls", "Denoiser calls that requests made in them.", counts.calls),
            GaugeMetricFamily("dicache_padding", "Share of all rows that filled groups.", engine.padding),
            GaugeMetricFamily("dicache_running", "Requests that run.", len(engine.running)),
            GaugeMetricFamily("dicache_waiting", "Requests that wait.", len(engine.queue)),
        ]


def _worth_while_after(engine: Engine) -> int:
    """Seconds until a place is likely to be free: what the last requests took, over the slots."""
    seconds = engine.counts.seconds
    return max(1, math.ceil(sum(seconds) / len(seconds) / engine.most_at_once)) if seconds else 1


def _refused(error: BaseException, status: int, headers: Mapping[str, str] | None = None) -> Response:
    text = " ".join(str(error).split()) or type(error).__name__
    return JSONResponse({"error": f"{text:.{LONGEST}}"}, status, headers=dict(headers or {}))


def _answer(served: Served, name: str, as_json: bool) -> Response:
    """The picture, of several the first; a video as animated WebP. Raises PipelineError where nothing can be shown."""
    facts = served.report.to_dict()
    if served.report.trace is not None and served.report.trace.not_finite:
        return _refused(PipelineError("the sample is not finite: the model gave no picture of this."), 500)
    shown = [_encoded(each) for each in _pictures(served.output)]
    seconds = {"waited": served.waited, "seconds": served.seconds}
    if as_json:
        pictures = [{"type": kind, "base64": base64.b64encode(data).decode()} for kind, data in shown]
        return JSONResponse({"id": name, "images": pictures, "report": _plain(facts), **seconds})
    (sample, *_) = facts["samples"]
    headers = {
        "X-Dicache-Request": name,
        "X-Dicache-Speedup": f"{facts['compute_speedup']:.3f}",
        "X-Dicache-Estimated-Error": str(sample["estimated_error"]),
        "X-Dicache-Budget": str(sample["budget"]),
        "X-Dicache-Warnings": json.dumps(facts["warnings"]),
        "X-Dicache-Seconds": f"{served.seconds:.3f}",
    }
    kind, data = shown[0]
    return Response(data, media_type=kind, headers=headers)


def _pictures(output: Any) -> list[Any]:  # noqa: ANN401
    """Of PIL, and of a video a list of them."""
    values = output if isinstance(output, tuple) else tuple(output.values())
    pictures = values[0] if values else []
    first = pictures[0] if isinstance(pictures, list) and pictures else None
    if not isinstance(first[0] if isinstance(first, list) and first else first, Image):
        raise PipelineError(
            f"the pipeline gave a {type(pictures).__name__}. Expected pictures of PIL: output_type='pil'."
        )
    return list(pictures)


def _encoded(picture: Any) -> tuple[str, bytes]:  # noqa: ANN401
    data = io.BytesIO()
    if isinstance(picture, list):
        picture[0].save(data, "WEBP", save_all=True, append_images=picture[1:], duration=62, loop=0)
        return "image/webp", data.getvalue()
    picture.save(data, "PNG")
    return "image/png", data.getvalue()


def _plain(facts: Any) -> Any:  # noqa: ANN401
    """Numbers that JSON has: what is not finite is null."""
    if isinstance(facts, Mapping):
        return {key: _plain(value) for key, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [_plain(value) for value in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts
