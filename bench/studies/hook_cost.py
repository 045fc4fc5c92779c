"""What do the hooks cost? `python -m dicache.bench.studies.hook_cost [--quick]`

A stack of small blocks on 8 rows, of which n are computed at every step and the others filled in, against the same step
of the plain model:

    ratio      time of the step / time of the plain step
    ideal      the same if the probe ran on 8 rows, the others on n, and nothing else: by the plain model's own times
    overhead   time - ideal time

The blocks do far less than those of a transformer of their width (a 32-wide bottleneck), so the ratios are worst cases.
What carries over is the overhead, split by the number of blocks into a part per step and a part per block; of the
latter, what n of 8 rows cost beyond all 8 is the gathering and scattering of rows, to be held against the time that the
rows left out would have taken. All arms take turns within one run, and every number is a median over the turns, in CPU
time of one thread.
"""

import argparse
import json
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from dicache.api import enable
from dicache.config import Config
from dicache.controllers.base import Controller
from dicache.files.atomic import write_text
from dicache.types import Action, Decision, Quote, Rows, Step

BATCH, TOKENS, BOTTLENECK = 8, 16, 32
COMPUTED = (8, 7, 6, 4, 2, 1, 0)
"""Rows of 8."""
GRID = tuple((width, blocks) for width in (256, 1024, 3072) for blocks in (8, 28, 57))
QUICK = tuple((width, blocks) for width in (256, 1024) for blocks in (8, 28))
WARM_UP = 4
"""Steps before the turns: the first measures MACs, and a guess needs three computed ones."""


class Block(nn.Module):
    in_place: bool
    down: nn.Linear
    up: nn.Linear

    def __init__(self, width: int, in_place: bool) -> None:
        super().__init__()
        self.down, self.up, self.in_place = nn.Linear(width, BOTTLENECK), nn.Linear(BOTTLENECK, width), in_place

    def forward(self, hidden_states: Tensor) -> Tensor:
        change = self.up(self.down(hidden_states).tanh())
        return hidden_states.add_(change) if self.in_place else hidden_states + change


class Stack(nn.Module):
    """A denoiser of blocks and nothing else, (B, ..., width); blocks that work in place compute the same."""

    def __init__(self, width: int, blocks: int, *, in_place: bool = False) -> None:
        super().__init__()
        self.blocks: nn.ModuleList = nn.ModuleList(Block(width, in_place) for _ in range(blocks))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        hidden = hidden_states * (1 + timestep.view(-1, *[1] * (hidden_states.ndim - 1)))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


@dataclass(frozen=True)
class FirstRows(Controller[None]):
    """After the warm-up, the first rows compute and the others never do."""

    computed: int

    def init(self, samples: int) -> None:
        return None

    def decide(self, quote: Quote, step: Step, state: None) -> tuple[Decision, None]:
        computes = (torch.arange(len(quote.action)) < self.computed) | (step.index < WARM_UP)
        actions = torch.where(computes, int(Action.COMPUTE), quote.action)[:, None]
        return Decision(actions, torch.zeros_like(actions), torch.zeros_like(quote.cost)), None

    def settle(self, ratio: Rows, computed: Rows, state: None) -> None:
        return None


@dataclass(frozen=True)
class Line:
    width: int
    blocks: int
    computed: int
    """Rows of 8."""
    ratio: float
    ideal: float
    overhead: float
    saved: float
    """Of the ideal step against the plain one. Both in microseconds per step."""


@dataclass(frozen=True)
class Cost:
    """Microseconds, from the difference between the longest and the shortest stack of one width."""

    width: int
    computed: int
    per_step: float
    per_block: float
    gathering: float | None
    """Of `per_block`; None where no rows are gathered."""
    saved: float
    """Per block, by the rows left out."""


Turn = Callable[[float], None]


def plain(model: Stack, latent: Tensor) -> Turn:
    def turn(timestep: float) -> None:
        model(latent, torch.full((len(latent),), timestep))

    return turn


def cached(model: Stack, latent: Tensor, computed: int) -> Turn:
    """The same weights under a cache; with all rows computed, under a budget of 0."""
    twin = deepcopy(model, {id(p): p for p in model.parameters()})
    if computed == len(latent):
        enable(twin, error_budget=0.0)
    else:
        enable(twin, config=Config(FirstRows(computed)))
    return plain(twin, latent)


