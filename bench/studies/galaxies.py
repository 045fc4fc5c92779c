"""Are budgets kept on networks that nobody tuned for? `python -m dicache.bench.studies.galaxies [--show]`

Two trained networks of galaxies (`bench/models/galaxies.py`) under five solvers, without a profile: every budget of a
sweep on all samples. A budget holds for the samples whose true error stays within it, and it should cost little more
than the least work at which any budget of the sweep would have held for 85 % of them. Results go to
`results/galaxies.json`, net by net, and what is there already is not drawn again.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import dicache
from dicache.bench.harness.store import load
from dicache.bench.models.galaxies import NETS, SIZE, SOLVERS, Galaxies, net
from dicache.files.atomic import write_text

RESULTS = Path(__file__).resolve().parents[1] / "results" / "galaxies.json"
BUDGETS = (0.02, 0.05, 0.1)
SWEEP = (0.01, 0.014, *BUDGETS, 0.035, 0.07, 0.14, 0.2, 0.3)
ENOUGH = 0.85


def draws(galaxies: Galaxies, noise: torch.Tensor, budgets: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Error and work of every sample under each budget."""
    plain = galaxies.draw(galaxies.target(), noise)
    for budget in budgets:
        target = galaxies.target()
        with dicache.enable(target, error_budget=budget) as cache:
            drawn = galaxies.draw(target, noise)
            report = cache.report().to_dict()
        errors = (drawn - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)
        samples = report["samples"]
        yield {
            "budget": budget,
            "work": 1 / report["compute_speedup"],
            "errors": errors.tolist(),
            "estimates": [sample["estimated_error"] for sample in samples],
        }


def rows(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[float, float, float, float]]:
    """Of each of BUDGETS: the budget, the share of samples that it holds for, its work, and that over the least."""
    for line in sorted(lines, key=lambda line: line["budget"]):
        if line["budget"] not in BUDGETS:
            continue
        bound = line["budget"]
        enough = [other["work"] for other in lines if share_within(other["errors"], bound) >= ENOUGH]
        yield bound, share_within(line["errors"], bound), line["work"], line["work"] / min(enough, default=1.0)


def share_within(errors: Sequence[float], bound: float) -> float:
    return sum(error <= bound for error in errors) / len(errors)


def table(results: dict[str, Any]) -> Table:
    shown = Table("net, solver", "budget", "holds for", "work", "over the least", title="Galaxies, without a profile")
    for name, lines in results.items():
        for budget, share, work, over in rows(lines):
            shown.add_row(name, f"{budget:g}", f"{share:.0%}", f"{work:.2f}", f"{over:.2f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Are budgets kept on networks of somebody else?")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--show", action="store_true", help="print what is there, draw nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = load(args.out) if args.out.is_file() else {}
    noise = torch.randn(args.samples, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for name in () if args.show else args.nets:
        for solver in SOLVERS:
            key = f"{name}, {solver}, {args.steps} steps"
            if key in results and len(results[key][0]["errors"]) == args.samples:
                continue
            results[key] = list(draws(Galaxies(net(name, solver), solver, args.steps), noise, SWEEP))
            write_text(args.out, json.dumps(results))
    Console().print(table(results))


if __name__ == "__main__":
    main()
