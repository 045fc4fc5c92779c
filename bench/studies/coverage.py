"""Is the promise kept? `python -m dicache.bench coverage`

Test captions that nothing was trained, calibrated or tuned on, with noise of their own, drawn uncached and within every
budget at every confidence, by the profiles that ship. Per setting: the share of captions within budget, held against
the confidence by a one-sided binomial test; how much of the budget is used; how far true errors spread around their
estimates, which is what the promise costs; how the work differs between captions. Then the same where the promise need
not hold, by audits of every sample, and `speedup=`.

Saved after every batch; the same command goes on where it was, with as many captions more as are asked for.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from dicache.api import enable
from dicache.bench.harness.store import RESULTS
from dicache.bench.models.reference import Setting, fresh
from dicache.bench.showing.coverage_tables import CONFIDENCES, brief, speed_table, table
from dicache.bench.showing.pages import fill
from dicache.bench.showing.tables import markdown
from dicache.files.atomic import write_text
from dicache.models.identity import identity
from dicache.promise.choose_profile import shipped
from dicache.promise.metrics import relative_error
from dicache.promise.profile import Profile
from dicache.reference.scenes import caption, prompts, scenes, split_of
from dicache.types import LATENT, Wanted

RESULT = RESULTS / "coverage.json"
BUDGETS, SPEEDUPS = (0.02, 0.05, 0.1), (1.5, 2.0, 3.0)
CAPTION_SEED, NOISE_SEED = 50, 70_000
BATCH, SPEED_CAPTIONS = 16, 256


Asked = tuple[float | None, float | None, float | None]
"""Budget, confidence, speed-up."""


@dataclass(frozen=True)
class Case:
    """Captions drawn at one setting."""

    name: str
    setting: Setting
    four: bool = False
    """Only captions of four things."""
    shared_noise: bool = False
    """One generator for the whole batch, in place of one per caption."""
    negative: bool = False
    """The next caption as negative prompt, in place of an empty one; the profile is made not to notice."""
    nearest: bool = False
    audited: bool = False
    """Errors are what `audit=1.0` finds, beside the cached run."""
    budgets: tuple[float, ...] = BUDGETS
    speedups: tuple[float, ...] = ()

    def captions(self, n: int) -> list[str]:
        if not self.four:
            return prompts("test", n, seed=CAPTION_SEED)
        return list(islice(_four(), n))


def _four() -> Iterator[str]:
    seen = set()
    for scene in scenes("test", CAPTION_SEED):
        text = caption(scene)
        if len(scene.things) == 4 and text not in seen and split_of(text) == "test":
            seen.add(text)
            yield text


_setting = partial(Setting, batch=BATCH)
CASES = (
    *(Case(f"{s} steps, guidance 3.5", _setting(s), speedups=SPEEDUPS if s == 28 else ()) for s in (28, 20)),
    *(Case(f"{s} steps, no guidance", _setting(s, guidance=1.0)) for s in (28, 20)),
    Case("shifted: four things", _setting(28), four=True, audited=True, budgets=(0.05,)),
    Case("shifted: one generator per batch", _setting(28), shared_noise=True, audited=True, budgets=(0.05,)),
    Case("shifted: captions as negative prompts", _setting(28), negative=True, audited=True, budgets=(0.05,)),
    Case("shifted: scheduler shift 3, nearest", _setting(28, shift=3.0), nearest=True, audited=True, budgets=(0.05,)),
)


@dataclass
class Line:
    """One way of asking, on all captions of a case."""

    case: str
    budget: float | None
    confidence: float | None
    speedup: float | None
    level: float
    things: list[int]
    errors: list[float] = field(default_factory=list)
    estimates: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)


class Draws:
    """The captions of a case, in batches, uncached or by a cache."""

    case: Case
    captions: list[str]
    pipe: FluxPipeline

    def __init__(self, case: Case, n: int) -> None:
        self.case, self.pipe, self.captions = case, fresh(case.setting), case.captions(n)
        self.following: list[str] = case.captions(n + 1)[1:]

    @cached_property
    def profile(self) -> Profile:
        """The one that ships for the setting, whatever its shift. Raises ValueError where there is none."""
        steps, guidance = self.case.setting.steps, self.case.setting.guidance
        for profile in shipped(identity(self.pipe.transformer)):
            if profile.facts.steps == steps and abs(profile.facts.guidance - guidance) < 0.01:
                return profile
        raise ValueError(f"no profile ships for {self.case.name}.")

    def batches(self) -> Iterator[range]:
        size = self.case.setting.batch
        return (range(k, min(k + size, len(self.captions))) for k in range(0, len(self.captions), size))

    def draw(self, batch: Sequence[int]) -> Tensor:
        setting, seeds = self.case.setting, [NOISE_SEED + i for i in batch]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        negative = [self.following[i] if self.case.negative else "" for i in batch]
        guided = {"negative_prompt": negative, "true_cfg_scale": setting.guidance}
        latents: Tensor = self.pipe(
            [self.captions[i] for i in batch],
            num_inference_steps=setting.steps,
            generator=generators[0] if self.case.shared_noise else generators,
            output_type="latent",
            **(guided if setting.guidance > 1 else {}),
        ).images
        return latents

    def add(self, line: Line, batch: Sequence[int], exact: Tensor | None, asked: dict[str, Any]) -> None:
        """The captions of a batch; `asked` goes to `enable`. Without the `exact` latents an audit tells the errors."""
        with torch.no_grad(), enable(self.pipe, **asked, audit=float(exact is None)) as cache:
            latents = self.draw(batch)
        report = cache.report().to_dict()
        samples, audited = report["samples"], report["audit"]
        line.errors += map(_short, audited["errors"] if exact is None else relative_error(latents, exact).tolist())
        line.estimates += (_short(sample["estimated_error"]) for sample in samples)
        line.work += (_short(sample["computed_fraction"]) for sample in samples)


def asked_for(case: Case) -> list[Asked]:
    """Every line of a case."""
    if case.nearest:
        return [(budget, None, None) for budget in case.budgets]
    confidences = CONFIDENCES if len(case.budgets) > 1 else (0.9,)
    within: list[Asked] = [(budget, confidence, None) for budget in case.budgets for confidence in confidences]
    return [*within, *((None, None, speedup) for speedup in case.speedups)]


def measure(case: Case, n: int, old_lines: list[dict[str, Any]], progress: Progress) -> Iterator[list[Line]]:
    """All lines of the case, after every batch of captions; `old_lines` go on there if their internal budget is
    still the same (a speed-up has none, and goes on). Lines of one internal budget are the same runs, and are drawn
    once.
    """
    draws = Draws(case, n)
    lines = [_begun(draws, asked, old_lines) for asked in asked_for(case)]
    batches = [batch for batch in draws.batches() if any(_due(line, batch) for line in lines)]
    task = progress.add_task(case.name, total=len(batches))
    for batch in batches:
        with torch.no_grad():
            exact = None if case.audited else draws.draw(batch)
        for k, line in enumerate(lines):
            if not _due(line, batch):
                continue
            same = next((one for one in lines[:k] if one.level == line.level > 0), None)
            if same is not None:
                line.errors, line.estimates, line.work = same.errors[:], same.estimates[:], same.work[:]
            else:
                draws.add(line, batch, exact, _asked(draws, line))
        yield lines
        progress.advance(task)


def _begun(draws: Draws, asked: Asked, old_lines: list[dict[str, Any]]) -> Line:
    """A line with what an old one says of it: whole batches."""
    things, size = [text.count(",") + 1 for text in draws.captions], draws.case.setting.batch
    line = Line(draws.case.name, *asked, _internal_budget(draws.profile, *asked[:2]), things)
    mine = (line.case, *asked, line.level)
    for old in old_lines:
        if tuple(old[key] for key in ("case", "budget", "confidence", "speedup", "level")) == mine:
            count = min(len(old["errors"]), len(things)) // size * size
            line.errors, line.estimates, line.work = (old[key][:count] for key in ("errors", "estimates", "work"))
    return line


def _due(line: Line, batch: range) -> bool:
    return len(line.errors) < batch.stop and (line.speedup is None or batch.stop <= SPEED_CAPTIONS)


def _asked(draws: Draws, line: Line) -> dict[str, Any]:
    """Of `enable`."""
    if draws.case.nearest:
        return {"error_budget": line.budget, "profile": "nearest"}
    blind = (
        replace(draws.profile, facts=replace(draws.profile.facts, negative_conditions={}))
        if draws.case.negative
        else None
    )
    return {"error_budget": line.budget, "confidence": line.confidence, "speedup": line.speedup, "profile": blind}


def _internal_budget(profile: Profile, budget: float | None, confidence: float | None) -> float:
    """The internal budget that is spent, 0 for a speed-up. Raises ProfileError as `enable` does."""
    if budget is None:
        return 0.0
    return profile.level(Wanted(LATENT, budget), confidence)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--show", action="store_true", help="print the committed tables, measure nothing")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, help="put the tables into this page of the docs")


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    facts: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {"lines": []}
    if not args.show:
        with Progress(console=Console(stderr=True)) as progress:
            for case in CASES:
                if args.cases in case.name:
                    rest = [line for line in facts["lines"] if line["case"] != case.name]
                    for drawn in measure(case, args.captions, facts["lines"], progress):
                        facts["lines"] = [*rest, *map(vars, drawn)]
                        write_text(args.out, json.dumps(facts) + "\n")
    lines = in_order(facts)
    text = f"{markdown(table(lines))}\n\n{markdown(speed_table(lines))}\n"
    if args.page:
        fill(args.page, "coverage", brief_tables(facts))
    write_text(args.out.with_suffix(".md"), text)
    Console(width=240).print(text, highlight=False)


def in_order(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines as their cases stand above."""
    order = {case.name: i for i, case in enumerate(CASES)}
    return sorted(facts["lines"], key=lambda line: order[line["case"]])


def brief_tables(facts: dict[str, Any]) -> str:
    """What stands on the docs' page of benchmarks."""
    lines = in_order(facts)
    return f"{markdown(brief(lines))}\n\n{markdown(speed_table(lines))}"


def _short(value: float) -> float:
    """Five digits, for the file's size."""
    return float(f"{value:.5g}")