@torch.no_grad()
def timed(turns: list[Turn], repeats: int) -> Tensor:
    """Seconds, (repeats, turns); time falls from step to step, as in one long run."""
    steps = WARM_UP + repeats
    seconds = torch.zeros(steps, len(turns), dtype=torch.float64)
    for step in range(steps):
        for i, turn in enumerate(turns):
            started = time.process_time()
            turn(1 - step / steps)
            seconds[step, i] = time.process_time() - started
    return seconds[WARM_UP:]


def measure(width: int, blocks: int, repeats: int) -> list[Line]:
    torch.manual_seed(0)
    model, latent = Stack(width, blocks), torch.randn(BATCH, TOKENS, width)
    turns = [cached(model, latent, computed) for computed in COMPUTED]
    turns += [plain(model, latent[:computed]) for computed in COMPUTED if computed]
    seconds = timed(turns, repeats)
    arms, rows = seconds[:, : len(COMPUTED)], nn.functional.pad(seconds[:, len(COMPUTED) :], (0, 1))
    all_rows = rows[:, :1]
    ideal = (all_rows + (blocks - 1) * rows) / blocks
    ratios = [(times / all_rows).median(0).values.tolist() for times in (arms, ideal)]
    gaps = [(gap.median(0).values * 1e6).tolist() for gap in (arms - ideal, all_rows - ideal)]
    return [Line(width, blocks, *row) for row in zip(COMPUTED, *ratios, *gaps, strict=True)]


def costs(lines: list[Line]) -> list[Cost]:
    """One per width and number of rows computed."""
    widths = sorted({line.width for line in lines})
    return [cost for width in widths for cost in _costs([line for line in lines if line.width == width])]


def _costs(lines: list[Line]) -> list[Cost]:
    few, many = (pick(line.blocks for line in lines) for pick in (min, max))
    short, long = ([line for line in lines if line.blocks == blocks] for blocks in (few, many))
    by_rows: list[Cost] = []
    for a, b in zip(short, long, strict=True):
        per_block, saved = ((y - x) / (many - few) for x, y in ((a.overhead, b.overhead), (a.saved, b.saved)))
        gathering = per_block - by_rows[0].per_block if 0 < a.computed < BATCH else None
        by_rows.append(Cost(a.width, a.computed, a.overhead - few * per_block, per_block, gathering, saved))
    return by_rows


def ratio_table(lines: list[Line]) -> Table:
    drawn = _table("Against the plain model", "width", "blocks", "rows computed", "ratio", "ideal", "overhead, us/step")
    for line in lines:
        numbers = (f"{line.ratio:.2f}", f"{line.ideal:.2f}", f"{line.overhead:.0f}")
        size = (str(line.width), str(line.blocks), f"{line.computed} of {BATCH}")
        drawn.add_row(*size, *numbers, end_section=line.computed == COMPUTED[-1])
    return drawn


def cost_table(by_rows: list[Cost]) -> Table:
    columns = ("width", "rows computed", "per step", "per block", "of it gather and scatter", "rows saved, per block")
    drawn = _table("Overhead in us", *columns)
    for cost in by_rows:
        gathering = "-" if cost.gathering is None else f"{cost.gathering:.0f}"
        numbers = (f"{cost.per_step:.0f}", f"{cost.per_block:.0f}", gathering, f"{cost.saved:.0f}")
        row = (str(cost.width), f"{cost.computed} of {BATCH}", *numbers)
        drawn.add_row(*row, end_section=cost.computed == COMPUTED[-1])
    return drawn


def _table(title: str, *columns: str) -> Table:
    drawn = Table(title=f"{title}: {BATCH} rows of {TOKENS} tokens")
    for column in columns:
        drawn.add_column(column, justify="right")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description="What do the hooks cost?")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and turns, under 20 seconds")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    grid, repeats = (QUICK, 25) if args.quick else (GRID, 40)
    sizes = track(grid, "measuring", console=Console(stderr=True))
    lines = [line for width, blocks in sizes for line in measure(width, blocks, repeats)]
    by_rows = costs(lines)
    for drawn in (ratio_table(lines), cost_table(by_rows)):
        Console().print(drawn)
    if args.json:
        facts = {"lines": [asdict(line) for line in lines], "costs": [asdict(cost) for cost in by_rows]}
        write_text(args.json, json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
