"""Words that said nothing before their docstring was read, or several things at once, stay out of names."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicache.bench.studies import house

ROOT = Path(__file__).resolve().parents[2]
EVERY = house.sources(ROOT)
MODULES = frozenset(
    """
    adapters along balance beside caller closing conformal course effects forgotten form forms gates grid ground hooked
    inner judge kept learned ledger measured optimal parts place rows shelf streams timegrid turning whole
    """.split()
)
"""Of modules. What a wrapper holds may be called `inner`, the entries of a batch `rows`, what a model carries
`streams`."""
CLASSES = frozenset("Aim Form Keep Level Now Opening Part Past Place Which".split())
NAMES = frozenset(
    """
    along balance beside chosen closing conditioned conformal course filling forgotten form forms found given ground
    held judge keep keeping keeps kept known learned ledger measured now opening others past place places quoted shelf
    timegrid told turning weaker which whole
    """.split()
)
"""Of functions, attributes, parameters and local names, whatever underscores they begin with."""
FIXED = {"dicache.reference.reader": {"whole"}}
"""Names that stand in files: keys of the weights that ship."""


def names(source: house.Source) -> Iterator[str]:
    """All that the file gives a name to, but for classes."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def classes(source: house.Source) -> list[str]:
    return [node.name for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]


def test_modules_are_called_what_they_are():
    assert not {source.path.stem for source in EVERY.values()} & MODULES


def test_classes_are_called_what_they_are():
    assert not {name: taken for name, source in EVERY.items() if (taken := CLASSES & {*classes(source)})}


def test_names_are_called_what_they_are():
    taken = {
        name: (NAMES & {n.strip("_").lower() for n in names(source)}) - FIXED.get(name, set())
        for name, source in EVERY.items()
    }
    assert not {name: words for name, words in taken.items() if words}


def test_a_public_class_has_its_name_for_itself():
    owners: dict[str, list[str]] = {}
    for module, source in EVERY.items():
        if source.folder.split("/")[0] != "bench":
            for name in classes(source):
                owners.setdefault(name, []).append(module)
    twice = {name: modules for name, modules in owners.items() if len(modules) > 1 and not name.startswith("_")}
    assert not twice, twice


@pytest.mark.parametrize(
    ("text", "name"),
    [("found = 1", "found"), ("def f(held): ...", "held"), ("self.kept = 0", "kept"), ("for now in x: ...", "now")],
)
def test_a_name_is_seen_wherever_it_is_given(text, name):
    assert name in [*names(house.Source(Path("x.py"), "x", text, ast.parse(text)))]
