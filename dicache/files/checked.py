"""Reading files that came from elsewhere: data, of a bounded size, from one folder, never through a link."""

from pathlib import Path


class Wrong(Exception):
    """What is wrong with a file."""


def plain_bytes(path: Path, largest: int) -> bytes:
    """All of a plain file. Raises Wrong for anything else, or more than `largest` bytes."""
    if path.is_symlink() or not path.is_file():
        raise Wrong(f"{path.name} does not exist or is not a plain file")
    if path.stat().st_size > largest:
        raise Wrong(f"{path.name} has more than {largest} bytes")
    return path.read_bytes()


def beside(name: str) -> str:
    """The name of a safetensors file in the same folder. Raises Wrong for any other."""
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise Wrong(f"{name!r} is not the name of a safetensors file in the same folder")
    return name
