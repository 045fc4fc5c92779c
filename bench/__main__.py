"""`python -m dicache.bench pareto | show | budgets | defects | micro`."""

import argparse
from pathlib import Path

from rich.console import Console

from dicache.bench import pareto, show


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dicache.bench", description="Measurements on the reference model.")
    commands = parser.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser("pareto", help="every arm over its knob, at one setting")
    pareto.add_arguments(sweep)
    shown = commands.add_parser("show", help="tables, plots and a page from the result files")
    shown.add_argument("--results", type=Path, default=pareto.RESULTS)
    shown.add_argument("--readme", type=Path, help="put the table of --setting into this README")
    shown.add_argument(
        "--setting", default="euler-28-guidance3.5-shift1-batch8", help="result file that the README shows"
    )
    args = parser.parse_args()
    if args.command == "pareto":
        results = {(path := pareto.run(args)): show.load(path.parent)[path]}
    else:
        results = show.load(args.results)
    for path, facts in results.items():
        show.plot(facts, path.with_suffix(".png"))
        tables = (show.verdict_table(facts), show.speedup_table(facts), show.point_table(facts))
        text = "\n\n".join(
            [f"## {show.title(facts)}", show.scale(facts), *map(show.markdown, tables), show.losses(facts)]
        )
        path.with_suffix(".md").write_text(text + "\n")
        Console(width=240).print(text, highlight=False)
    if args.command == "show":
        show.page(results, args.results / "index.html")
        if args.readme:
            show.into_readme(args.readme, results[args.results / f"{args.setting}.json"])


if __name__ == "__main__":
    main()
