"""The bench, study by study: `python -m dicache.bench --help`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from dicache.bench.gpu import command as gpu
from dicache.bench.harness.store import RESULTS, load
from dicache.bench.showing import pages, show
from dicache.bench.showing.tables import markdown, summary_table
from dicache.bench.studies import ablation, coverage, kernels, overhead, pareto, peer_warmup, schedules
from dicache.bench.zoo import command as zoo
from dicache.files.atomic import write_text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dicache.bench", description="Measurements.")
    commands = parser.add_subparsers(dest="command", required=True)
    pareto.add_arguments(commands.add_parser("pareto", help="every arm over its knob, at one setting"))
    zoo.add_arguments(commands.add_parser("zoo", help="all arms on all models"))
    peer_warmup.add_arguments(commands.add_parser("warmup", help="the best warm-up of every peer that has one"))
    schedules.add_arguments(commands.add_parser("schedules", help="what every finder finds, at equal executed work"))
    coverage.add_arguments(commands.add_parser("coverage", help="is the promise kept, and what does it cost?"))
    ablation.add_arguments(commands.add_parser("ablation", help="what each ingredient of the default is worth"))
    kernels.add_arguments(commands.add_parser("kernels", help="the fused operations against copy, eager and compiled"))
    overhead.add_arguments(commands.add_parser("overhead", help="what dicache's own time leaves of what it saves"))
    gpu.add_arguments(commands.add_parser("gpu", help="all that only a GPU can show, in minutes"))
    shown = commands.add_parser("show", help="tables, plots and a page from the result files")
    shown.add_argument("--results", type=Path, default=RESULTS)
    shown.add_argument("--readme", type=Path, help="put the six rows of --setting into this README")
    shown.add_argument("--docs", type=Path, help="put the tables into the pages of this folder")
    shown.add_argument("--setting", default="euler-28-guidance3.5-shift1-batch8", help="result file shown in full")
    args = parser.parse_args()
    if args.command == "warmup":
        peer_warmup.run(args)
    elif args.command == "schedules":
        schedules.run(args)
    elif args.command == "coverage":
        coverage.run(args)
    elif args.command == "ablation":
        ablation.run(args)
    elif args.command == "kernels":
        kernels.run(args)
    elif args.command == "overhead":
        overhead.run(args)
    elif args.command == "zoo":
        zoo.run(args)
    elif args.command == "gpu":
        sys.exit(gpu.run(args))
    elif args.command == "show":
        _show(args)
    else:
        path = pareto.run(args)
        if not args.check:
            _one(path)


def _one(path: Path) -> None:
    """Plot and print one setting."""
    facts = load(path)
    show.plot(facts, path.with_suffix(".png"))
    text = show.text(facts)
    write_text(path.with_suffix(".md"), text)
    Console(width=240).print(text, highlight=False)


def _show(args: argparse.Namespace) -> None:
    results = show.results(args.results)
    Console(width=240).print(markdown(summary_table(list(results.values()))), highlight=False)
    for path in results:
        _one(path)
    show.page(results, args.results / "index.html")
    named = {path.stem: facts for path, facts in results.items()}
    if args.readme:
        pages.fill(args.readme, "bench", markdown(pages.readme_table(named[args.setting])))
        pages.fill(args.readme, "losses", pages.readme_losses(named[args.setting]))
    if args.docs:
        pages.fill(args.docs / "choosing.md", "budgets", markdown(pages.budget_table(named[args.setting])))
        for name, body in pages.sections(named, args.setting).items():
            pages.fill(args.docs / "benchmarks.md", name, body)


if __name__ == "__main__":
    main()
