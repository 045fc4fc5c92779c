"""Is the promise kept? `python -m dicache.bench coverage`

Test captions that nothing was trained, calibrated or tuned on, with noise of their own, drawn uncached and within every
budget at every confidence, by the profiles that ship. Per setting: the share of captions within budget, held against
the confidence by a one-sided binomial test; how much of the budget is used; how far true errors spread around their
estimates, which is what the promise costs; how the work differs between captions. Then the same where the promise does
not hold, and `speedup=`.

Saved after every line; the same command goes on where it was.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from scipy import stats
from torch import Tensor

from dicache.api import enable
from dicache.bench.arms import Setting
from dicache.bench.measure import fresh
from dicache.bench.tables import markdown
from dicache.identity import identity
from dicache.metrics import relative_error
from dicache.reference.scenes import caption, prompts, scenes, split_of
from dicache.shelf import shipped
from dicache.types import LATENT, Wanted

RESULT = Path(__file__).parent / "results" / "coverage.json"
BUDGETS, CONFIDENCES, SPEEDUPS = (0.02, 0.05, 0.1), (0.8, 0.9, 0.95), (1.5, 2.0, 3.0)
CAPTION_SEED, NOISE_SEED = 50, 70_000
SIGNIFICANT = 0.01
HEAD = "setting | captions | budget | confidence | within | p | median / budget | spread | work | sd | 1 to 4 things"


@dataclass(frozen=True)
class Case:
    """Captions drawn at one setting."""

    name: str
    setting: Setting
    four: bool = False
    """Only captions of four things."""
    shared_noise: bool = False
    """One generator for the whole batch, in place of one per caption."""
    nearest: bool = False
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


CASES = (
    *(Case(f"{s} steps, guidance 3.5", Setting(s), speedups=SPEEDUPS if s == 28 else ()) for s in (28, 20)),
    *(Case(f"{s} steps, no guidance", Setting(s, guidance=1.0)) for s in (28, 20)),
    Case("shifted: four things", Setting(28), four=True, budgets=(0.05,)),
    Case("shifted: one generator per batch", Setting(28), shared_noise=True, budgets=(0.05,)),
    Case("shifted: scheduler shift 3, nearest", Setting(28, shift=3.0), nearest=True, budgets=(0.05,)),
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

    def __init__(self, case: Case, n: int) -> None:
        self.case, self.pipe, self.captions = case, fresh(case.setting), case.captions(n)

    def batches(self) -> Iterator[range]:
        size = self.case.setting.batch
        return (range(k, min(k + size, len(self.captions))) for k in range(0, len(self.captions), size))

    def draw(self, batch: Sequence[int]) -> Tensor:
        setting, seeds = self.case.setting, [NOISE_SEED + i for i in batch]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        guided = {"negative_prompt": [""] * len(batch), "true_cfg_scale": setting.guidance}
        latents: Tensor = self.pipe(
            [self.captions[i] for i in batch],
            num_inference_steps=setting.steps,
            generator=generators[0] if self.case.shared_noise else generators,
            output_type="latent",
            **(guided if setting.guidance > 1 else {}),
        ).images
        return latents

    def line(self, line: Line, reference: Sequence[Tensor], **asked: Any) -> Line:  # noqa: ANN401
        """Filled in; `asked` goes to `enable`."""
        for batch, exact in zip(self.batches(), reference, strict=True):
            with torch.no_grad(), enable(self.pipe, **asked) as cache:
                latents = self.draw(batch)
            report = cache.report()
            samples = report.to_dict()["samples"]
            line.errors += relative_error(latents, exact).tolist()
            line.estimates += [sample["estimated_error"] for sample in samples]
            line.work += [sample["computed_fraction"] for sample in samples]
            if report.promise is not None:
                line.level = float(report.promise.levels[0])
        return line


def asked_for(case: Case) -> list[tuple[float | None, float | None, float | None]]:
    """(budget, confidence, speed-up) of every line of a case."""
    if case.nearest:
        return [(budget, None, None) for budget in case.budgets]
    confidences = CONFIDENCES if len(case.budgets) > 1 else (0.9,)
    found = [(budget, confidence, None) for budget in case.budgets for confidence in confidences]
    return [*found, *((None, None, speedup) for speedup in case.speedups)]


def measure(case: Case, n: int, known: list[dict[str, Any]], progress: Progress) -> Iterator[Line]:
    """The lines that `known` lacks. Lines of one internal budget are the same runs, and are drawn once."""
    done = {(line["budget"], line["confidence"], line["speedup"]) for line in known if line["case"] == case.name}
    missing = [asked for asked in asked_for(case) if asked not in done]
    task = progress.add_task(case.name, total=len(missing) + 1)
    if not missing:
        progress.update(task, completed=1)
        return
    draws = Draws(case, n)
    with torch.no_grad():
        reference = [draws.draw(batch) for batch in draws.batches()]
    progress.advance(task)
    things, drawn = [text.count(",") + 1 for text in draws.captions], list[Line]()
    for budget, confidence, speedup in missing:
        asked: dict[str, Any] = {"error_budget": budget, "confidence": confidence, "speedup": speedup}
        if case.nearest:
            asked = {"error_budget": budget, "profile": "nearest"}
        line = Line(case.name, budget, confidence, speedup, _level(draws, budget, confidence), things)
        same = next((one for one in drawn if budget and confidence and line.level and one.level == line.level), None)
        line = (
            draws.line(line, reference, **asked)
            if same is None
            else replace(same, budget=budget, confidence=confidence)
        )
        drawn.append(line)
        yield line
        progress.advance(task)


def _level(draws: Draws, budget: float | None, confidence: float | None) -> float:
    """The internal budget that a promise goes by; 0 where nothing is promised. Raises ProfileError as `enable` does."""
    setting = draws.case.setting
    if budget is None or confidence is None:
        return 0.0
    for profile in shipped(identity(draws.pipe.transformer)):
        near = abs(profile.facts.guidance - setting.guidance) < 0.01
        if near and profile.facts.steps == setting.steps:
            return profile.level(Wanted(LATENT, budget), confidence)
    return 0.0


def table(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [HEAD.split(" | "), *(_row(line) for line in lines if line["speedup"] is None)]


def _row(line: dict[str, Any]) -> list[str]:
    errors, work = np.array(line["errors"]), np.array(line["work"])
    within, n, confidence = int((errors <= line["budget"]).sum()), len(errors), line["confidence"]
    p = None if confidence is None else stats.binomtest(within, n, confidence, alternative="less").pvalue
    ratio = np.log(np.maximum(errors, 1e-9) / np.maximum(line["estimates"], 1e-9))
    by_things = [work[np.array(line["things"]) == k] for k in (1, 4)]
    return [
        line["case"],
        str(n),
        f"{line['budget']:g}",
        "none" if confidence is None else f"{confidence:g}",
        f"{within / n:.3f}",
        "-" if p is None else f"{p:.3f}" + (" FAILS" if p < SIGNIFICANT else ""),
        f"{np.median(errors) / line['budget']:.2f}",
        f"{ratio.std():.2f}" if work.min() < 0.999 else "-",
        f"{work.mean():.3f}",
        f"{work.std():.3f}",
        " to ".join(f"{part.mean():.3f}" if len(part) else "-" for part in by_things),
    ]


def speed_table(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["setting", "captions", "speedup asked", "speedup", "off by", "sd of work", "median error", "90th pct"]]
    for line in lines:
        if line["speedup"] is not None:
            work, errors = np.array(line["work"]), np.array(line["errors"])
            found = 1 / work.mean()
            numbers = [f"{found:.3f}", f"{found / line['speedup'] - 1:+.1%}", f"{work.std():.3f}"]
            numbers += [f"{np.median(errors):.4f}", f"{np.quantile(errors, 0.9):.4f}"]
            rows.append([line["case"], str(len(work)), f"{line['speedup']:g}", *numbers])
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--show", action="store_true", help="print the committed tables, measure nothing")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--readme", type=Path, help="put the tables into this README")


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    facts: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {"lines": []}
    if not args.show:
        n, part = args.captions, args.cases
        facts["lines"] = [line for line in facts["lines"] if part not in line["case"] or len(line["errors"]) == n]
        with Progress(console=Console(stderr=True)) as progress:
            for case in CASES:
                if args.cases in case.name:
                    for line in measure(case, args.captions, facts["lines"], progress):
                        facts["lines"].append(vars(line))
                        args.out.write_text(json.dumps(facts) + "\n")
    order = {case.name: i for i, case in enumerate(CASES)}
    lines = sorted(facts["lines"], key=lambda line: order[line["case"]])
    text = f"{markdown(table(lines))}\n\n{markdown(speed_table(lines))}\n"
    if args.readme:
        _into(args.readme, text)
    args.out.with_suffix(".md").write_text(text)
    Console(width=240).print(text, highlight=False)


def _into(readme: Path, text: str) -> None:
    before, rest = readme.read_text().split("<!-- coverage:begin -->")
    after = rest.split("<!-- coverage:end -->")[1]
    readme.write_text(f"{before}<!-- coverage:begin -->\n{text}<!-- coverage:end -->{after}")
