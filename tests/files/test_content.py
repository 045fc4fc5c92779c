"""Checkpoints know a call by what its arguments hold: the same in another process, another for other contents."""

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from dicache.errors import ArgumentError, ProfileError, ScheduleError
from dicache.files.checkpoint import Checkpoint
from dicache.files.content import digest_of
from dicache.sites import Spans


@dataclass(frozen=True)
class Option:
    """As a finder's option."""

    rate: float = 0.5


def long_tensor(change: float = 0.0) -> torch.Tensor:
    values = torch.zeros(2000)
    values[900:1100] += change
    return values


def picture(change: int = 0) -> Image.Image:
    image = Image.new("RGB", (8, 8))
    image.putpixel((4, 4), (change, 0, 0))
    return image


def added(step: int) -> partial:
    def callback(value: int) -> int:
        return value + step

    return partial(callback, value=1)


def in_any_process() -> list:
    return [long_tensor(1.0), picture(2), Spans(), {"x", "y", "z"}, {"b": partial(np.add, 1), "a": os.path.join}]


PAIRS = {
    "the middle of a tensor": (long_tensor(), long_tensor(0.5)),
    "a tensor's type": (torch.zeros(4), torch.zeros(4, dtype=torch.float64)),
    "a tensor's shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "half the precision": (torch.zeros(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)),
    "an array": (np.arange(3000), np.arange(3000)[::-1]),
    "a picture": (picture(), picture(1)),
    "a list's order": ([1, 2], [2, 1]),
    "where a list ends": ([[1], 2], [[1, 2]]),
    "a number's kind": (1, 1.0),
    "text and bytes": ("1", b"1"),
    "an option": (Option(), Option(0.6)),
    "what a function adds": (added(1), added(2)),
    "a generator": (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    "a mapping": ({"a": 1, "b": None}, {"a": None, "b": 1}),
    "what a builtin belongs to": ([1].count, [2].count),
    "builtins": (math.sin, math.cos),
    "array functions": (np.add, np.subtract),
    "weights": (torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_other_contents_are_another_call(one, other, tmp_path):
    assert digest_of(one) == digest_of(one) != digest_of(other)
    Checkpoint(tmp_path, [one]).entry("run-0", lambda: {"x": np.ones(1)})
    with pytest.raises(ProfileError, match="holds other measurements"):
        Checkpoint(tmp_path, [other])


def test_equal_contents_are_one_call_whatever_object_holds_them():
    pairs = [
        (long_tensor(1.0), long_tensor(1.0)),
        (picture(3), picture(3)),
        (added(2), added(2)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"one", "two", "three"}, {"three", "two", "one"}),
    ]
    for one, other in pairs:
        assert digest_of(one) == digest_of(other)


def test_processes_agree_on_a_digest():
    code = (
        "import sys; sys.path[:0] = ['tests/files']; from test_content import digest_of, in_any_process\n"
        "print(digest_of(in_any_process()))"
    )
    command, there = [sys.executable, "-W", "ignore", "-c", code], {**os.environ, "PYTHONHASHSEED": "1"}
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=there)
    assert ran.stdout.strip() == digest_of(in_any_process())


def test_what_has_no_contents_to_be_known_by_is_one_clear_error(tmp_path):
    circle: list = []
    circle.append(circle)
    for value in (object(), torch.zeros(2, device="meta"), circle, iter([])):
        with pytest.raises(ArgumentError):
            digest_of(value)
        with pytest.raises(ScheduleError, match="cannot be used"):
            Checkpoint(tmp_path, [value], ScheduleError)
