"""Which path runs: native, CuPy on CUDA, else eager; chosen once per kind of device, at its first use.

The environment variable DICACHE_EXTENSION overrides: `native` and `cupy` insist, and fail with the reason where that
path cannot be taken; `eager` takes plain torch; `auto` is the default. `dicache doctor` shows what was chosen and why.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dicache.errors import ExtensionError
from dicache.extension.native import Native, Unavailable, load
from dicache.extension.reference import Eager

VARIABLE = "DICACHE_EXTENSION"
WISHES = ("auto", "native", "cupy", "eager")


class Operations(Protocol):
    name: str

    def residual_sums(self, a: Tensor, b: Tensor, out: Tensor) -> None: ...

    def combine(self, terms: Sequence[Tensor], coefficients: Tensor, out: Tensor) -> None: ...


class Choice(NamedTuple):
    path: Operations
    reason: str
    """Why not a better one; empty where it is the best."""


def _cpu() -> Operations:
    return Native(load("cpu"))


def _cuda() -> Operations:
    from dicache.extension.cuda import library

    return library()


def _cupy() -> Operations:
    from dicache.extension.cupy import compiled

    return compiled()


_OFFERS: dict[str, dict[str, Callable[[], Operations]]] = {
    "cpu": {"native": _cpu},
    "cuda": {"native": _cuda, "cupy": _cupy},
}


@cache
def choose(device: str) -> Choice:
    """For a kind of device, "cpu", "cuda", .. Raises ExtensionError where the environment variable insists on a path
    that cannot be taken, or holds a word that means nothing.
    """
    wish, offers = _wish(), _OFFERS.get(device, {})
    reasons: list[str] = []
    if wish == "eager":
        return Choice(Eager(), f"{VARIABLE}=eager")
    for name, offer in offers.items():
        if wish in ("native", "cupy") and wish in offers and name != wish:
            continue
        try:
            return Choice(offer(), "; ".join(reasons))
        except Unavailable as unavailable:
            reasons.append(str(unavailable))
            if name == wish:
                raise ExtensionError(f"{VARIABLE}={wish}, but {unavailable}. Set it to auto or eager.") from unavailable
    return Choice(Eager(), "; ".join(reasons) or f"there is nothing for {device}")


def describe() -> str:
    """What runs here, in words: every kind of device that is there."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    choices = [(device, *choose(device)) for device in devices]
    return ", ".join(f"{device}: {path.name}" + (f" ({why})" if why else "") for device, path, why in choices)


def _wish() -> str:
    wish = os.environ.get(VARIABLE, "") or "auto"
    if wish not in WISHES:
        raise ExtensionError(f"{VARIABLE}={wish} means nothing. Expected one of {', '.join(WISHES)}.")
    return wish
