"""What 8-bit integers and a cache cost together: `python -m dicache.bench.studies.int8 [--captions N]`

The reference model, 28 steps, guidance 3.5, against uncached full precision. Linear layers of the blocks in 8 bits
(torchao), as they come and corrected per channel; the cache alone; both, with what corrects the cache fitted on the
quantised model. Errors that have nothing to do with each other add in squares: the last column is both over that.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import dicache
from dicache.bench.models.reference import Setting, draw, fresh
from dicache.defaults import for_budget
from dicache.int8 import quantise
from dicache.presets import cachequant
from dicache.promise.metrics import relative_error
from dicache.reference import prompts
from dicache.sites import Evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description="What do 8-bit integers and a cache cost together?")
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--fitting", type=int, default=8)
    parser.add_argument("--interval", type=int, default=3)
    args = parser.parse_args()
    setting, console = Setting(), Console(width=160)
    pipe, fitting = fresh(setting), prompts("calibration", args.fitting, seed=5)
    captions = prompts("calibration", args.captions, seed=77)
    plain = draw(pipe, captions, setting).latents

    def tell(name: str, latents: Tensor, *columns: object) -> Tensor:
        errors = relative_error(latents, plain)
        console.print(name, f"{errors.mean():.4f}", f"{errors.median():.4f}", *columns, sep=" | ", highlight=False)
        return errors

    def cached(name: str, config: Callable[[], dicache.Config], alone: Tensor | None = None) -> Tensor:
        with dicache.enable(pipe, config=config()) as cache:
            drawn, report = draw(pipe, captions, setting), cache.report().to_dict()
        work = report["executed_macs"] / report["uncached_macs"]
        columns = [f"work {work:.3f}", f"{report['executed_int8_macs'] / report['executed_macs']:.0%} of it in int8"]
        errors = tell(name, drawn.latents, *columns)
        if alone is not None:
            console.print(f"  squares: {(errors**2).mean() / (alone**2).mean():.3f}", highlight=False)
        return errors

    def fitted() -> dicache.Config:
        call: dict[str, Any] = {"negative_prompt": [""] * len(fitting), "true_cfg_scale": setting.guidance}
        longest = args.interval - 1
        made = dicache.fit(
            pipe,
            fitting,
            steps=setting.steps,
            kind="affine",
            sites=Evaluation(),
            longest=longest,
            batch=setting.batch,
            progress=False,
            **call,
        )
        return cachequant(made, interval=args.interval)

    budget = for_budget(0.05)
    alone, planned = cached("cache, lines per channel", fitted), cached("cache, error_budget=0.05", lambda: budget)
    quantised = quantise(pipe)
    tell("int8", draw(pipe, captions, setting).latents)
    quantised.correct(lambda: draw(pipe, fitting, setting))
    int8 = tell("int8, corrected", draw(pipe, captions, setting).latents)
    cached("both, lines per channel", fitted, torch.hypot(alone, int8))
    cached("both, error_budget=0.05", lambda: budget, torch.hypot(planned, int8))
    quantised.restore()


if __name__ == "__main__":
    main()
