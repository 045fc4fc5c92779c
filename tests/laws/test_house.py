"""The house itself: what may import what, how much a room holds, what importing loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from dicache.bench.studies import house

ROOT = Path(__file__).resolve().parents[2]
EVERY = house.sources(ROOT)
TESTS = house.sources(ROOT, ["tests"])
LAYERS = [
    ("errors", "_version", "_checkout", "_moved"),
    ("_lazy",),
    ("extension",),
    ("types",),
    ("tensors", "files", "ranks"),
    ("planning", "solvers"),
    ("models", "probes"),
    ("approximators", "estimators", "token_choice"),
    ("sites", "controllers"),
    ("approximators/fitted", "presets/parts", "promise"),
    ("config",),
    ("runtime", "schedules", "presets/parts"),
    ("tokens", "parallel"),
    ("hosts", "reporting", "presets"),
    ("memory", "slots"),
    ("cache", "reference"),
    ("defaults", "reference/training"),
    ("enable_options",),
    ("api", "ray"),
    ("fanout",),
    ("measuring",),
    ("regressions",),
    ("finders", "importers", "many", "int8"),
    ("tuning",),
    ("serve", "web", "integrations"),
    ("cli",),
    ("__init__",),
    ("__main__",),
    ("bench/models",),
    ("bench/models/training",),
    ("bench/arms",),
    ("bench/harness",),
    ("bench/showing",),
    ("bench/zoo",),
    ("bench/studies",),
    ("bench/gpu",),
    ("bench",),
]
"""From the bottom up. Rooms of one layer do not import each other."""
ONE_CONTRACT = {
    *("dicache/presets", "dicache/finders", "dicache/approximators", "dicache/controllers", "estimators"),
    "bench/studies",
}
"""Folders whose files all implement one contract: there are as many as there are methods."""


def room(name: str) -> str:
    """Of a module: its folder, or its own name where it lies in the root."""
    folder = EVERY[name].folder.removeprefix("dicache/")
    return EVERY[name].path.stem if folder == "dicache" else folder


def test_imports_go_down_only():
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    assert {room(name) for name in EVERY} <= set(layer)
    wrong = [
        f"{edge.importer} imports {edge.imported}"
        for edge in house.imports(EVERY)
        if (above := room(edge.importer)) != (below := room(edge.imported)) and layer[above] <= layer[below]
    ]
    assert not wrong, wrong


def test_no_import_closes_a_circle():
    assert not house.circles((edge.importer, edge.imported) for edge in house.imports(EVERY))


def test_the_root_holds_the_face_only():
    assert sum(source.folder == "dicache" for source in EVERY.values()) <= 14


def test_a_folder_is_read_in_one_sitting():
    files = [source.folder for source in [*EVERY.values(), *TESTS.values()]]
    crowded = {folder for folder in files if files.count(folder) > 15}
    assert crowded <= ONE_CONTRACT


@pytest.mark.parametrize(("modules", "most"), [(EVERY, 300), (TESTS, 450)], ids=["package and bench", "tests"])
def test_no_file_is_long(modules, most):
    assert not {str(source.path.relative_to(ROOT)) for source in modules.values() if source.lines > most}


def test_every_file_opens_with_its_idea():
    silent = [name for name, source in (EVERY | TESTS).items() if not ast.get_docstring(source.tree)]
    assert not silent


def test_attributes_are_hardly_ever_looked_for_by_name():
    package = [source for source in EVERY.values() if not source.folder.startswith("bench")]
    assert 1000 * sum(map(house.sniffs, package)) <= sum(source.lines for source in package)


def test_the_runtime_says_why():
    runtime = [source for source in EVERY.values() if source.folder == "dicache/runtime"]
    assert sum(map(house.comments, runtime)) >= 0.02 * sum(source.lines for source in runtime)


def test_importing_dicache_loads_nothing_heavy():
    code = "import sys, dicache; print([m for m in ('torch', 'diffusers', 'matplotlib', 'cupy') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_a_circle_and_the_levels_are_counted():
    ring, chain = [("a", "b"), ("b", "c"), ("c", "a")], [("c", "d"), ("d", "e"), ("a", "e")]
    assert house.circles(ring + chain) == [["a", "b", "c"]] and not house.circles(chain)
    assert (house.levels(chain), house.levels(ring + chain)) == (3, 3)
