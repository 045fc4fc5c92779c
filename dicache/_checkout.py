"""In a source checkout the folders `probes`, `estimators`, `extension` and `bench` beside this package are its
sub-packages.

An installed copy holds them inside (`package_dir` in setup.py) and needs none of this. In a checkout a finder serves
exactly those names from their sibling folders, so that `python -m dicache` and `python -m pytest` work at the root,
installed or not.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

_FOLDERS = ("probes", "estimators", "extension", "bench")
_ROOT = Path(__file__).resolve().parent.parent


class _SiblingFolders(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "dicache" or name not in _FOLDERS:
            return None
        folder = _ROOT / name
        spec = PathFinder.find_spec(name, [str(_ROOT)], target)
        if spec is None or spec.origin is None:
            return None

        return spec_from_file_location(fullname, spec.origin, submodule_search_locations=[str(folder)])


def serve_sibling_folders() -> None:
    """Register the finder, once, and only where this file lies in a checkout."""
    if (_ROOT / "setup.py").is_file() and not any(isinstance(finder, _SiblingFolders) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SiblingFolders())
