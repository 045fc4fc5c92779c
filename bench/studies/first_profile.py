"""What is a first calibration worth? `python -m dicache.bench.studies.first_profile --model scenes-unet`

What a user does in the first hour, on a model of the zoo: `dicache.calibrate` on 64 calibration captions, then test
captions with noise of their own, uncached and within every budget that is asked for (`--ask latent=0.05 psnr=30
ssim=0.92`), promised at `--confidence`. Printed are what the calibration said before it started and what it took, and
per budget the share of captions within it, with a one-sided binomial test against the confidence, how much of it the
median caption used, and the work.

One file a setting and confidence, written after every batch; the same command goes on where it was, with more captions
or budgets if more are asked for. The calibration is kept in `--checkpoint`. Budgets with one internal budget are the
same runs and are drawn once.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import dicache
from dicache.bench.harness.store import RESULTS
from dicache.bench.showing.first_profile_tables import Said, shown
from dicache.bench.showing.pages import fill
from dicache.bench.zoo.members import members
from dicache.bench.zoo.model import Model
from dicache.files.atomic import write_text
from dicache.files.content import digest_of
from dicache.measuring.calibration_plan import CalibrationPlan
from dicache.measuring.prompt_runs import Drawer, Drawn
from dicache.promise.metrics import loss, relative_error, resolved
from dicache.promise.profile import Profile
from dicache.types import LATENT, Wanted

FOLDER = RESULTS / "first-profile"
GATES, BUDGETS = ("psnr=30", "ssim=0.92"), ("latent=0.02", "latent=0.05", "latent=0.1")
SEED, CAPTION_SEED, NOISE_SEED = 300, 50, 70_000
"""Of the calibration, captions and noise; of the test captions; of their noise (`docs/notebook/captions.md`)."""
BATCH = 16


class Clock:
    """Since it was made, or read last."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds, and the share of them for which this process had a processor."""
        wall, processor = time.perf_counter(), time.process_time()
        passed, own = wall - self.wall, processor - self.processor
        self.wall, self.processor = wall, processor
        return passed, own / passed


@dataclass
class Line:
    """One budget on the test captions: their losses in its metric, less being better, and their work."""

    metric: str
    bound: float
    level: float
    losses: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.metric, self.bound)


def wanted_of(text: str) -> Wanted:
    """Of `psnr=30`, `ssim=0.92`, `latent=0.05`. Raises ValueError for anything else."""
    name, _, value = text.partition("=")
    makers: dict[str, Callable[[float], Wanted]] = {
        "psnr": dicache.Psnr,
        "ssim": dicache.Ssim,
        LATENT: lambda bound: Wanted(LATENT, bound),
    }
    if name not in makers or not value:
        raise ValueError(f"{text!r} is no budget. Expected one of {', '.join(makers)}, and a number, as psnr=30.")
    return makers[name](float(value))


@dataclass(frozen=True)
class Setting:
    """A model of the zoo as it is calibrated and drawn."""

    model: Model
    solver: str
    steps: int
    prompts: int
    confidence: float

    @property
    def name(self) -> str:
        return f"{self.model.name}, {self.solver}, {self.steps} steps"

    @property
    def call(self) -> dict[str, Any]:
        call = self.model.call()
        if call is None:
            raise SystemExit(f"{self.model.name} is a bare network: without a pipeline there is nothing to calibrate.")
        return call

    def calibrated(self, pipe: Any, folder: Path) -> tuple[Profile, Said]:  # noqa: ANN401
        """On captions that the test captions are not among."""
        said: list[Said] = []
        before: list[float] = []
        clock = Clock()

        def listen(plan: CalibrationPlan) -> int:
            said.append(Said(plan.undrawn, plan.remaining))
            before.append(clock.read()[1])
            return plan.prompts

        profile = dicache.calibrate(
            pipe,
            self.model.conditions("calibration", self.prompts, seed=SEED),
            steps=self.steps,
            seed=SEED,
            call=self.call,
            metric=("psnr", "ssim"),
            checkpoint=folder,
            approve=listen,
        )
        (one,), cost = said, profile.about["cost"]
        one.took, after = clock.read()
        one.busy, one.resumed = (before[0], after), bool(cost["resumed"])
        begun = 0 if one.resumed else self.prompts * (1 + len(profile.arrays["levels"])) - one.samples
        one.drawn = cost["samples"] - begun
        return profile, one


