"""Is it worth running some tokens where a step is skipped? `python -m dicache.bench.studies.tokens [--model emoji]`

Calibration conditions on a model of the zoo, under its first solver and number of steps: scenes (64 tokens), emoji
(144) and clips (1,024). Every arm computes at fixed steps; at the others it runs tokens, as many for each choice, so
choices are compared at equal work, and with computing more steps whole.
"""

import argparse
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

import dicache
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.bench.zoo.members import members
from dicache.bench.zoo.model import Setting, draw
from dicache.controllers.interval import Interval
from dicache.estimators.closed_loop import ClosedLoop
from dicache.sites import Evaluation, Sites, Tokens
from dicache.token_choice import Clusters, LastError, Random, Refresh

FIRST = 3
"""Steps that compute before the first is skipped."""


def config(interval: int, sites: Sites, *, line: bool = True) -> dicache.Config:
    approximators = sites.approximators if line else (Extrapolate(), Reuse())
    return dicache.Config(Interval(interval, FIRST), ClosedLoop(), approximators, sites=sites)


def arms() -> Iterator[tuple[str, dicache.Config]]:
    for interval in (2, 3, 4, 5, 6, 8):
        yield f"every {interval}, none", config(interval, Evaluation())
    for choice in (LastError(0.25), Random(0.25)):
        yield f"every 4, {choice}", config(4, Tokens(choice, line=False))
        yield f"every 4, {choice}, text runs", config(4, Tokens(choice, text=True, line=False))
    for interval, share in ((4, 0.125), (4, 0.25), (4, 0.5), (6, 0.25)):
        for choice in (LastError(share), Random(share)):
            yield f"every {interval}, {choice}, keys on a line", config(interval, Tokens(choice))
    yield "every 4, LastError(share=0.25), text runs, keys on a line", config(4, Tokens(LastError(0.25), text=True))
    yield "every 4, LastError(share=0.25), lasting", config(4, Tokens(LastError(0.25), line=False, lasting=True))
    for other in (Refresh(0.25), Clusters(16), Clusters(16, weight=0.5, updates=True)):
        yield f"every 4, {other}", config(4, Tokens(other, line=False))
    for interval, share in ((4, 0.5), (6, 0.25), (6, 0.5)):
        yield f"every {interval}, LastError({share})", config(interval, Tokens(LastError(share), line=False))
        yield f"every {interval}, Random({share})", config(interval, Tokens(Random(share), line=False))
    for sites in (Evaluation(), Tokens(LastError(0.25), line=False), Tokens(Random(0.25), line=False)):
        yield f"every 4, {sites}, line in the velocity", config(4, sites, line=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Is it worth running some tokens where a step is skipped?")
    parser.add_argument("--model", default="scenes", choices=("scenes", "emoji", "clips"))
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--seed", type=int, default=29)
    parser.add_argument("--arms", nargs="*", default=[""], help="only those whose name has one of these in it")
    args = parser.parse_args()
    (model,) = (each for each in members() if each.name == args.model)
    setting = Setting(model, model.solvers[0], model.grids[0])
    captions = model.conditions("calibration", args.captions, args.seed)
    target = model.fresh(setting.solver)
    plain, console = draw(target, captions, setting).latents.flatten(1), Console(width=160)
    table = Table("arm", "work", "mean error", "median error", title=setting.name)
    for name, arm in (named for named in arms() if any(part in named[0] for part in args.arms)):
        with dicache.enable(target, config=arm) as cache:
            errors = (draw(target, captions, setting).latents.flatten(1) - plain).norm(dim=1) / plain.norm(dim=1)
            trace = cache.trace
        assert trace is not None
        work = float(trace.executed.sum() / trace.uncached.sum())
        row = (name, f"{work:.3f}", f"{errors.mean():.4f}", f"{errors.median():.4f}")
        table.add_row(*row)
        console.print(*row, sep=" | ", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
