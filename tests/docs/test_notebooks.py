"""The notebooks are notebooks, carry no outputs, and run from their first cell to their last."""

import ast
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def shown(cell: str, place: str, names: dict) -> str:
    """Run a cell; what its last expression would show."""
    tree = ast.parse(cell, place)
    last = tree.body.pop().value if isinstance(tree.body[-1], ast.Expr) else ast.Constant("", lineno=1, col_offset=0)
    exec(compile(tree, place, "exec"), names)
    return repr(eval(compile(ast.Expression(last), place, "eval"), names))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path, as_a_reader):
    names: dict = {"__name__": "notebook"}
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell["cell_type"] == "code"]
    for i, cell in enumerate(cells):
        shown(cell["source"], f"{path.name}, cell {i}", names)
    assert len(cells) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_carries_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_there_are_three():
    assert {path.stem for path in NOTEBOOKS} == {"first-steps", "choosing-a-budget", "finding-a-schedule"}
