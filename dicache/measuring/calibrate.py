"""Measure what a promise needs, on prompts of the user's, and put it into a `Profile`.

1. Trajectories (the first quarter of the prompts, uncached): what every approximator would have been wrong by, G steps
   after a computed step t that lies D after the one before, for all t, D and G. One run tells all of them.
2. Sensitivity (the same prompts): single gaps injected one at a time into otherwise exact runs, and whole ways of
   random gaps, a prompt's schedules as the samples of one batch. What they change at the end says how much of a gap's
   own error is left there, and how the errors of several add up (`dicache.measuring.gap_weights`).
3. Tests (the other prompts): uncached, and within every internal budget of a grid. Nothing was chosen on these, so what
   they lose is what any prompt like them will lose (`dicache.promise.learn_then_test`).

Everything is fixed by the seed: prompt k has latents of seed + k. What was drawn is kept in the folder `checkpoint`, if
one is given; the same call goes on there after a kill, and a call with other levels, or with more prompts at the end
and as many that measure, draws only what is new.
"""

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dicache.api import denoisers, enable
from dicache.config import Config
from dicache.controllers.fixed import masks
from dicache.controllers.planned import Planned
from dicache.defaults import for_profile
from dicache.errors import ProfileError
from dicache.estimators.base import Evidence
from dicache.estimators.recorder import Recorder
from dicache.files.checkpoint import Checkpoint, Entry
from dicache.measuring.gap_weights import Played, schedules, weights
from dicache.measuring.guess_errors import cost_of, guess_errors, local_of, median, trajectory
from dicache.measuring.prompt_runs import Drawer, Drawn
from dicache.models.conditioning import alike
from dicache.models.identity import identity
from dicache.planning.error_law import RULE
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.keep_budget import FixedLevel
from dicache.promise.metrics import Metric, Metrics, loss, relative_error, resolved
from dicache.promise.profile import Facts, Prices, Profile
from dicache.tensors.norms import length
from dicache.types import LATENT, Action

LEVELS = (0.002, 0.0035, 0.006, 0.01, *(0.014 * 1.25**k for k in range(11)), 0.18, 0.27, 0.4)
"""Internal budgets: dense where the errors lie that people ask for. The largest one that keeps a budget may lie between
two of them: twice as many (`finer`) take nearly twice the time of the tests, and used up to a fifth more of the budget.
"""
FEWEST = 8
NEGATIVE_CONDITIONS = "weaker."


