"""Schedules as files. JSON that a person can read and compare, a line of letters per step; fitted coefficients in a
safetensors file beside it, bound by sha256 (`dicache.files.bound_arrays`).

A file is read as data and checked before anything is used: format, kinds, sizes, signs, letters, digest. Nothing is
unpickled, nothing outside the JSON file's folder is opened. Its actions may be edited by hand; what was predicted of
others is then not taken over.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from dicache._version import __version__
from dicache.approximators.fitted import coefficients_file
from dicache.approximators.fitted.about import selector
from dicache.approximators.fitted.coefficients import Fitted
from dicache.errors import ScheduleError
from dicache.files.bound_arrays import bound_arrays, write_bound, write_facts, writing
from dicache.files.checked import Fields, FileFault, Json, read_json
from dicache.schedules.action_table import Table, lines_of, table_of
from dicache.schedules.setting import Basis, Cell, Dynamic, Origin
from dicache.types import Kind

FORMATS = {False: "dicache.schedule/1", True: "dicache.schedules/1"}
"""By whether there are several."""
MOST = 10_000
"""Steps, and sites."""


class Content(NamedTuple):
    """What a file says of one schedule (`dicache.schedules.schedule`)."""

    basis: Basis
    table: Table
    origin: Origin
    error: float | None
    dynamic: Dynamic | None
    fitted: Fitted | None
    macs: float | None
    """That it says."""
    edited: bool
    """Whether its actions are others than those that it was predicted for."""
    score: float | None = None


def save(schedules: Sequence[Content], path: Path, *, several: bool) -> None:
    """Schedules of one basis, and with one set of coefficients or none. Raises ScheduleError for others, or where they
    cannot be written.
    """
    basis, fitted = schedules[0].basis, _shared(schedules)
    with writing(ScheduleError, "schedule", path):
        tables = [_table_json(schedule) for schedule in schedules]
        content = {"format": FORMATS[several], **_basis_json(basis), "fitted": None}
        content |= {"schedules": tables} if several else tables[0]
        if fitted is None:
            write_facts(path, content)
        else:
            write_bound(path, content, "fitted", coefficients_file.as_bytes(fitted.about, fitted.coefficients))


def _shared(schedules: Sequence[Content]) -> Fitted | None:
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


def _table_json(schedule: Content) -> Json:
    origin, dynamic = schedule.origin, schedule.dynamic
    return {
        "actions": lines_of(schedule.table),
        "dynamic": None if dynamic is None else dynamic._asdict(),
        "finder": {
            "name": origin.finder,
            "arguments": dict(origin.arguments),
            "seed": origin.seed,
            "prompts": origin.prompts,
            "prompts_sha256": origin.digest,
            "version": origin.version,
        },
        "predicted": {
            "macs": schedule.macs,
            "error": schedule.error,
            "score": schedule.score,
            "actions_sha256": _digest(lines_of(schedule.table)),
        },
    }


def _digest(lines: Sequence[str]) -> str:
    return sha256("\n".join(lines).encode()).hexdigest()


def read(path: Path, *, several: bool) -> list[Content]:
    """What `save` wrote. Raises FileFault, OSError, ValueError or LookupError for anything else."""
    facts = read_json(path)
    _check_format(facts.content.get("format"), several)
    tables = facts.each("schedules") if several else [facts]
    if not tables:
        raise FileFault("'schedules' is empty")
    basis = _basis(facts)
    fitted = _fitted(path, facts)
    return [_content(table, basis, fitted) for table in tables]


def _check_format(name: Any, several: bool) -> None:  # noqa: ANN401
    if name == FORMATS[not several]:
        use = "one: use Schedule.load" if several else "several: use ParetoSet.load(path).at(cost=0.51)"
        raise FileFault(f"it holds {use}")
    if name != FORMATS[several]:
        raise FileFault(f"its format is not {FORMATS[several]}")


def _basis(facts: Fields) -> Basis:
    sigmas, rows = facts.numbers("sigmas"), facts.values("rows")
    cells = tuple(map(_cell, facts.each("sites")))
    if not (2 <= len(sigmas) <= MOST and 1 <= len(cells) <= MOST and len({c.path for c in cells}) == len(cells)):
        raise FileFault("it has not 2 or more steps, and 1 or more sites with paths of their own")
    if len(rows) != len(sigmas) or not all(type(n) is int and 1 <= n <= MOST for n in rows):
        raise FileFault("'rows' are not a number from 1 on for every step")
    uncached = facts.number("uncached_macs", 1.0)
    if sum(rows) * sum(cell.macs for cell in cells) > uncached * (1 + 1e-6):
        raise FileFault("its sites cost more than the whole run")
    description = facts.fields("selector").content
    if not all(map(_plain, description.values())):
        raise FileFault("'selector' has options of another kind than expected")
    selector(description)
    return Basis(facts.text("model"), facts.text("scheduler"), sigmas, description, cells, tuple(rows), uncached)


def _plain(value: Any) -> bool:  # noqa: ANN401
    return value is None or isinstance(value, str | int) or (isinstance(value, list) and all(map(_plain, value)))


def _cell(site: Fields) -> Cell:
    return Cell(site.text("path"), Kind(site.text("kind")), site.number("macs", 0.0), site.number("guess_macs", 0.0))


def _fitted(path: Path, facts: Fields) -> Fitted | None:
    if not facts.has("fitted"):
        return None
    with bound_arrays(path, facts, "fitted", coefficients_file.LARGEST) as file:
        return Fitted(*coefficients_file.read(file))


def _content(facts: Fields, basis: Basis, fitted: Fitted | None) -> Content:
    lines, steps, sites = facts.texts("actions"), len(basis.sigmas), len(basis.cells)
    if len(lines) != steps:
        raise FileFault(f"'actions' has {len(lines)} rows for {steps} steps")
    if wrong := [t for t, line in enumerate(lines) if len(line) != sites]:
        raise FileFault(f"'actions' has {len(lines[wrong[0]])} letters for {sites} sites in row {wrong[0]}")
    error, macs, edited, score = (
        _predicted(facts.fields("predicted"), lines) if facts.has("predicted") else (None, None, False, None)
    )
    origin = _origin(facts.fields("finder")) if facts.has("finder") else Origin("hand", {}, 0, 0, "", __version__)
    return Content(basis, table_of(lines), origin, error, _dynamic(facts), fitted, macs, edited, score)


def _predicted(predicted: Fields, lines: Sequence[str]) -> tuple[float | None, float | None, bool, float | None]:
    """Error, MACs, whether they are of other actions, and the score."""
    error = predicted.number("error", 0.0) if predicted.has("error") else None
    macs = predicted.number("macs", 0.0) if predicted.has("macs") else None
    digested = "actions_sha256" in predicted.content  # files had no digest once
    edited = digested and predicted.text("actions_sha256") != _digest(lines)
    return error, macs, edited, predicted.number("score") if predicted.has("score") else None


def _origin(finder: Fields) -> Origin:
    arguments = finder.fields("arguments").content
    if not all(value is None or isinstance(value, str | int | float) for value in arguments.values()):
        raise FileFault("'arguments' are not all strings and numbers")
    digest, version = finder.text("prompts_sha256"), finder.text("version")
    return Origin(finder.text("name"), arguments, finder.integer("seed"), finder.integer("prompts"), digest, version)


def _dynamic(facts: Fields) -> Dynamic | None:
    if not facts.has("dynamic"):
        return None
    dynamic = facts.fields("dynamic")
    return Dynamic(dynamic.number("limit", 0.0), dynamic.integer("longest", 1, MOST))
