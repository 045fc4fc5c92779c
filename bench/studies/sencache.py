"""Does the threshold that SenCache's table gives compute what was asked for?
`python -m dicache.bench.studies.sencache [--captions 16]`

The table is made on calibration captions of the reference model; the preset, with the threshold found for each share of
the steps, draws test captions.
"""

import argparse
from typing import Any

from rich.console import Console

from dicache.api import enable
from dicache.bench.arms.presets import sensitivities
from dicache.bench.models.reference import Setting, draw, fresh
from dicache.presets import sencache
from dicache.promise.metrics import relative_error
from dicache.reference.scenes import prompts

WORKS = (0.7, 0.5, 0.36, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description="SenCache at a threshold that its table gives.")
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--steps", type=int, default=28)
    args = parser.parse_args()
    setting, console = Setting(steps=args.steps), Console(width=120)
    pipe, captions = fresh(setting), prompts("test", args.captions, seed=0)
    table, exact = sensitivities(setting), draw(pipe, captions, setting)
    for work in WORKS:
        config = sencache(table, work=work)
        rule: Any = config.controller
        with enable(pipe, config=config):
            drawn = draw(pipe, captions, setting)
        error = float(relative_error(drawn.latents, exact.latents).median())
        done = drawn.macs / exact.macs
        console.print(f"asked {work:.2f}: threshold {rule.inner.threshold:.4f}, work {done:.3f}, error {error:.4f}")


if __name__ == "__main__":
    main()
