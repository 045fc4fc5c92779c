"""Could a run that mixes whole evaluations, parts of a UNet and its control err less at equal work than whole
evaluations alone? A reckoning from measured errors, which gives parts all they could have.

`python -m dicache.bench.studies.mixtures [--show]`, on `scenes-unet` with control, DDIM, 20 steps.

Of every kind of skip s, e_s(t, g) is what the final latent is off by where it skips g steps from t on and all else
computes, by the better of a line and reuse, in the mean of some captions; w_s is the share of a step of both networks
that it saves. What a skip at age k adds is taken for the same whatever was skipped before it in a stretch, and errors
of stretches for independent:

    d_s(t, k) = e_s(t - k + 1, k) - e_s(t - k + 1, k - 1),      error^2 = sum over stretches (sum of d)^2

Of all ways to skip at most LONGEST steps in a row, each by any kind, the best at every work is then found exactly on
the lower hull, by dynamic programming with a price per unit of work, and by whole evaluations alone beside it.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

import dicache
from dicache.approximators.base import Approximator
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.approximators.noise import ExtrapolateNoise
from dicache.bench.harness.store import RESULTS
from dicache.bench.models.scenes_unet import draw, edges, pipeline
from dicache.controllers.fixed import masks
from dicache.controllers.interval import Interval
from dicache.files.atomic import write_text
from dicache.measuring.gains import FIRST, Injected, Injection
from dicache.measuring.recording import Recorder
from dicache.promise.metrics import relative_error
from dicache.reference.render import render
from dicache.reference.scenes import caption, scenes
from dicache.sites import Control, Evaluation, Sites, Skips, Spans, Tail

STEPS, SEED, LONGEST, STARTS = 20, 53, 3, 8
WORKS = (0.8, 0.7, 0.6, 0.5, 0.45)
LINE, NOISE, REUSE = (Extrapolate(),), (ExtrapolateNoise(),), (Reuse(),)
WAYS: dict[str, tuple[Sites, tuple[tuple[Approximator, ...], ...]]] = {
    "whole": (Evaluation(), (NOISE, REUSE)),
    "Skips(0, 1)": (Skips(0, 1), (LINE, REUSE)),
    "Skips(1)": (Skips(1), (LINE, REUSE)),
    "Tail()": (Tail(), (LINE, REUSE)),
    "Control()": (Control(), (REUSE,)),
    "Spans(1)": (Spans(1), (LINE, REUSE)),
}
Tables = Mapping[str, Mapping[str, Any]]
"""By kind: what it saves of a step, and errors as lists of (start, length, error)."""


class Stretch(NamedTuple):
    """All ways through one: what each adds to the square of the error, what it saves, and by which kinds."""

    costs: np.ndarray
    saved: np.ndarray
    kinds: list[tuple[str, ...]]


def cells(sites: int, captions: int) -> list[tuple[int, Injection]]:
    """With the caption that each is drawn for."""
    spread = [(g, sorted({round(t) for t in np.linspace(FIRST, STEPS - g, STARTS)})) for g in range(1, LONGEST + 1)]
    injections = [Injection(t, site, g) for g, starts in spread for t in starts for site in range(sites)]
    return [(row, injection) for injection in injections for row in range(captions)]


def draw_tables(captions: int, batch: int, tell: Any) -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: ANN401
    """Kind by kind."""
    shown = list(itertools.islice(scenes("calibration", seed=SEED), captions))
    texts, image, pipe = [caption(scene) for scene in shown], edges(render(shown)), pipeline(control=True)
    pipe.set_progress_bar_config(disable=True)

    def drawn(rows: Sequence[int], config: dicache.Config) -> tuple[torch.Tensor, list[float], Recorder]:
        with dicache.enable(pipe, config=config) as cache:
            latents = draw_rows(rows)
            works = [sample["computed_fraction"] for sample in cache.report().to_dict()["samples"]]
            return latents, works, Recorder(cache)

    def draw_rows(rows: Sequence[int]) -> torch.Tensor:
        """Every caption has its own noise, wherever it stands."""
        latents: torch.Tensor = pipe(
            [texts[row] for row in rows],
            negative_prompt=[""] * len(rows),
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            generator=[torch.Generator().manual_seed(SEED + row) for row in rows],
            output_type="latent",
            image=image[list(rows)],
        ).images
        return latents

    exact = draw(pipe, texts, STEPS, first=SEED, image=image)
    for name, (sites, fills) in WAYS.items():
        of_all = drawn([0], dicache.Config(Interval(1), sites=sites, approximators=fills[0]))[2]
        times, names = of_all.facts.timetable, [site.path for site in of_all.sites]
        assert times is not None
        todo = cells(len(names) if name == "Spans(1)" else 1, captions)
        errors, saved = np.full((len(todo), len(fills)), np.inf), np.zeros(len(todo))
        for (k, fill), start in itertools.product(enumerate(fills), range(0, len(todo), batch)):
            rows, injections = zip(*todo[start : start + batch], strict=True)
            rule: Any = Injected(injections)
            if name == "Control()":
                rule = masks([[not t <= i < t + g for i in range(STEPS)] for t, _, g in injections])
            latents, works, _ = drawn(rows, dicache.Config(rule, sites=sites, approximators=fill))
            errors[start : start + len(rows), k] = relative_error(latents, exact[list(rows)]).numpy()
            saved[start : start + len(rows)] = 1 - np.array(works)
        for index, kind in enumerate(names if name == "Spans(1)" else [name]):
            mine = [i for i, (_, injection) in enumerate(todo) if injection.site == index]
            yield kind, _table(mine, todo, errors, saved) | {"half_log_snrs": list(times.half_log_snrs)}
        tell(f"{name}: {len(todo) * len(fills)} samples")


def _table(
    mine: Sequence[int], todo: Sequence[tuple[int, Injection]], errors: np.ndarray, saved: np.ndarray
) -> dict[str, Any]:
    by_cell: dict[tuple[int, int], list[int]] = {}
    for i in mine:
        by_cell.setdefault((todo[i][1].step, todo[i][1].length), []).append(i)
    best = [[t, g, float(errors[rows].mean(0).min())] for (t, g), rows in by_cell.items()]
    shares = [saved[i] * STEPS / todo[i][1].length for i in mine if saved[i] > 0]
    return {"saves": float(np.median(shares)), "errors": best}


def error(table: Mapping[str, Any], start: int, length: int) -> float:
    """Between the starts that were measured the logarithm goes along a line."""
    if length == 0:
        return 0.0
    measured_at = sorted((t, e) for t, g, e in table["errors"] if g == length)
    times, values = zip(*measured_at, strict=True)
    return float(np.exp(np.interp(start, times, np.log(np.maximum(values, 1e-9)))))


def added(table: Mapping[str, Any], step: int, age: int) -> float:
    first = step - age + 1
    return max(0.0, error(table, first, age) - error(table, first, age - 1))


def stretches(tables: Tables, kinds: Sequence[str]) -> dict[tuple[int, int], Stretch]:
    """By start and length."""
    ways = {}
    for t, g in itertools.product(range(FIRST, STEPS), range(1, LONGEST + 1)):
        if t + g <= STEPS:
            each = [[added(tables[kind], t + i, i + 1) for kind in kinds] for i in range(g)]
            mixed = list(itertools.product(range(len(kinds)), repeat=g))
            costs = np.array([sum(each[i][k] for i, k in enumerate(way)) ** 2 for way in mixed])
            saved = np.array([sum(tables[kinds[k]]["saves"] for k in way) for way in mixed])
            ways[t, g] = Stretch(costs, saved, [tuple(kinds[k] for k in way) for way in mixed])
    return ways


def best(ways: Mapping[tuple[int, int], Stretch], price: float) -> tuple[float, float, list[str]]:
    """Work, error, and what every step does, of the way that is best at a price per step of work."""
    onward: dict[int, tuple[float, float, float, list[str]]] = {
        STEPS: (0.0, 0.0, 0.0, []),
        STEPS + 1: (np.inf, 0, 0, []),
    }
    for t in reversed(range(STEPS)):
        after = onward[t + 1]
        options = [(after[0], after[1], after[2], ["#", *after[3]])]
        for g in range(1, LONGEST + 1):
            if (stretch := ways.get((t + 1, g))) is not None:
                k, rest = int(np.argmin(stretch.costs - price * stretch.saved)), onward[t + 1 + g]
                cost, saved = float(stretch.costs[k]), float(stretch.saved[k])
                value = cost - price * saved + rest[0]
                options.append((value, cost + rest[1], saved + rest[2], ["#", *stretch.kinds[k], *rest[3]]))
        onward[t] = min(options, key=lambda option: option[0])
    _, cost, saved, marks = onward[0]
    return 1 - saved / STEPS, cost**0.5, marks


def curve(tables: Tables, kinds: Sequence[str]) -> list[tuple[float, float, list[str]]]:
    """The hull, from much work to little."""
    ways = stretches(tables, kinds)
    return [best(ways, float(price)) for price in np.geomspace(1e-10, 1e-1, 120)]


def at(points: Sequence[tuple[float, float, list[str]]], work: float) -> float:
    """The logarithm of the error along a line in work; nan where nothing goes so low."""
    by_work = {round(w, 6): e for w, e, _ in points if e > 0}
    works = sorted(by_work)
    if not works or not works[0] <= work <= works[-1]:
        return float("nan")
    return float(np.exp(np.interp(work, works, np.log([by_work[w] for w in works]))))


def show(tables: Tables, console: Console) -> None:
    parts = [kind for kind in tables if kind != "whole"]
    times = tables["whole"]["half_log_snrs"]
    steps = [4, 8, 12, 16, STEPS - 1]
    console.print("error of one skipped step per step of work saved, at half log SNRs of", end=" ")
    console.print(", ".join(f"{times[t]:.2f}" for t in steps))
    for kind, table in tables.items():
        rates = (f"{error(table, t, 1) / table['saves']:.4f}" for t in steps)
        console.print(kind, f"saves {table['saves']:.3f}", *rates, sep=" | ", highlight=False)
    alone = curve(tables, ["whole"])
    console.print("error of the best mixture over that of whole evaluations, at work", ", ".join(map(str, WORKS)))
    console.print("whole", *(f"{at(alone, work):.4f}" for work in WORKS), sep=" | ", highlight=False)
    for name, kinds in {**{kind: ["whole", kind] for kind in parts}, "all": ["whole", *parts]}.items():
        mixed = curve(tables, kinds)
        ratios = (f"{at(mixed, work) / at(alone, work):.3f}" for work in WORKS)
        console.print(f"whole and {name}", *ratios, sep=" | ", highlight=False)
        if name == "all":
            for work in (0.6, 0.45):
                near = min(mixed, key=lambda point: abs(point[0] - work))
                console.print(f"{near[0]:.3f}, {near[1]:.4f}:", " ".join(near[2]), highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Could a mixture of whole evaluations and parts err less?")
    parser.add_argument("--captions", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path, default=RESULTS / "mixtures.json")
    parser.add_argument("--show", action="store_true", help="only what the file holds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console, tables = Console(width=200), dict[str, Any]()
    if not args.show:
        for kind, table in draw_tables(args.captions, args.batch, console.print):
            tables[kind] = table
            write_text(args.json, json.dumps(tables, indent=1) + "\n")
    show(json.loads(args.json.read_text()), console)


if __name__ == "__main__":
    main()
