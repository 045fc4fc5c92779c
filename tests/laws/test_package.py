"""The package as a whole: a lean import, and names that are where they are said to be."""

import ast
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import dicache
from dicache._moved import MOVED, RENAMED

ROOT = Path(__file__).resolve().parents[2]
LAZY = [
    "dicache",
    *(f"dicache.{name}" for name in ("approximators", "controllers", "estimators", "finders", "importers", "models")),
    *(f"dicache.{name}" for name in ("probes", "reference", "schedules", "serve", "integrations")),
]
PUBLIC = [
    *(
        "BranchRanks",
        "Cache",
        "Config",
        "Family",
        "Fitted",
        "Generated",
        "Memory",
        "ParetoSet",
        "Profile",
        "Psnr",
        "Report",
    ),
    *("Sampler", "Schedule", "Ssim", "StepReport", "Within", "__version__", "calibrate", "disable", "enable"),
    *("finders", "fit", "generate"),
    *("load_profile", "presets", "ray", "reference", "serve", "tune"),
]


def printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_dicache_and_its_packages_loads_nothing_heavy():
    heavy = "print([m for m in ('torch', 'diffusers', 'matplotlib', 'cupy') if m in sys.modules])"
    assert printed(f"import sys, {', '.join(LAZY)}; {heavy}") == "[]"


def test_what_is_public_is_listed_and_nothing_else():
    assert dir(dicache) == PUBLIC
    assert all(not name.startswith("_") for name in dir(dicache.presets))
    assert all(callable(getattr(dicache.presets, name)) for name in dir(dicache.presets))


def declared(package: str) -> dict[str, object]:
    """What type checkers are told that there is."""
    tree = ast.parse(Path(import_module(package).__file__).read_text())
    told = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    names = [(node.module, alias.asname) for node in told for alias in node.names]
    return {
        name: import_module(f"{home}.{name}") if home == package else getattr(import_module(home), name)
        for home, name in names
    }


@pytest.mark.parametrize("package", LAZY)
def test_a_package_imports_on_first_use_what_type_checkers_are_told(package):
    module = import_module(package)
    assert dir(module) == sorted(module.__all__)
    told = declared(package)
    assert {*told, "__version__"} == {*module.__all__, "__version__"}
    assert all(getattr(module, name) is value for name, value in told.items())
    with pytest.raises(AttributeError, match="has no attribute 'nobody'"):
        _ = module.nobody


def test_a_deep_import_of_an_old_place_names_the_new_one():
    with pytest.raises(ModuleNotFoundError, match=r"dicache\.clock moved to dicache\.solvers\.clock"):
        import_module("dicache.clock")
    with pytest.raises(ModuleNotFoundError, match=r"dicache\.finders\.names moved to dicache\.finders\.by_name"):
        from dicache.finders import names  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"dicache\.corrector was taken out: "):
        import_module("dicache.corrector")
    with pytest.raises(AttributeError, match=r"dicache\.law moved to dicache\.planning\.error_law"):
        _ = dicache.law


@pytest.mark.parametrize("old", MOVED)
def test_every_new_place_is_there(old):
    assert find_spec(MOVED[old]) is not None


@pytest.mark.parametrize("old", RENAMED)
def test_every_new_name_is_there(old):
    home, _, name = RENAMED[old].rpartition(".")
    assert callable(getattr(import_module(home), name))