def calibrate(
    pipe: Any,  # noqa: ANN401
    prompts: Sequence[str],
    *,
    steps: int,
    seed: int = 0,
    batch: int = 8,
    metric: Metrics = LATENT,
    call: Mapping[str, Any] | None = None,
    levels: Sequence[float] = LEVELS,
    measuring: int | None = None,
    prices: Prices = "law",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Profile:
    """A profile of the pipeline at `steps` steps, on prompts like those it will run on.

    `call` are further arguments of the pipeline, as they will be given later (guidance scale, negative prompt, size).
    `metric` is "latent", "psnr", "ssim", several of them, or a mapping from names to functions (images, reference) ->
    (B,), images (B, C, H, W) in [0, 1], less being better; the latent's relative L2 is always among them. `measuring`
    prompts serve the prices (a quarter, at most 32), the others the promise: 100 of them leave a confidence of 0.9
    little worse than their own noise, 22 are the fewest for it.

    `prices` are what runs are planned by: the law's, or those that stages 1 and 2 measured. On the reference model the
    measured ones did better below twice the speed and worse above it (CONTRIBUTING.md).

    Raises ProfileError for fewer than 8 prompts, a metric that is not known or gives no number, a checkpoint of another
    calibration, a pipeline without step callbacks, or one whose scheduler does not tell its course.
    """
    started = time.perf_counter()
    prompts = list(prompts)
    if len(prompts) < FEWEST:
        raise ProfileError(f"{len(prompts)} prompts are too few to calibrate on. Expected {FEWEST} or more.")
    count = max(4, min(32, len(prompts) // 4)) if measuring is None else measuring
    if not 0 < count <= len(prompts) - 2:
        raise ProfileError(f"measuring={measuring!r} of {len(prompts)} prompts. Expected to leave 2 or more for tests.")
    measured_on, tested_on = range(count), range(count, len(prompts))
    if prices not in ("law", "measured"):
        raise ProfileError(f"prices is {prices!r}. Expected 'law' or 'measured'.")
    functions = resolved(metric)
    drawer = Drawer(pipe, prompts, steps, seed, dict(call or {}), images=bool(functions))
    model = identity(next(iter(denoisers(pipe).values())))
    told = [
        model,
        prompts[:count],
        steps,
        seed,
        batch,
        sorted(functions),
        call,
        count,
        RULE,
    ]
    told += [] if prices == "law" else [prices]
    entries = Checkpoint(None if checkpoint is None else Path(checkpoint), told)
    work = _Work(pipe, drawer, entries, batch)
    runs = len(batches(measured_on, batch)) + 2 * count + len(batches(tested_on, batch)) * len(levels)
    with _bar(progress) as bar:
        task = bar.add_task("calibrating", total=runs)
        work.tick = lambda what: bar.update(task, advance=1, description=what)
        profile = work.test(work.measure(measured_on, model, prices), tested_on, sorted(levels), functions)
    about = {
        "prompts": {"measuring": count, "testing": len(tested_on)},
        "negative prompt": "the same for all, checked" if profile.facts.negative_conditions else "not checked",
        "seed": seed,
        "call": {key: value for key, value in (call or {}).items() if isinstance(value, str | int | float | bool)},
        "cost": {
            "seconds": round(time.perf_counter() - started, 1),
            "samples": work.drawn,
            "resumed": entries.resumed,
        },
        "versions": {name: version(name) for name in ("torch", "diffusers")},
    }
    return Profile(profile.facts, profile.arrays, about)


class _Work:
    """The three stages. Draws what the entries does not hold yet."""

    def __init__(self, pipe: Any, drawer: Drawer, checkpoint: Checkpoint, batch: int) -> None:  # noqa: ANN401
        self.pipe, self.drawer, self.checkpoint, self.batch, self.drawn = pipe, drawer, checkpoint, batch, 0
        self.tick: Callable[[str], None] = lambda what: None

    def measure(self, indices: Sequence[int], model: str, prices: Prices) -> Profile:
        """Stages 1 and 2: a profile that nothing was tested on yet."""
        known: list[Entry] = []
        for k, chosen in enumerate(batches(indices, self.batch)):
            known.append(self.checkpoint.entry(f"trajectory-{k}", partial(self._trajectory, chosen)))
            self.tick("trajectories")
        error_rate, scale, price_of, final = (
            np.concatenate([entry[key] for entry in known]) for key in ("turning", "scale", "quoted", "final")
        )
        played: list[Played] = []
        for position, index in enumerate(indices):
            rows = schedules(position, self.batch, scale.shape[1], self.drawer.seed)
            halves = []
            for k, some in enumerate((rows[: self.batch], rows[self.batch :])):
                make = partial(self._played, index, some, final[position])
                halves.append(self.checkpoint.entry(f"schedules-{position}-{k}", make))
                self.tick("sensitivity")
            done, change = (np.concatenate([half[key] for half in halves]) for key in ("masks", "change"))
            played.append(Played(done.astype(bool), change, halves[0]["cosine"]))
        local = local_of(error_rate, scale)
        weight, correlation = weights(played, local)
        nothing = np.zeros((0, 1))
        arrays = {
            "turning": median(error_rate),
            "scale": np.median(scale, axis=0),
            "quoted": np.median(price_of, axis=0),
            "weight": weight,
            "cost": cost_of(local, weight),
            "correlation": correlation,
            "levels": np.ones(1),
            "estimate": nothing,
            "work": nothing,
            f"loss.{LATENT}": nothing,
        }
        *sigmas, guidance = known[0]["course"].tolist()
        solver = known[0]["solver"].tobytes().decode()
        facts = Facts(model, solver, tuple(sigmas), guidance, prices, negative_conditions=_shared(known))
        return Profile(facts, {key: value.astype(np.float32) for key, value in arrays.items()})

    def _trajectory(self, indices: Sequence[int]) -> Entry:
        seen: list[Evidence] = []
        config = Config(Planned(0.0), estimator=Recorder(seen.append))
        with enable(self.pipe, config=config) as cache:
            drawn = self._draw(indices)
            assert cache.trace is not None and cache._session.run is not None  # the run is closed
            negative_conditions = cache._session.run.negative_conditions() or {}
        run = trajectory(seen, drawn.latents)
        return {
            "turning": guess_errors(run, config.approximators),
            "scale": run.scale(),
            "quoted": run.price_of(),
            "final": drawn.latents.float().cpu().numpy(),
            "course": np.array([*run.timetable.sigmas, run.guidance]),
            "solver": np.frombuffer(run.timetable.solver.encode(), np.uint8),
            **{NEGATIVE_CONDITIONS + name: each.numpy() for name, each in negative_conditions.items()},
        }

    def _played(self, index: int, rows: np.ndarray, final: np.ndarray) -> Entry:
        """One prompt, a schedule per sample."""
        with enable(self.pipe, config=Config(masks(rows.tolist()))) as cache:
            drawn = self._draw([index] * len(rows))
        assert cache.trace is not None
        done = np.array([record.action[:, 0].numpy() == Action.COMPUTE for record in cache.trace.records]).T
        changes = (drawn.latents.float().cpu().numpy() - final).reshape(len(rows), -1)
        gram = changes @ changes.T
        change = np.sqrt(gram.diagonal())
        long = np.where(change > 0, change, np.nan)
        whole = float(length(torch.from_numpy(final)[None]))
        return {"masks": done.astype(np.uint8), "change": change / whole, "cosine": gram / np.outer(long, long)}

    def test(
        self, measured: Profile, indices: Sequence[int], levels: Sequence[float], metrics: dict[str, Metric]
    ) -> Profile:
        """Stage 3: what every prompt loses within every level."""
        rows = []
        for k, chosen in enumerate(batches(indices, self.batch)):
            reference: list[Drawn] = []
            cells = []
            for level in levels:
                make = partial(self._tested, chosen, reference, measured, level, metrics)
                cells.append(self.checkpoint.entry(f"test-{k}-{self._digest(chosen)}-{float(level)!r}", make))
                self.tick("tests")
            rows.append({key: np.stack([cell[key] for cell in cells], axis=1) for key in cells[0]})
        tested = {key: np.concatenate([row[key] for row in rows]).astype(np.float32) for key in rows[0]}
        return Profile(measured.facts, {**measured.arrays, **tested, "levels": np.array(levels, dtype=np.float32)})

    def _tested(
        self,
        indices: Sequence[int],
        reference: list[Drawn],
        measured: Profile,
        level: float,
        metrics: dict[str, Metric],
    ) -> Entry:
        """`reference` is filled with the uncached run, once."""
        if not reference:
            reference.append(self._draw(indices))
        exact = reference[0]
        with enable(self.pipe, config=for_profile(ProfileChoice((measured,), "named"), FixedLevel(level))) as cache:
            drawn = self._draw(indices)
        samples = cache.report().to_dict()["samples"]
        found = {
            "estimate": np.array([sample["estimated_error"] for sample in samples]),
            "work": np.array([sample["computed_fraction"] for sample in samples]),
            f"loss.{LATENT}": relative_error(drawn.latents, exact.latents).numpy(),
        }
        for name, metric in metrics.items():
            assert drawn.images is not None and exact.images is not None
            found[f"loss.{name}"] = loss(name, metric, drawn.images, exact.images).numpy()
        return found

    def _digest(self, indices: Sequence[int]) -> str:
        """Of the prompts of a batch, so that it is drawn again where they are others."""
        return hashlib.sha256(repr([self.drawer.prompts[i] for i in indices]).encode()).hexdigest()[:12]

    def _draw(self, indices: Sequence[int]) -> Drawn:
        self.drawn += len(indices)
        return self.drawer.draw(indices)


def finer(levels: Sequence[float]) -> tuple[float, ...]:
    """With one more between every two neighbours, at their geometric mean."""
    rising = sorted(levels)
    return tuple(sorted({*rising, *(math.sqrt(a * b) for a, b in itertools.pairwise(rising))}))


def _shared(known: Sequence[Entry]) -> dict[str, tuple[float, ...]]:
    """What the weaker branches of all trajectories were conditioned by, where it was the same for two prompts and
    more.
    """
    names = [key for key in known[0] if key.startswith(NEGATIVE_CONDITIONS) and all(key in entry for entry in known)]
    rows = {key: torch.from_numpy(np.concatenate([entry[key] for entry in known])) for key in names}
    same = {key: each[0] for key, each in rows.items() if len(each) > 1 and bool(alike(each, each[0]).all())}
    return {key.removeprefix(NEGATIVE_CONDITIONS): tuple(row.tolist()) for key, row in same.items()}


def batches(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[k : k + size]) for k in range(0, len(indices), size)]


def _bar(shown: bool) -> Progress:
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
