"""What is counted of a code base is what is there: on sources written by hand."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicache.bench.studies import house

NODES = st.integers(0, 6).map(str)
EDGES = st.lists(st.tuples(NODES, NODES).filter(lambda edge: edge[0] != edge[1]), max_size=14)


def source(text: str) -> house.Source:
    return house.Source(Path("a.py"), "dicache", text, ast.parse(text))


@pytest.fixture
def checkout(tmp_path):
    """A package of three modules and a probe; b and c import each other, b only when it is called."""
    files = {
        "dicache/__init__.py": '"""Face."""\nfrom typing import TYPE_CHECKING\n'
        "if TYPE_CHECKING:\n    from dicache.b import thing\n",
        "dicache/b.py": "def thing():\n    from dicache.inner import c\n    return c\n",
        "dicache/inner/__init__.py": "",
        "dicache/inner/c.py": "import json\nfrom dicache.b import thing\nfrom dicache import probes\n",
        "probes/__init__.py": "# Why not.\nx = 1  # noqa\n",
        "bench/__init__.py": "",
        "tests/test_b.py": "a = 1\nb = 2\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_modules_are_called_what_they_are_imported_as(checkout):
    names = house.sources(checkout)
    assert set(names) == {"dicache", "dicache.b", "dicache.inner", "dicache.inner.c", "dicache.probes", "dicache.bench"}
    assert (names["dicache.inner.c"].folder, names["dicache.b"].folder) == ("dicache/inner", "dicache")
    assert names["dicache.probes"].folder == "probes" and set(house.sources(checkout, ["tests"])) == {"tests.test_b"}


def test_imports_are_of_modules_here_and_lazy_where_nothing_is_imported_yet(checkout):
    found = {(edge.importer, edge.imported): edge.lazy for edge in house.imports(house.sources(checkout))}
    assert found == {
        ("dicache", "dicache.b"): True,
        ("dicache.b", "dicache.inner.c"): True,
        ("dicache.inner.c", "dicache.b"): False,
        ("dicache.inner.c", "dicache.probes"): False,
    }


def test_an_import_that_is_lazy_in_one_place_and_not_in_another_is_not_lazy():
    modules = {"dicache.b": source("import dicache.c\ndef f():\n    import dicache.c\n"), "dicache.c": source("")}
    assert [edge.lazy for edge in house.imports(modules)] == [False]


def test_a_circle_is_seen_though_it_is_closed_by_a_function(checkout):
    edges = [(edge.importer, edge.imported) for edge in house.imports(house.sources(checkout))]
    assert house.circles(edges) == [["dicache.b", "dicache.inner.c"]]


@given(edges=EDGES)
def test_who_reaches_each_other_is_one_circle_and_levels_are_chains_without_them(edges):
    reach = {(a, b) for a, b in edges}
    for middle in map(str, range(7)):
        reach |= {(a, d) for a, b in reach if b == middle for c, d in reach if c == middle}
    for group in house.circles(edges):
        assert all((a, b) in reach for a in group for b in group)
    of = {node: tuple(group) for group in house.circles(edges) for node in group}
    assert all(of.get(a) == of.get(b) is not None for a, b in reach if a != b and (b, a) in reach)
    apart = {(of.get(a, a), of.get(b, b)) for a, b in edges}
    assert house.levels(edges) == _longest({(a, b) for a, b in apart if a != b}, {n for edge in apart for n in edge})


def _longest(edges, nodes):
    def height(node):
        return 1 + max((height(b) for a, b in edges if a == node), default=0)

    return max(map(height, nodes), default=0)


def test_functions_are_as_long_as_from_def_to_their_last_line():
    text = "@wraps\ndef f(\n    x,\n):\n    return x\n\n\nclass A:\n    async def g(self): ...\n"
    assert sorted(house.functions(source(text))) == [1, 4]


def test_comments_are_those_that_tell_a_reader_something():
    text = '# Why.\nx = "# no comment"  # noqa: E501\ny = 1  # type: ignore[x]\nz = 2  # two\n"""# nor this"""\n'
    assert house.comments(source(text)) == 2


def test_looking_for_attributes_is_counted_where_it_is_done():
    text = "getattr(a, 'b')\nhasattr(a, 'b')\na.getattr(1)\nsetattr(a, 'b', 1)\ndef __getattr__(x): ...\nf = getattr\n"
    assert house.sniffs(source(text)) == 2


def test_medians_and_tails_are_of_the_sorted_values():
    assert house.median_and_tail([5, 1, 9, 3, 7, 2, 8, 4, 6, 10, 11]) == "6 / 10"


def test_all_figures_of_a_checkout_are_printed(checkout, run_main, monkeypatch):
    code, output, _ = run_main(house.main, checkout)
    assert code == 0 and all(name in output for name in house.figures(checkout))
    figures = house.figures(checkout)
    assert figures["modules in the root"] == "2" and figures["circles"].startswith("1 ")
    assert (
        figures["imports between folders"] == "3 of 4" and figures["lines of the package, bench, tests"] == "12, 0, 2"
    )
