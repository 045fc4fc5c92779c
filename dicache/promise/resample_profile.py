"""A profile moved to another course of the same model: a guess, made by where the steps lie. Nothing is promised by it.

Step i of the new course stands at the place p(i) of the old one where the old course has the same sigma: between the
old last step and the end of the run where its sigma is less, before the old first step where it is more. A gap of the
new course reaches from p(i) to p(i + g); what it costs is read off there, log-linear between the old course's whole
steps, and grows with the square of its length where the new steps are shorter than one old step.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from scipy.ndimage import map_coordinates

from dicache.promise.profile import Profile
from dicache.types import Timetable

Array = np.ndarray


def resampled(profile: Profile, timetable: Timetable, guidance: float) -> Profile:
    """The same arrays at the steps of `timetable`, (A, T, D, G) and so on; the tested levels stay as they are."""
    old, arrays = profile.facts, dict(profile.arrays)
    position = _positions(timetable.sigmas, old.sigmas)
    _, _, reach, longest = arrays["turning"].shape
    arrays["turning"] = np.stack([_table(form, position, reach, longest) for form in arrays["turning"]])
    arrays["cost"] = _table(arrays["cost"], position, *arrays["cost"].shape[1:])
    stretch = np.diff(position)
    for key in ("scale", "quoted"):
        arrays[key] = np.interp(position[:-1], np.arange(old.steps), arrays[key]) * stretch
    nearest = np.clip(position.round().astype(int), 0, old.steps)
    arrays["weight"] = arrays["weight"][nearest]
    facts = replace(old, scheduler=timetable.solver, sigmas=timetable.sigmas, guidance=max(1.0, guidance))
    return replace(profile, facts=facts, arrays=arrays)


def _positions(sigmas: Sequence[float], old: Sequence[float]) -> Array:
    """(T' + 1,), the end of the run included. Clamped to the old steps, gaps beyond them would have no length and
    cost nothing.
    """
    end = 0.0 if old[-1] > 0 else 2 * old[-1] - old[-2]
    here, there = np.array([*sigmas, end]), np.array([*old, end])
    position = np.interp(-here, -there, np.arange(len(there)))
    return np.where(here > old[0], (old[0] - here) / (old[0] - old[1]), position)


def _table(table: Array, position: Array, reach: int, longest: int) -> Array:
    """(T, D, G) -> (T', D, G)."""
    steps = len(position) - 1
    i, d, g = np.meshgrid(np.arange(steps), np.arange(1, reach + 1), np.arange(1, longest + 1), indexing="ij")
    back = position[i] - position[np.maximum(i - d, 0)]
    ahead = position[np.minimum(i + g, steps)] - position[i]
    logs = np.log(np.maximum(_filled(table), 1e-12))
    where = np.stack([position[i], np.clip(back, 1, None) - 1, np.clip(ahead, 1, None) - 1])
    found = np.exp(map_coordinates(logs, where, order=1, mode="nearest")) * np.clip(ahead, None, 1) ** 2
    return np.where((i - d < 1) | (i + g >= steps), np.nan, found)


def _filled(table: Array) -> Array:
    """Without nan: what is not there takes the value before it, along G, then D, then T."""
    for axis in (2, 1, 0):
        moved = np.moveaxis(table.copy(), axis, 0)
        for before, here in pairwise(moved):
            np.copyto(here, before, where=np.isnan(here))
        for after, here in pairwise(moved[::-1]):
            np.copyto(here, after, where=np.isnan(here))
        table = np.moveaxis(moved, 0, axis)
    return table
