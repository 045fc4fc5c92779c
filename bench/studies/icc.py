"""What does correcting every linear layer cost and save?
`python -m dicache.bench.studies.icc [--ranks 4,16]`

ICC as published, on the reference model: maps are the cut of each layer's own weights, every second step computes, and
what lies between the layers is computed. Beside it the same steps with sublayers held, and corrected by fitted maps.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from rich.console import Console

import dicache
from dicache.bench.models.reference import Setting, draw, fresh
from dicache.config import Config
from dicache.promise.metrics import relative_error
from dicache.reference import prompts
from dicache.sites import Linears, Sites, Sublayers

SEED = 13


def arms(setting: Setting, captions: int, ranks: list[int]) -> Iterator[tuple[str, Config]]:
    yield "sublayers, held", dicache.presets.fora(2, Sublayers())
    for name, sites in (("sublayers", Sublayers()), ("linear layers", Linears())):
        for rank in ranks:
            yield f"{name}, rank {rank}", dicache.presets.icc(_fitted(setting, captions, sites, rank))


def _fitted(setting: Setting, captions: int, sites: Sites, rank: int) -> Any:  # noqa: ANN401
    call: dict[str, Any] = {"negative_prompt": [""] * captions, "true_cfg_scale": setting.guidance}
    options: dict[str, Any] = {"kind": "low_rank", "sites": sites, "rank": rank, "longest": 1, "progress": False}
    return dicache.fit(fresh(setting), prompts("calibration", captions, SEED), steps=setting.steps, **options, **call)


def main() -> None:
    parser = argparse.ArgumentParser(description="ICC on linear layers and on sublayers.")
    parser.add_argument("--captions", type=int, default=8, help="to draw; as many others are fitted on")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--ranks", default="4,16,64")
    args = parser.parse_args()
    setting, console = Setting(steps=args.steps), Console(width=120)
    pipe, captions = fresh(setting), prompts("test", args.captions)
    exact = draw(pipe, captions, setting)
    for name, config in arms(setting, args.captions, [int(rank) for rank in args.ranks.split(",")]):
        with dicache.enable(pipe, config=config):
            drawn = draw(pipe, captions, setting)
        error = float(relative_error(drawn.latents, exact.latents).median())
        console.print(f"{name:28s} work {drawn.macs / exact.macs:.3f}, median error {error:.4f}")


if __name__ == "__main__":
    main()