def draw(
    pipe: Any,  # noqa: ANN401
    setting: Setting,
    profile: Profile,
    lines: Sequence[Line],
    captions: int,
) -> Iterator[None]:
    """Fills the lines; comes back after every batch."""
    texts = setting.model.conditions("test", captions, seed=CAPTION_SEED)
    drawer = Drawer(pipe, texts, setting.steps, NOISE_SEED, setting.call, images=True)
    for start in range(0, captions, BATCH):
        batch = range(start, min(start + BATCH, captions))
        due = [line for line in lines if len(line.losses) == start]
        exact = drawer.draw(batch) if due else None
        runs: dict[float, tuple[Drawn, list[float]]] = {}
        for line in due:
            if line.level not in runs:
                with dicache.enable(
                    pipe, error_budget=line.wanted, confidence=setting.confidence, profile=profile
                ) as cache:
                    drawn = drawer.draw(batch)
                shares = [sample["computed_fraction"] for sample in cache.report().to_dict()["samples"]]
                runs[line.level] = drawn, shares
            assert exact is not None
            line.losses += _losses(line.metric, runs[line.level][0], exact)
            line.work += [_short(share) for share in runs[line.level][1]]
        if due:
            yield


def _losses(metric: str, drawn: Drawn, exact: Drawn) -> list[float]:
    if metric == LATENT:
        return [_short(error) for error in relative_error(drawn.latents, exact.latents).tolist()]
    assert drawn.images is not None and exact.images is not None
    return [_short(each) for each in loss(metric, resolved(metric)[metric], drawn.images, exact.images).tolist()]


def _short(value: float) -> float:
    """Five digits, for the file's size."""
    return float(f"{value:.5g}")


def measure(setting: Setting, budgets: Sequence[Wanted], captions: int, folder: Path, out: Path) -> None:
    """Writes the file, after the calibration and after every batch."""
    pipe = setting.model.fresh(setting.solver)
    profile, said = setting.calibrated(pipe, folder)
    own = digest_of([profile.facts, {name: np.asarray(value) for name, value in profile.arrays.items()}])
    old = json.loads(out.read_text()) if out.is_file() else {}
    same = old.get("profile") == own and old.get("confidence") == setting.confidence
    lines = [_begun(profile, wanted, setting.confidence, old["lines"] if same else []) for wanted in budgets]
    facts = {
        "setting": setting.name,
        "prompts": setting.prompts,
        "confidence": setting.confidence,
        "profile": own,
        "said": old["said"] if same and said.resumed else asdict(said),
    }
    rest = [line for line in (old["lines"] if same else []) if Wanted(line["metric"], line["bound"]) not in budgets]
    out.parent.mkdir(parents=True, exist_ok=True)
    for _ in itertools.chain([None], draw(pipe, setting, profile, lines, captions)):
        write_text(out, json.dumps({**facts, "lines": [*rest, *map(asdict, lines)]}) + "\n")


def _begun(profile: Profile, wanted: Wanted, confidence: float, old_lines: Sequence[dict[str, Any]]) -> Line:
    """A line, with what an old one says of it: whole batches."""
    line = Line(*wanted, profile.level(wanted, confidence))
    for old in old_lines:
        if (old["metric"], old["bound"], old["level"]) == (line.metric, line.bound, line.level):
            count = len(old["losses"]) // BATCH * BATCH
            line.losses, line.work = old["losses"][:count], old["work"][:count]
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description="What is a first calibration worth?")
    models = {model.name: model for model in members() if model.call() is not None}
    parser.add_argument("--model", choices=models, default="scenes")
    parser.add_argument("--solver", help="without, the model's first")
    parser.add_argument("--steps", type=int, help="without, the model's first")
    parser.add_argument("--prompts", type=int, default=64, help="that it is calibrated on")
    parser.add_argument("--captions", type=int, default=256, help="that it is tested on")
    parser.add_argument("--ask", nargs="+", type=wanted_of, default=[wanted_of(text) for text in (*BUDGETS, *GATES)])
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/first-profile"), help="calibrations lie below")
    parser.add_argument("--out", type=Path, default=FOLDER, help="a folder")
    parser.add_argument("--show", action="store_true", help="print what the folder holds, measure nothing")
    parser.add_argument("--page", type=Path, help="put the table into this page of the docs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.show:
        model = models[args.model]
        steps, solver = args.steps or model.grids[0], args.solver or model.solvers[0]
        setting = Setting(model, solver, steps, args.prompts, args.confidence)
        name = f"{setting.name.replace(', ', '-').replace(' ', '-')}-{args.prompts}"
        out = args.out / f"{name}-at-{args.confidence:g}.json"
        measure(setting, args.ask, args.captions, args.checkpoint / name, out)
    text = shown(args.out)
    if args.page:
        fill(args.page, "first-profile", text)
    Console(width=200).print(text, highlight=False)


if __name__ == "__main__":
    main()
