"""Do gates that see each sample's input (LazyDiT) beat schedules that are the same for all samples?

`python -m dicache.bench.studies.sublayer_gates [--captions N]`: sublayers of the reference model, 28 steps, guidance
3.5, all held where they are skipped. Gates are fitted on calibration captions and drawn on others of these. The same
fit with its weights on the input forced to 0 is a static schedule: a sublayer computes at a step where most captions
did err by more than the threshold, as SmoothCache decides by their mean. FORA's intervals are another one.
"""

import argparse
from collections.abc import Iterator

import torch
from rich.console import Console

import dicache
from dicache.bench.models.reference import Setting, draw, fresh
from dicache.presets import fora, lazydit
from dicache.promise.metrics import relative_error
from dicache.reference import prompts
from dicache.sites import Sublayers

BLIND = 1e9
"""A ridge that leaves nothing of the weights."""


def arms(fitting: int, setting: Setting, thresholds: list[float]) -> Iterator[tuple[str, dicache.Config]]:
    yield "FORA, every 2nd", fora(2, Sublayers())
    pipe, captions = fresh(setting), prompts("calibration", fitting, seed=5)
    for threshold in thresholds:
        for name, ridge in (("gates", None), ("gates without inputs", BLIND)):
            fitted = dicache.fit(
                pipe,
                captions,
                steps=setting.steps,
                kind="gate",
                batch=setting.batch,
                threshold=threshold,
                ridge=ridge,
                progress=False,
                negative_prompt=[""] * len(captions),
                true_cfg_scale=setting.guidance,
            )
            yield f"{name}, {threshold}", lazydit(fitted)


def main() -> None:
    parser = argparse.ArgumentParser(description="Do gates beat schedules that are the same for all samples?")
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--fitting", type=int, default=24, help="captions that gates are fitted on")
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.1, 0.2, 0.3])
    args = parser.parse_args()
    setting, console = Setting(), Console(width=160)
    pipe, captions = fresh(setting), prompts("calibration", args.captions, seed=77)
    plain = draw(pipe, captions, setting)
    for name, arm in arms(args.fitting, setting, args.thresholds):
        with dicache.enable(pipe, config=arm) as cache:
            drawn, trace = draw(pipe, captions, setting), cache.trace
        assert trace is not None
        errors = relative_error(drawn.latents, plain.latents)
        computed = torch.stack([record.action == 0 for record in trace.records])
        unlike = (computed != computed[:, :1]).any((0, 2)).sum()
        work = f"{drawn.macs / plain.macs:.3f}"
        row = (name, work, f"{errors.mean():.4f}", f"{errors.median():.4f}", f"{int(unlike)} decide otherwise")
        console.print(*row, sep=" | ", highlight=False)


if __name__ == "__main__":
    main()
