"""What the controller itself costs: `python -m dicache.bench.studies.controller_cost`

A FLUX transformer of hidden width 1024 and 24 blocks (8 of two streams, 16 of one) with random weights, one sample, in
turns within one run: the plain call, a call under a cache that computes everything, calls in which every site is
filled in. What such a call takes beyond the modules around the blocks, timed as a model without blocks, is the cache's
own: guesses, decisions, hooks. Sublayers are left out: the rest of every block runs with them.
"""

import argparse
import json
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from dicache.api import enable
from dicache.bench.studies.hook_cost import WARM_UP, FirstRows
from dicache.config import Config
from dicache.files.atomic import write_text
from dicache.sites import Evaluation, Sites, Spans, Tail

DOUBLE, SINGLE = 8, 16
FILLED: dict[str, Sites] = {
    "whole evaluation": Evaluation(),
    "tail": Tail(),
    "groups of 4 blocks": Spans(4),
    "single blocks": Spans(),
}


@dataclass(frozen=True)
class Line:
    name: str
    own: float
    """Share of the plain call that the cache itself takes, median over the turns."""
    call: float
    """Share that the whole call takes."""


def model(heads: int) -> FluxTransformer2DModel:
    """Hidden width 64 * heads."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=64,
        num_attention_heads=heads,
        joint_attention_dim=256,
        pooled_projection_dim=64,
        axes_dims_rope=(16, 24, 24),
    ).eval()


def _twin(denoiser: nn.Module, *, blocks: bool = True) -> FluxTransformer2DModel:
    """The same weights in modules of their own."""
    twin = deepcopy(denoiser, {id(p): p for p in denoiser.parameters()})
    if not blocks:
        twin.transformer_blocks, twin.single_transformer_blocks = nn.ModuleList(), nn.ModuleList()
    return twin


def inputs(tokens: int) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.randn(1, tokens, 64),
        "encoder_hidden_states": torch.randn(1, tokens // 4, 256),
        "pooled_projections": torch.randn(1, 64),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(tokens // 4, 3),
    }


@torch.no_grad()
def measure(heads: int, tokens: int, turns: int) -> list[Line]:
    denoiser, arguments = model(heads), inputs(tokens)
    arms = {"plain": _twin(denoiser), "around": _twin(denoiser, blocks=False), "everything computed": _twin(denoiser)}
    enable(arms["everything computed"], error_budget=0.0)
    for name, sites in FILLED.items():
        arms[name] = _twin(denoiser)
        enable(arms[name], config=Config(FirstRows(0), sites=sites))
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    steps = WARM_UP + turns
    for step in track(range(steps), description="turns", console=Console(stderr=True)):
        for name, arm in arms.items():
            if step >= WARM_UP or name not in ("plain", "around"):
                seconds[name].append(_timed(arm, arguments, 1 - step / steps))
    timed = {name: torch.tensor(times[-turns:], dtype=torch.float64) for name, times in seconds.items()}
    plain, around = timed.pop("plain"), timed.pop("around")
    lines = []
    for name, times in timed.items():
        own = times - (plain if name == "everything computed" else around)
        lines.append(Line(name, float((own / plain).median()), float((times / plain).median())))
    return lines


def _timed(denoiser: FluxTransformer2DModel, arguments: dict[str, torch.Tensor], timestep: float) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    denoiser(**arguments, timestep=torch.tensor([timestep]))
    return time.process_time() - started


def table(lines: list[Line]) -> Table:
    drawn = Table("site", "cache's own share of a plain call", "whole call", title="What the cache itself costs")
    for line in lines:
        drawn.add_row(line.name, f"{line.own:.2%}", f"{line.call:.2%}")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dicache.bench.studies.controller_cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--heads", type=int, default=16, help="of 64 channels each")
    parser.add_argument("--tokens", type=int, default=256, help="of the picture; a quarter as many of text")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = measure(args.heads, args.tokens, args.turns)
    Console().print(table(lines))
    if args.json:
        write_text(args.json, json.dumps([asdict(line) for line in lines], indent=1) + "\n")


if __name__ == "__main__":
    main()
