"""Schedules as files. JSON that a person can read and compare, a line of letters per step; fitted coefficients in a
safetensors file beside it, bound by sha256.

A file is read as data and checked before anything is used: format, kinds, sizes, signs, letters, digest, and that its
MACs are what its table comes to. Nothing is unpickled, nothing outside the JSON file's folder is opened.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dicache.approximators.fitted.coefficients import Fitted, selector
from dicache.errors import DicacheError, ScheduleError
from dicache.files.checked import FileFault, plain_bytes, sibling
from dicache.schedules.action_table import read, written
from dicache.schedules.basis import Basis, Cell, Dynamic
from dicache.schedules.schedule import Found, Schedule
from dicache.types import Kind

FORMATS = {False: "dicache.schedule/1", True: "dicache.schedules/1"}
"""By whether there are several."""
LARGEST = {"json": 16 << 20, "fitted": 1 << 30}
MOST = 10_000
"""Steps, and sites."""
Json = dict[str, Any]


def save(schedules: Sequence[Schedule], path: Path, *, several: bool) -> None:
    """Schedules of one basis, and with one set of coefficients or none. Raises ScheduleError for others, or where they
    cannot be written.
    """
    basis, fitted = schedules[0].basis, _shared(schedules)
    if path.suffix != ".json":
        raise ScheduleError(f"{path} is not a schedule's name. Expected one that ends in .json.")
    content = {"format": FORMATS[several], **_basis_json(basis), "fitted": None}
    try:
        if fitted is not None:
            coefficients = path.with_suffix(".safetensors")
            fitted.save(coefficients)
            digest = hashlib.sha256(coefficients.read_bytes()).hexdigest()
            content["fitted"] = {"file": coefficients.name, "sha256": digest}
        tables = [_table_json(schedule) for schedule in schedules]
        content |= {"schedules": tables} if several else tables[0]
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        part.replace(path)
    except (OSError, DicacheError, ValueError, TypeError) as error:
        raise ScheduleError(f"the schedule cannot be written to {path}: {str(error).rstrip('.')}.") from error


def _shared(schedules: Sequence[Schedule]) -> Fitted | None:
    """The coefficients of those that have any."""
    if any(schedule.basis != schedules[0].basis for schedule in schedules):
        raise ScheduleError("schedules of several models, sites or steps are no one file. Save them apart.")
    fitted = {schedule.fitted for schedule in schedules} - {None}
    if len(fitted) > 1:
        raise ScheduleError("schedules with several sets of coefficients are no one file. Save them apart.")
    return next(iter(fitted), None)


def _basis_json(basis: Basis) -> Json:
    return {
        "model": basis.model,
        "scheduler": basis.scheduler,
        "sigmas": list(basis.sigmas),
        "rows": list(basis.rows),
        "uncached_macs": basis.uncached,
        "selector": dict(basis.selector),
        "sites": [{"path": c.path, "kind": str(c.kind), "macs": c.macs, "guess_macs": c.guess} for c in basis.cells],
    }


def _table_json(schedule: Schedule) -> Json:
    found, dynamic = schedule.found, schedule.dynamic
    return {
        "actions": written(schedule.table),
        "dynamic": None if dynamic is None else dynamic._asdict(),
        "finder": {
            "name": found.finder,
            "arguments": dict(found.arguments),
            "seed": found.seed,
            "prompts": found.prompts,
            "prompts_sha256": found.digest,
            "version": found.version,
        },
        "predicted": {"macs": schedule.macs, "error": schedule.error},
    }


def load(path: Path, *, several: bool) -> list[Schedule]:
    """Read what `save` wrote. Raises ScheduleError, whatever is wrong with the files; nothing is made of them then."""
    try:
        content = json.loads(plain_bytes(path, LARGEST["json"]).decode())
        _check_format(content, several)
        basis, fitted = _basis(content), _fitted(content, path.parent)
        tables = _get(content, "schedules", list) if several else [content]
        if not tables or not all(isinstance(table, dict) for table in tables):
            raise FileFault("'schedules' is not a list of one or more schedules")
        return [_schedule(table, basis, fitted) for table in tables]
    except (FileFault, DicacheError, OSError, ArithmeticError, ValueError, TypeError, LookupError) as error:
        what = " ".join(str(error).split()).rstrip(".")
        text = f"{path} is no schedule that can be used: {what}. Find it again: dicache search."
        raise ScheduleError(text) from error
    except RecursionError as error:
        raise ScheduleError(f"{path} is no schedule that can be used: it is nested too deep.") from error


def _check_format(content: Any, several: bool) -> None:  # noqa: ANN401
    given = content.get("format") if isinstance(content, dict) else None
    if given == FORMATS[not several]:
        use = "one: use Schedule.load" if several else "several: use ParetoSet.load(path).at(cost=0.5)"
        raise FileFault(f"it holds {use}")
    if given != FORMATS[several]:
        raise FileFault(f"its format is not {FORMATS[several]}")


def _get(content: Json, key: str, kind: type | tuple[type, ...]) -> Any:  # noqa: ANN401
    value = content.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise FileFault(f"{key!r} is missing or of another kind")
    return value


def _number(content: Json, key: str, least: float = 0.0) -> float:
    value = float(_get(content, key, (int, float)))
    if not (math.isfinite(value) and value >= least):
        raise FileFault(f"{key!r} is {value:g}, not a finite number from {least:g} on")
    return value


def _numbers(content: Json, key: str, kind: type | tuple[type, ...]) -> list[Any]:
    values: list[Any] = _get(content, key, list)
    if not all(isinstance(v, kind) and not isinstance(v, bool) and math.isfinite(float(v)) for v in values):  # type: ignore[arg-type]
        raise FileFault(f"{key!r} are not all finite numbers")
    return values


def _basis(content: Json) -> Basis:
    sigmas = tuple(float(s) for s in _numbers(content, "sigmas", (int, float)))
    rows = tuple(_numbers(content, "rows", int))
    cells = tuple(_cell(cell) for cell in _get(content, "sites", list))
    if not (2 <= len(sigmas) <= MOST and 1 <= len(cells) <= MOST and len({c.path for c in cells}) == len(cells)):
        raise FileFault("it has not 2 or more steps, and 1 or more sites with paths of their own")
    if len(rows) != len(sigmas) or not all(1 <= n <= MOST for n in rows):
        raise FileFault("'rows' are not a number from 1 on for every step")
    uncached, chosen = _number(content, "uncached_macs", 1.0), _get(content, "selector", dict)
    if not all(_plain(value) for value in chosen.values()):
        raise FileFault("'selector' has options of another kind than expected")
    selector(chosen)
    if sum(rows) * sum(cell.macs for cell in cells) > uncached * (1 + 1e-6):
        raise FileFault("its sites cost more than the whole run")
    return Basis(_get(content, "model", str), _get(content, "scheduler", str), sigmas, chosen, cells, rows, uncached)


def _plain(value: Any) -> bool:  # noqa: ANN401
    return value is None or isinstance(value, str | int) or (isinstance(value, list) and all(map(_plain, value)))


def _cell(cell: Any) -> Cell:  # noqa: ANN401
    if not isinstance(cell, dict):
        raise FileFault("a site is not described")
    kind = Kind(_get(cell, "kind", str))
    return Cell(_get(cell, "path", str), kind, _number(cell, "macs"), _number(cell, "guess_macs"))


def _fitted(content: Json, folder: Path) -> Fitted | None:
    if content.get("fitted") is None:
        return None
    bound = _get(content, "fitted", dict)
    path = folder / sibling(_get(bound, "file", str))
    if hashlib.sha256(plain_bytes(path, LARGEST["fitted"])).hexdigest() != bound.get("sha256"):
        raise FileFault(f"{path.name} is not the file it was saved with (sha256 differs)")
    return Fitted.load(path)


def _schedule(content: Json, basis: Basis, fitted: Fitted | None) -> Schedule:
    lines = _get(content, "actions", list)
    if len(lines) != len(basis.sigmas) or not all(isinstance(line, str) for line in lines):
        raise FileFault("'actions' is not a string for every step")
    table, predicted = read(lines), _get(content, "predicted", dict)
    error = None if predicted.get("error") is None else _number(predicted, "error")
    found = _found(_get(content, "finder", dict))
    schedule = Schedule(basis, table, found, error, _dynamic(content), fitted)
    if not math.isclose(_number(predicted, "macs"), schedule.macs, rel_tol=1e-6):
        raise FileFault(f"its MACs are {schedule.macs:g}, not the {predicted['macs']:g} that were predicted")
    return schedule


def _found(content: Json) -> Found:
    arguments = _get(content, "arguments", dict)
    if not all(value is None or isinstance(value, str | int | float) for value in arguments.values()):
        raise FileFault("'arguments' are not all strings and numbers")
    words = [_get(content, key, str) for key in ("name", "prompts_sha256", "version")]
    counts = [_get(content, key, int) for key in ("seed", "prompts")]
    return Found(words[0], arguments, counts[0], counts[1], words[1], words[2])


def _dynamic(content: Json) -> Dynamic | None:
    if content.get("dynamic") is None:
        return None
    given = _get(content, "dynamic", dict)
    longest = _get(given, "longest", int)
    if not 1 <= longest <= MOST:
        raise FileFault(f"'longest' is {longest}, not from 1 to {MOST}")
    return Dynamic(_number(given, "limit"), longest)
