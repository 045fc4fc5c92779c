"""Are error budgets over sites below the whole evaluation kept, and what do they save?
`python -m dicache.bench.studies.inner_budgets [--model scenes-unet] [--sites tail,blocks]`

Each composition is calibrated on calibration captions (gains by injection, then what is lost within every level), and
asked for budgets with confidence 0.9 on test captions: executed work, the 90th percentile of true error over budget,
and the share of captions within it. "assumed" is the same with gains of 1 and no profile.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import dicache
from dicache.approximators import Align, Extrapolate, Reuse
from dicache.bench.harness.store import RESULTS
from dicache.bench.models import reference, scenes_unet
from dicache.controllers import Gains, Interval, Planned, WithGains
from dicache.estimators import ClosedLoop
from dicache.files.atomic import write_text
from dicache.measuring.prompt_runs import Drawer
from dicache.probes import FirstBlocks
from dicache.promise.metrics import relative_error
from dicache.reference import prompts
from dicache.sites import Skips, Spans, Tail

BUDGETS = (0.02, 0.05, 0.1)
LEVELS = (0.0015, 0.003, 0.006, 0.012, 0.024, 0.048, 0.096)
SEED, CALIBRATED = 41, 43
CONFIDENCE = 0.9
RULE = Interval(1)
COMPOSITIONS = {
    "tail": dicache.Config(RULE, sites=Tail()),
    "blocks": dicache.Config(RULE, sites=Spans(1)),
    "probe": dicache.Config(RULE, ClosedLoop(1.0), (Reuse(), Extrapolate(), Align()), FirstBlocks(1), Spans(1)),
    "skips": dicache.Config(RULE, sites=Skips(0, 1)),
}
"""By name: all blocks as one, every block, every block with a probe and alignment, and DeepCache's span (UNets)."""


@dataclass(frozen=True)
class Line:
    """One composition at one budget."""

    model: str
    sites: str
    budget: float
    assumed: bool
    """Whether gains are 1 and there is no profile."""
    work: float
    median: float
    p90: float
    """Of true error over budget."""
    within: float


@dataclass(frozen=True)
class Model:
    pipe: Any
    steps: int
    call: dict[str, Any]


def model_of(name: str) -> Model:
    if name == "scenes":
        setting = reference.Setting()
        guided = {"negative_prompt": "", "true_cfg_scale": setting.guidance}
        return Model(reference.fresh(setting), setting.steps, guided)
    pipe = scenes_unet.pipeline()
    return Model(pipe, 20, {"negative_prompt": "", "guidance_scale": scenes_unet.GUIDANCE})


def lines(
    name: str,
    wanted: list[str],
    captions: int,
    calibrated: int,
    assumptions: list[bool],
    tell: Callable[..., None],
    checkpoint: Path | None = None,
) -> Iterator[Line]:
    model, batch = model_of(name), 8
    drawer = Drawer(model.pipe, prompts("test", captions), model.steps, SEED, model.call, images=False)

    def draw(config: dicache.Config | None) -> tuple[Tensor, Tensor]:
        """Latents, and the work of every caption."""
        latents, work = [], []
        for start in range(0, captions, batch):
            indices = range(start, min(start + batch, captions))
            if config is None:
                latents.append(drawer.draw(indices).latents)
                continue
            with dicache.enable(model.pipe, config=config) as cache:
                latents.append(drawer.draw(indices).latents)
            trace = cache.trace
            assert trace is not None
            work.append(trace.executed / trace.uncached)
        return torch.cat(latents), torch.cat(work) if work else torch.ones(captions)

    exact, _ = draw(None)
    for sites in wanted:
        parts, started = COMPOSITIONS[sites], time.perf_counter()
        profile = dicache.calibrate(
            model.pipe,
            prompts("calibration", calibrated, CALIBRATED),
            steps=model.steps,
            seed=CALIBRATED,
            call=model.call,
            levels=LEVELS,
            progress=checkpoint is not None,
            config=parts,
            checkpoint=None if checkpoint is None else checkpoint / f"{name}-{sites}",
        )
        tell(name, sites, f"calibrated in {time.perf_counter() - started:.0f} s", profile.gains)
        for budget in BUDGETS:
            for assumed in assumptions:
                rule = WithGains(Planned(budget), Gains()) if assumed else profile.rule(budget, CONFIDENCE)
                latents, work = draw(replace(parts, controller=rule))
                error = relative_error(latents, exact) / budget
                numbers = float(work.mean()), float(error.median()), float(error.quantile(0.9))
                yield Line(name, sites, budget, assumed, *numbers, float((error <= 1).double().mean()))


def save(line: Line, path: Path) -> None:
    """Beside the others, in place of an older one of the same."""
    before = json.loads(path.read_text()) if path.exists() else []
    key = ("model", "sites", "budget", "assumed")
    rest = [row for row in before if any(row[name] != asdict(line)[name] for name in key)]
    rows = sorted([*rest, asdict(line)], key=lambda row: [str(row[name]) for name in key])
    write_text(path, json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Are error budgets below the whole evaluation kept?")
    parser.add_argument("--model", choices=["scenes", "scenes-unet"], default="scenes")
    parser.add_argument("--sites", default="tail,blocks,probe", help=", ".join(COMPOSITIONS))
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--calibrated", type=int, default=22, help="captions that the profile is made on")
    parser.add_argument("--assumed", action="store_true", help="also with gains of 1 and no profile")
    parser.add_argument("--json", type=Path, default=RESULTS / "inner-budgets.json")
    parser.add_argument("--checkpoint", type=Path, help="a folder: killed, calibrations go on there")
    args = parser.parse_args()
    console = Console(width=160)

    def tell(*parts: object) -> None:
        console.print(*parts, sep=" | ", highlight=False)

    tell("model", "sites", "budget", "gains", "work", "median over budget", "p90 over budget", "within")
    assumptions = [False, True] if args.assumed else [False]
    captions = args.captions, args.calibrated
    for line in lines(args.model, args.sites.split(","), *captions, assumptions, tell, args.checkpoint):
        save(line, args.json)
        numbers = (f"{number:.3f}" for number in (line.work, line.median, line.p90, line.within))
        tell(line.model, line.sites, line.budget, "assumed" if line.assumed else "profile", *numbers)


if __name__ == "__main__":
    main()
