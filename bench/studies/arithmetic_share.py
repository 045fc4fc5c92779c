"""Which share of a cached step is dicache's own arithmetic? `python -m dicache.bench.studies.arithmetic_share [--json
FILE]`

The stacks of `dicache.bench.studies.hook_cost`, on 8 rows, of which n compute at every step and the others are filled
in. Timed is what touches whole tensors: the guesses, filling them in, the noise that outputs stand for, adding up what
guidance mixes, and the errors read off it. DICACHE_EXTENSION=eager gives the same with the operations of plain torch.
Medians over steps, CPU time of one thread; `step` is the whole step, the model included.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dicache import extension
from dicache.bench.studies.hook_cost import BATCH, TOKENS, WARM_UP, FirstRows, Stack, cached
from dicache.config import Config
from dicache.files.atomic import write_text
from dicache.runtime import evaluation_site
from dicache.runtime.evaluation_site import EvaluationSite
from dicache.runtime.guidance import Guided

GRID = ((1024, TOKENS), (3072, TOKENS), (256, 1024))
"""Width and tokens."""
COMPUTED, BLOCKS, REPEATS = (4, 0), 28, 40


@dataclass(frozen=True)
class Share:
    width: int
    tokens: int
    computed: int
    """Rows of 8."""
    step: float
    arithmetic: float
    """Both in microseconds."""


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Seconds in dicache's own arithmetic so far, in a list of one."""
    total, depth = [0.0], [0]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            depth[0] += 1
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                depth[0] -= 1
                total[0] += 0.0 if depth[0] else time.process_time() - started

        return inner

    functions: list[tuple[Any, str]] = [
        (evaluation_site, "noise_of"),
        (EvaluationSite, "_filled"),
        (Guided, "add"),
        (Guided, "measure"),
    ]
    functions += [(type(a), "guess") for a in Config(FirstRows(1)).approximators]
    with ExitStack() as stack:
        for owner, name in dict.fromkeys(functions):
            stack.enter_context(patch.object(owner, name, watched(getattr(owner, name))))
        yield total


@torch.no_grad()
def measure(width: int, tokens: int, computed: int) -> Share:
    torch.manual_seed(0)
    latent, rows = torch.randn(BATCH, tokens, width), []
    turn = cached(Stack(width, BLOCKS), latent, computed)
    with stopwatch() as spent:
        for step in range(WARM_UP + REPEATS):
            before, started = spent[0], time.process_time()
            turn(1 - step / (WARM_UP + REPEATS))
            rows.append((time.process_time() - started, spent[0] - before))
    whole_step, arithmetic = (torch.tensor(rows[WARM_UP:]).median(0).values * 1e6).tolist()
    return Share(width, tokens, computed, whole_step, arithmetic)


def main() -> None:
    parser = argparse.ArgumentParser(description="Which share of a cached step is dicache's own arithmetic?")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(*size, computed) for size in GRID for computed in COMPUTED]
    shares = [measure(*case) for case in track(cases, "measuring", console=Console(stderr=True))]
    drawn = Table(title=f"{BLOCKS} blocks, {BATCH} rows; {extension.describe()}")
    for column in ("width", "tokens", "rows computed", "step, us", "arithmetic, us", "share"):
        drawn.add_column(column, justify="right")
    for s in shares:
        numbers = (f"{s.step:.0f}", f"{s.arithmetic:.0f}", f"{s.arithmetic / s.step:.0%}")
        drawn.add_row(str(s.width), str(s.tokens), f"{s.computed} of {BATCH}", *numbers)
    Console().print(drawn)
    if args.json:
        write_text(args.json, json.dumps([asdict(s) for s in shares], indent=1))


if __name__ == "__main__":
    main()
