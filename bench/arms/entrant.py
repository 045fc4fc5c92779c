"""An arm from somebody else's file: `python -m dicache.bench pareto --arm my_arm.py`

    name                    what the tables call it
    sweep                   values of its knob, from the mildest on; drawn until the median error is past the tables
    prepare(pipe, value)    makes a pipeline that nobody has touched draw in the arm's way

`prepare` changes the pipeline in place, or returns a context manager that is entered while the captions are drawn, or
both; with a third parameter it also gets the setting (steps, guidance, ...). Where what the context yields is a dict,
that goes into the pipeline's call: `num_inference_steps` or `sigmas`. `knob` and `note` are words for the tables.
"""

import argparse
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusers import FluxPipeline

from dicache.bench.arms.arm import Arm
from dicache.bench.models.reference import Setting

PARTS = ("name", "sweep", "prepare")
CALL = ("num_inference_steps", "sigmas")
"""What an arm may change of the pipeline's call."""


class ArmFileError(ValueError):
    """A file that is no arm: what is wrong with it, and what was expected."""


def entrant(path: str) -> Arm:
    """For argparse: the arm of a file. Raises ArgumentTypeError with what is wrong with it."""
    try:
        return read(Path(path))
    except ArmFileError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read(path: Path) -> Arm:
    """The arm of a file. Raises ArmFileError."""
    module = _loaded(path)
    missing = [part for part in PARTS if not hasattr(module, part)]
    if missing:
        raise ArmFileError(f"{path} has no {', no '.join(missing)}. Expected {', '.join(PARTS)} at its top level.")
    name, knob = _words(path, "name", module.name), _words(path, "knob", getattr(module, "knob", "value"))
    note = str(getattr(module, "note", "")) or f"from {path.name}"
    return Arm(name, "entrant", knob, (), _prepare(path, module.prepare), note, onward=_values(path, module.sweep))


def _loaded(path: Path) -> ModuleType:
    if not path.is_file() or path.suffix != ".py":
        raise ArmFileError(f"{path} is no Python file. Expected one with {', '.join(PARTS)} at its top level.")
    spec = importlib.util.spec_from_file_location(f"arm_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a stranger's file may fail in any way; the line says how
        raise ArmFileError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
    return module


def _words(path: Path, part: str, value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str) or not value.strip() or set(value) & set("|\n"):
        raise ArmFileError(f"{part} of {path} is {value!r}. Expected a few words on one line, without |.")
    return value.strip()


def _values(path: Path, sweep: Any) -> tuple[Any, ...]:  # noqa: ANN401
    expected = "Expected a list of different numbers or texts, from the mildest on, such as [2, 3, 4]."
    if not isinstance(sweep, list | tuple) or not sweep:
        raise ArmFileError(f"sweep of {path} is {sweep!r}. {expected}")
    for value in sweep:
        if not isinstance(value, int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
            raise ArmFileError(f"sweep of {path} has {value!r}. {expected}")
    if len({str(value) for value in sweep}) < len(sweep):
        raise ArmFileError(f"sweep of {path} has a value twice: {sweep!r}. {expected}")
    return tuple(sweep)


def _prepare(path: Path, prepare: Any) -> Callable[..., AbstractContextManager[Setting]]:  # noqa: ANN401
    takes = _parameters(prepare)
    if takes == 0:
        raise ArmFileError(
            f"prepare of {path} is {prepare!r}. Expected a function of the pipeline and the knob's value."
        )

    @contextmanager
    def prepared(pipe: FluxPipeline, value: Any, setting: Setting) -> Iterator[Setting]:  # noqa: ANN401
        entered = prepare(*(pipe, value, setting)[:takes])
        if entered is None:
            yield setting
        elif isinstance(entered, AbstractContextManager):
            with entered as change:
                yield _changed(path, setting, change)
        else:
            raise ArmFileError(f"prepare of {path} returned {entered!r}. Expected None or a context manager.")

    return prepared


def _parameters(prepare: Any) -> int:  # noqa: ANN401
    """How many of (pipe, value, setting) it takes: 3, 2, or 0 for anything that cannot be called so."""
    if not callable(prepare):
        return 0
    signature = inspect.signature(prepare)
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    return 0


def _changed(path: Path, setting: Setting, change: Any) -> Setting:  # noqa: ANN401
    """The setting with what the arm wants of the call; anything but a dict, such as a Cache, changes nothing."""
    if not isinstance(change, Mapping):
        return setting
    if unknown := set(change) - set(CALL):
        raise ArmFileError(f"prepare of {path} yields {', '.join(map(repr, unknown))}. Expected {' or '.join(CALL)}.")
    sigmas = change.get("sigmas")
    steps = int(change.get("num_inference_steps", setting.steps if sigmas is None else len(sigmas)))
    return replace(setting, steps=steps, sigmas=None if sigmas is None else tuple(map(float, sigmas)))
