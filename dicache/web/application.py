"""`dicache demo --web`: a page with a slider for the budget, uncached and cached picture side by side, and what was
decided at every step while it is decided.

    GET  /        the page
    GET  /draw    ?caption=..&error_budget=..&seed=..&steps=..: server-sent events (`dicache.web.drawing`)

A client that hangs up ends the drawing at its next step.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import FastAPI, Query, Response
from fastapi.responses import HTMLResponse, StreamingResponse

from dicache.reference.scenes import prompts
from dicache.reporting.page import COLOURS, WORDS
from dicache.web.drawing import Painter, Wish

CAPTIONS = (
    "center large red circle on white background",
    "top-right large yellow star on blue background",
    "top-left large striped blue circle, bottom small red star on yellow background",
    "top-left large checkered red square, center small white ring, bottom-right large cyan cross on grey background",
)
LAST = "done", "refused"
"""Events after which there are none."""
LONGEST = 400
"""Characters of a caption."""


class HungUpError(Exception):
    """Nobody watches any more."""


def demo(*, error_budget: float = 0.05, steps: int = 28, painter: Painter | None = None) -> FastAPI:
    """The application; budget and steps are what the page begins with."""
    made = painter or Painter()
    application = FastAPI(title="dicache demo", docs_url=None, redoc_url=None, openapi_url=None)
    text = _page(error_budget, steps)

    @application.get("/")
    async def page() -> Response:
        return HTMLResponse(text)

    @application.get("/draw")
    async def draw(
        caption: Annotated[str, Query(max_length=LONGEST)],
        error_budget: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False)],
        seed: Annotated[int, Query(ge=0, lt=2**31)] = 0,
        steps: Annotated[int, Query(ge=2, le=100)] = 28,
    ) -> Response:
        events = _events(made, Wish(caption, seed, steps), error_budget)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    return application


async def _events(painter: Painter, wish: Wish, error_budget: float) -> AsyncIterator[str]:
    loop, queue, gone = asyncio.get_running_loop(), asyncio.Queue[tuple[str, dict[str, Any]]](), threading.Event()

    def tell(name: str, facts: dict[str, Any]) -> None:
        if gone.is_set():
            raise HungUpError
        loop.call_soon_threadsafe(queue.put_nowait, (name, facts))

    def paint() -> None:
        try:
            painter.paint(wish, error_budget, tell)
        except HungUpError:
            return
        except Exception as error:
            tell("refused", {"error": f"{type(error).__name__}: {error}"})
            raise

    drawing = loop.run_in_executor(None, paint)
    try:
        name = ""
        while name not in LAST:
            name, facts = await queue.get()
            yield f"event: {name}\ndata: {json.dumps(facts)}\n\n"
        await drawing
    finally:
        gone.set()


def _page(error_budget: float, steps: int) -> str:
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    colours = {action.name.lower(): colour for action, colour in COLOURS.items()}
    legend = [(WORDS[action], COLOURS[action]) for action in list(COLOURS)[:3]]
    captions = [*CAPTIONS, *prompts("test", 4)]
    facts = {"error_budget": error_budget, "steps": steps, "colours": colours}
    return (
        jinja2.Environment(autoescape=True).from_string(template).render(facts=facts, legend=legend, captions=captions)
    )
