"""The command `serve`, a pipeline as an HTTP server on this machine, and the page of `dicache demo --web`."""

import socket
from typing import Annotated, Any

import typer

from dicache.cli.arguments import check_budget
from dicache.cli.options import PipelineCall, Source, spread
from dicache.errors import ModeError, PipelineError


@spread
def serve(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where it listens; 0 for any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="Of which of this machine's addresses; 0.0.0.0 for all.")] = "127.0.0.1",
    slots: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 8,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; one more is answered with 429.")] = 64,
    error_budget: Annotated[
        float | None, typer.Option(help="Where a client asks for nothing: 0.05 where nothing is said here either.")
    ] = None,
    speedup: Annotated[float | None, typer.Option(min=1.0, help="Instead: how much less to compute, as 2.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="What `dicache calibrate` wrote: clients may then ask for a confidence.")
    ] = None,
    largest_budget: Annotated[
        float | None, typer.Option(help="Up to which budgets may grow when requests wait; without, they do not.")
    ] = None,
    audit: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of requests that are drawn again uncached, for /metrics."),
    ] = None,
    batch_invariant: Annotated[
        int | None,
        typer.Option(min=1, help="So many requests in every call, padded: the same bits whatever runs beside them."),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="Greatest value that a client may give an argument, as height=1024; repeatable."),
    ] = None,
    source: Source,
    call: PipelineCall,
) -> None:
    """Serve a pipeline of yours, or the model that ships, over HTTP: POST /generate, GET /health, GET /metrics."""
    if error_budget is not None and speedup is not None:
        raise ModeError("--error-budget and --speedup are both given. Expected one of them.")
    if profile is not None and speedup is not None:
        raise ModeError("--profile goes with --error-budget, and --speedup is given. Leave one of them out.")
    for budget in (error_budget, largest_budget):
        if budget is not None:
            check_budget(budget)
    limits = dict(map(_limit, limit or []))
    try:
        import uvicorn

        from dicache.serve import app
    except ImportError as error:
        raise PipelineError(f"{error.name} is missing. Run pip install 'dicache[serve]'.") from error
    from dicache.cli.load import ready
    from dicache.enable_options import MODES, with_settings

    options_set = {"error_budget": error_budget, "speedup": speedup, "profile": profile, "audit": audit}
    asked = with_settings(source.settings, {name: value for name, value in options_set.items() if value is not None})
    if not any(name in asked for name in MODES):
        asked["error_budget"] = 0.05
    source_ready = ready(source, call)
    options: dict[str, Any] = {"slots": slots, "queue": queue, "largest_budget": largest_budget}
    options["audit"] = asked.pop("audit", 0.0)
    options["batch_invariant"] = batch_invariant
    defaults = {"num_inference_steps": source_ready.steps, **source_ready.call}
    application = app(source_ready.pipe, defaults=defaults, limits=limits, **options, **asked)
    with _listening(host, port) as listening:
        where = _address(host, listening)
        print(f"serving {type(source_ready.pipe).__name__}; try: curl {where}/health", flush=True)
        uvicorn.Server(uvicorn.Config(application, log_level="warning")).run([listening])


def serve_demo(error_budget: float, steps: int, host: str, port: int) -> None:
    """The page that begins with this budget and so many steps, until Ctrl-C. Raises PipelineError where what it needs
    is missing or the port is taken.
    """
    try:
        import uvicorn

        from dicache.web.application import demo
    except ImportError as error:
        raise PipelineError(f"{error.name} is missing. Run pip install 'dicache[web]'.") from error
    server = uvicorn.Server(uvicorn.Config(demo(error_budget=error_budget, steps=steps), log_level="warning"))
    with _listening(host, port) as listening:
        print(f"the demo is at {_address(host, listening)}; Ctrl-C ends it", flush=True)
        server.run([listening])


def _limit(text: str) -> tuple[str, int]:
    name, _, most = text.partition("=")
    if not name.isidentifier() or not most.isdecimal() or int(most) < 1:
        raise ModeError(f"--limit {text!r:.80} is none. Expected NAME=NUMBER, as height=1024.")
    return name, int(most)


def _listening(host: str, port: int) -> socket.socket:
    """Raises PipelineError where that is taken, or no address of this machine."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise PipelineError(f"{host}:{port} cannot be listened on: {error.strerror}. Use --port 0.") from error


def _address(host: str, listening: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
