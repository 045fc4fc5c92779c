"""Names of a package that are imported on first use: `import dicache` alone loads neither torch nor diffusers.

    __all__, __getattr__, __dir__ = lazy(__name__, {"dicache.cache": ("Cache",), ...})

makes `from package import Cache` work, and `dir(package)` list what is public and nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from dicache._moved import whereabouts


def lazy(
    package: str, homes: Mapping[str, Sequence[str]], *, packages: Sequence[str] = ()
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of the package. `homes` has the names by the module that defines them;
    `packages` are public packages inside of this one.
    """
    home = {name: module for module, names in homes.items() for name in names}
    public = sorted((*home, *packages))

    def __getattr__(name: str) -> Any:  # noqa: ANN401
        if name in home:
            return vars(import_module(home[name]))[name]
        if name in packages:
            return import_module(f"{package}.{name}")
        raise AttributeError(whereabouts(f"{package}.{name}") or f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return list(public)

    return public, __getattr__, __dir__
