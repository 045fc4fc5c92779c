"""The presets' face: what is listed, a row for each, and the parts that stand beside them."""

import ast
import inspect
import re
from pathlib import Path

from dicache import presets
from dicache.config import Config

FOLDER = Path(presets.__file__).parent


def test_presets_are_listed_and_nothing_else():
    assert dir(presets) == sorted(presets.__all__)
    for name in dir(presets):
        preset = getattr(presets, name)
        assert inspect.isfunction(preset) and inspect.signature(preset).return_annotation is Config


def test_every_preset_has_a_row_of_its_own_and_its_help_ends_with_it():
    rows = {method.preset: method for method in presets.methods()}
    assert sorted(rows) == dir(presets) and len(rows) == len(presets.methods())
    for name, row in rows.items():
        assert re.fullmatch(r"\d{4}\.\d{5}|[A-Z][A-Za-z]+|cache-dit", row.paper)
        assert row.title and row.differs and row.default and not (row.differs + row.default).endswith(".")
        assert row.call.startswith(f"{name}(") and "typing" not in row.call
        assert getattr(presets, name).__doc__.endswith(f"Differs: {row.differs}. Defaults: {row.default}.")
    assert rows["fora"].call == "fora(interval=3, sites=Evaluation())"
    assert rows["fora"].link == "[2407.01425](https://arxiv.org/abs/2407.01425)"


def test_a_part_that_stands_beside_the_presets_is_used_by_one_of_them():
    uses: dict[str, set[str]] = {}
    for file in ("evaluations", "blocks", "fitted"):
        tree = ast.parse((FOLDER / f"{file}.py").read_text())
        homes = {
            alias.name: node.module.removeprefix("dicache.presets.parts.")
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dicache.presets.parts.")
            for alias in node.names
        }
        for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            for name in (node.id for node in ast.walk(function) if isinstance(node, ast.Name)):
                if name in homes:
                    uses.setdefault(homes[name], set()).add(function.name)
    assert set(uses) == {path.stem for path in (FOLDER / "parts").glob("*.py")} - {"__init__"}
    assert all(len(users) == 1 for users in uses.values()), uses
