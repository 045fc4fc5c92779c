"""Profiles as files: the facts as JSON, with the arrays in a safetensors file beside it, bound to it by sha256
(`dicache.files.bound_arrays`).

A file is read as data and checked before anything is used: format, sizes, names, digest, shapes, signs. Nothing is
unpickled, nothing outside the JSON file's folder is opened. Arrays of other names, which earlier versions wrote, are
left unread.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dicache.errors import ProfileError
from dicache.files.arrays_file import ArraysFile, arrays_bytes
from dicache.files.bound_arrays import bound_arrays, read_facts, write_bound, writing
from dicache.files.checked import Fields, FileFault
from dicache.models.conditioning import SIZE
from dicache.promise.facts import GAIN_TIMES, GAINS, LOSS, NEEDED, Facts

FORMAT = "dicache.profile/1"
LARGEST = 256 << 20
"""Bytes of arrays; more are no profile's."""
Arrays = Mapping[str, np.ndarray]


def save(facts: Facts, arrays: Arrays, about: Mapping[str, Any], path: Path) -> None:
    """Write `path` (.json) and the arrays beside it (.safetensors). Raises ProfileError if that is impossible."""
    content = {
        "format": FORMAT,
        "model": facts.model,
        "scheduler": facts.scheduler,
        "sigmas": list(facts.sigmas),
        "guidance": facts.guidance,
        "rule": facts.rule,
        "weaker": {key: list(numbers) for key, numbers in facts.negative_conditions.items()},
        "size": list(facts.size),
        **({} if facts.controls is None else {"controls": list(facts.controls)}),
        **({"parts": facts.parts} if facts.parts else {}),
        "about": dict(about),
    }
    with writing(ProfileError, "profile", path):
        write_bound(path, content, "arrays", arrays_bytes({k: np.asarray(v, np.float32) for k, v in arrays.items()}))


def read(path: Path) -> tuple[Facts, Arrays, Mapping[str, Any]]:
    """What `save` wrote. Raises FileFault, OSError or ValueError for anything else."""
    content = read_facts(path, FORMAT)
    facts, about = _facts(content), content.fields("about").content
    with bound_arrays(path, content, "arrays", LARGEST) as file:
        return facts, _arrays(file), about


def _arrays(file: ArraysFile) -> dict[str, np.ndarray]:
    wanted = {*NEEDED, GAINS, GAIN_TIMES}
    return {key: file.array(key) for key in file.stored if key in wanted or key.startswith(LOSS)}


def _facts(content: Fields) -> Facts:
    if content.content.get("prices", "law") != "law":
        raise FileFault("its runs were planned by measured prices, which this version of dicache does not plan by")
    return Facts(
        content.text("model"),
        content.text("scheduler"),
        content.numbers("sigmas"),
        content.number("guidance"),
        content.integer("rule"),
        _negative_conditions(content.fields("weaker")) if "weaker" in content.content else {},
        tuple(int(number) for number in content.numbers("size")) if "size" in content.content else (),
        tuple(content.texts("controls")) if "controls" in content.content else None,
        content.text("parts") if "parts" in content.content else "",
    )


def _negative_conditions(fields: Fields) -> dict[str, tuple[float, ...]]:
    """What files call by its older name."""
    conditions = {key: fields.numbers(key) for key in fields.content}
    if any(len(numbers) != SIZE for numbers in conditions.values()):
        raise FileFault(f"'weaker' does not hold {SIZE} numbers by name")
    return conditions
