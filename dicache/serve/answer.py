"""What a client is answered: a picture, or JSON with pictures and the report; and errors, all of one form."""

import base64
import io
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL.Image import Image

from dicache.errors import PipelineError
from dicache.serve.request import Served

LONGEST = 300
"""Characters of an error's text."""
JSON = "application/json"


class Reply(NamedTuple):
    """It can be sent from one process to another."""

    status: int
    content: bytes
    kind: str = JSON
    """Of the content, as `image/png`."""
    headers: Mapping[str, str] = {}


def as_json(status: int, facts: Any, headers: Mapping[str, str] | None = None) -> Reply:  # noqa: ANN401
    text = json.dumps(_plain(facts), allow_nan=False, separators=(",", ":"))
    return Reply(status, text.encode(), JSON, dict(headers or {}))


def refused(status: int, error: BaseException | str, headers: Mapping[str, str] | None = None) -> Reply:
    """{"error": "..."}."""
    text = " ".join(str(error).split()) or type(error).__name__
    return as_json(status, {"error": f"{text:.{LONGEST}}"}, headers)


def drawn(served: Served, name: str, *, wants_json: bool) -> Reply:
    """The picture, of several the first; a video as animated WebP. Raises PipelineError where nothing can be shown."""
    facts = served.report.to_dict()
    if served.report.trace is not None and served.report.trace.not_finite:
        return refused(500, "the sample is not finite: the model gave no picture of this.")
    shown = [_encoded(each) for each in _pictures(served.output)]
    seconds = {"waited": served.waited, "seconds": served.seconds}
    if wants_json:
        pictures = [{"type": kind, "base64": base64.b64encode(data).decode()} for kind, data in shown]
        return as_json(200, {"id": name, "images": pictures, "report": facts, **seconds})
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
    return Reply(200, data, kind, headers)


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
