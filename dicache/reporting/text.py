"""A report, as `Report.to_dict` gives it and a file holds it, as a table of plain text."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dicache.errors import FileError
from dicache.files.checked import Fields, FileFault, read_json, refusing
from dicache.types import MARKS, Action, Reason

WIDTH = 120
_COMPUTED = (Action.COMPUTE, Action.UNSTORED)


def printed(facts: Mapping[str, Any]) -> str:
    """Its headline, samples and warnings; markup in them is not interpreted."""
    table = Table(title=facts["headline"])
    audited = any(sample["true_error"] is not None for sample in facts["samples"])
    errors = ("estimated_error", "true_error") if audited else ("estimated_error",)
    for column in ("sample", "budget", *errors, "work", "decisions"):
        table.add_column(column.replace("_", " "), no_wrap=True)
    for i, sample in enumerate(facts["samples"]):
        numbers = [_number(sample[column]) for column in ("budget", *errors)]
        table.add_row(str(i), *numbers, f"{sample['computed_fraction']:.0%}", strip(sample["actions"]))
    console = Console(width=WIDTH, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table if facts["samples"] else facts["headline"])
        for warning in facts["warnings"]:
            console.print(f"note: {warning}")
    return capture.get()


def strip(actions: Iterable[Sequence[str]]) -> str:
    """The decisions of one sample, a mark per step, from the names of its sites' actions, steps x sites."""
    return "".join(_mark([Action[name.upper()] for name in names]) for names in actions)


def load_report(path: Path) -> dict[str, Any]:
    """What `Report.save` wrote. Raises FileError for any other file."""
    with refusing(FileError, f"{path} is no report", "Expected what Report.save or `dicache generate --report` wrote."):
        fields = read_json(path)
        _check(fields)
    return dict(fields.content)


def _check(fields: Fields) -> None:
    """That a table and a page can be made of it. Raises FileFault, KeyError or ValueError where it cannot."""
    for key in ("headline", "model", "scheduler"):
        fields.text(key)
    steps, samples = fields.each("steps"), fields.each("samples")
    fields.texts("warnings")
    fields.number("executed_macs"), fields.number("uncached_macs"), fields.integer("cache_bytes", 0)
    for network in fields.each("side_networks"):
        network.text("name"), network.number("share")
    for sample in samples:
        sample.number("computed_fraction")
        for key in ("budget", "estimated_error", "true_error"):
            if sample.has(key):
                sample.number(key)
        _check_decisions(sample)
    if any(len(step.values("estimated_error")) != len(samples) for step in steps):
        raise FileFault("its steps are not of its samples")
    audit = fields.content.get("audit")
    if audit is not None:
        fields.fields("audit").integer("samples", 0)


def _check_decisions(sample: Fields) -> None:
    actions, reasons = sample.values("actions"), sample.values("reasons")
    if len(actions) != len(reasons) or not all(len(each) > 0 for each in (*actions, *reasons)):
        raise FileFault("its actions and reasons are not of the same steps")
    for names, kinds in zip(actions, reasons, strict=True):
        _ = [Action[name.upper()] for name in names], [Reason[name.upper()] for name in kinds]


def _mark(actions: Sequence[Action]) -> str:
    """Of one step, over its sites."""
    computed = [action in _COMPUTED for action in actions]
    return "+" if any(computed) and not all(computed) else MARKS[actions[0]]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
