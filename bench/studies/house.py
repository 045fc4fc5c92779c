"""How is the house built? `python -m dicache.bench.studies.house [checkout]`

Counts, over the source files alone, what makes a code base easy or hard to find one's way in: modules in the root, how
high imports stand on each other, circles, imports from folder to folder, lengths of files and functions, comments,
attributes looked for by name. Nothing is imported, so any commit that is checked out can be counted. How far a
step walks at run time is `dicache.bench.studies.step_walk`'s.
"""

import argparse
import ast
import io
import statistics
import tokenize
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

FOLDERS = {name: f"dicache.{name}" for name in ("probes", "estimators", "extension", "bench")} | {"dicache": "dicache"}
"""Folders of a checkout, and the packages that they are installed as."""
PACKAGE = ("dicache", "probes", "estimators", "extension")
SNIFFING = ("hasattr", "getattr")


class Source(NamedTuple):
    path: Path
    folder: str
    """Below the checkout: "dicache/runtime"; modules of the root have "dicache"."""
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())


class Import(NamedTuple):
    importer: str
    imported: str
    lazy: bool
    """Within a function, or for type checkers alone."""


def sources(checkout: Path, folders: Collection[str] = tuple(FOLDERS)) -> dict[str, Source]:
    """Every Python file, by its module's name."""
    return {
        _module(folder, path.relative_to(checkout / folder)): _source(checkout, path)
        for folder in folders
        for path in sorted((checkout / folder).rglob("*.py"))
    }


def _module(folder: str, path: Path) -> str:
    parts = [part for part in path.with_suffix("").parts if part != "__init__"]
    return ".".join([FOLDERS.get(folder, folder), *parts])


def _source(checkout: Path, path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    return Source(path, path.parent.relative_to(checkout).as_posix(), text, ast.parse(text))


def imports(modules: Mapping[str, Source]) -> list[Import]:
    """From module to module among these, each pair once."""
    lazily: dict[tuple[str, str], bool] = {}
    for importer, source in modules.items():
        for name, lazy in _imported(source.tree, modules):
            if name != importer:
                lazily[importer, name] = lazily.get((importer, name), True) and lazy
    return [Import(importer, name, lazy) for (importer, name), lazy in lazily.items()]


def _imported(node: ast.AST, modules: Collection[str], lazy: bool = False) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        for name in _names(child):
            owner = name if name in modules else name.rpartition(".")[0]
            if owner in modules:
                yield owner, lazy
        yield from _imported(child, modules, lazy or _is_lazy(child))


def _is_lazy(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []


def circles(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Strongly connected components of more than one node, by Tarjan; also what `components` leaves."""
    return [sorted(group) for group in components(edges) if len(group) > 1]


def components(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Strongly connected components, those that are imported first."""
    below: dict[str, list[str]] = {}
    for importer, imported in edges:
        below.setdefault(importer, []).append(imported)
        below.setdefault(imported, [])
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in below[node]:
            if other not in index:
                visit(other)
            if other in stack:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == index[node]:
            groups.append(stack[stack.index(node) :])
            del stack[stack.index(node) :]

    for node in below:
        if node not in index:
            visit(node)
    return groups


def levels(edges: Iterable[tuple[str, str]]) -> int:
    """How many modules the longest chain of imports has; a circle counts as one."""
    edges = list(edges)
    groups = components(edges)
    of = {node: number for number, group in enumerate(groups) for node in group}
    height = [1] * len(groups)
    for number, group in enumerate(groups):  # what is imported comes first
        lower = {of[b] for a, b in edges if a in group} - {number}
        height[number] = 1 + max((height[other] for other in lower), default=0)
    return max(height, default=0)


def functions(source: Source) -> Iterator[int]:
    """Lines of every function from its `def` on."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def comments(source: Source) -> int:
    """Comments that say something to a reader: not `# noqa` nor `# type:`."""
    tokens = tokenize.generate_tokens(io.StringIO(source.text).readline)
    texts = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return sum(not text.startswith(("# noqa", "# type:")) for text in texts)


def sniffs(source: Source) -> int:
    calls = [node for node in ast.walk(source.tree) if isinstance(node, ast.Call)]
    return sum(isinstance(call.func, ast.Name) and call.func.id in SNIFFING for call in calls)


def median_and_tail(values: Iterable[int]) -> str:
    """The median and the 90th percentile."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):g} / {ordered[round(0.9 * (len(ordered) - 1))]}"


def share(count: float, total: float) -> float:
    return count / total if total else 0.0


def figures(checkout: Path) -> dict[str, str]:
    every, tests = sources(checkout), sources(checkout, ["tests"])
    package = {name: source for name, source in every.items() if source.folder.split("/")[0] in PACKAGE}
    edges = [(edge.importer, edge.imported) for edge in imports(package)]
    eager = [(edge.importer, edge.imported) for edge in imports(package) if not edge.lazy]
    lines = sum(source.lines for source in package.values())
    runtime = [source for source in package.values() if source.folder == "dicache/runtime"]
    crossing = [(a, b) for a, b in edges if package[a].folder != package[b].folder]
    return {
        "modules in the root": str(sum(source.folder == "dicache" for source in package.values())),
        "folders": str(len({source.folder for source in package.values()})),
        "import levels": f"{levels(edges)} ({levels(eager)} when imported)",
        "circles": f"{len(circles(edges))} ({len(circles(eager))} when imported)",
        "imports between folders": f"{len(crossing)} of {len(edges)}",
        "lines of the package, bench, tests": f"{lines}, {_lines(every) - lines}, {_lines(tests)}",
        "tests' lines per line of the package": f"{share(_lines(tests), lines):.2f}",
        "file length, median / 90 %": median_and_tail(source.lines for source in package.values()),
        "longest file, package / bench / tests": " / ".join(
            str(max(source.lines for source in group.values())) for group in (package, _bench(every), tests)
        ),
        "function length, median / 90 %": median_and_tail(n for source in package.values() for n in functions(source)),
        "comments per line, package": f"{share(sum(map(comments, package.values())), lines):.2%}",
        "comments per line, runtime": f"{share(sum(map(comments, runtime)), sum(s.lines for s in runtime)):.2%}",
        "hasattr and getattr per 1000 lines": f"{1000 * share(sum(map(sniffs, package.values())), lines):.2f}",
    }


def _lines(modules: Mapping[str, Source]) -> int:
    return sum(source.lines for source in modules.values())


def _bench(modules: Mapping[str, Source]) -> dict[str, Source]:
    return {name: source for name, source in modules.items() if source.folder.split("/")[0] == "bench"}


def main() -> None:
    parser = argparse.ArgumentParser(description="How is the house built?")
    parser.add_argument("checkout", type=Path, nargs="?", default=Path(__file__).resolve().parents[2])
    table = Table(show_header=False)
    for name, value in figures(parser.parse_args().checkout).items():
        table.add_row(name, value)
    Console().print(table)


if __name__ == "__main__":
    main()
