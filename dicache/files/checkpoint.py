"""What a long measurement has done so far, in a folder, an entry per file: killed, the same call goes on there.

Every file says of which call and under which name it was made, and carries a digest of all of it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dicache.errors import DicacheError, ProfileError
from dicache.files.arrays_file import arrays_file
from dicache.files.atomic import write_bytes, write_text
from dicache.files.checked import FileFault, plain_bytes, refusing
from dicache.files.content import digest_of
from dicache.files.sealed_arrays import sealed, unsealed

KIND = "dicache.checkpoint"
LARGEST = 4 << 30
"""Bytes of an entry."""
Entry = dict[str, np.ndarray]


class Checkpoint:
    """Of one call, known by what its arguments hold; in memory where no folder is given.

    Raises `error` for a folder that holds another call's entries, that cannot be written, or whose files are damaged.
    """

    folder: Path | None
    error: type[DicacheError]
    resumed: int

    def __init__(self, folder: Path | None, arguments: Sequence[Any], error: type[DicacheError] = ProfileError) -> None:
        self.folder, self.error, self.resumed, self._call = folder, error, 0, ""
        if folder is None:
            return
        mark = folder / "arguments.sha256"
        with refusing(error, f"the checkpoint {folder} cannot be used", ""):
            self._call = digest_of(list(arguments))
            folder.mkdir(parents=True, exist_ok=True)
            if not mark.exists() or not any(folder.glob("*.safetensors")):  # of a call that measured nothing
                write_text(mark, self._call)
            there = plain_bytes(mark, 1024)
        if there != self._call.encode():
            raise error(f"{folder} holds other measurements. Delete it, or give another checkpoint.")

    def entry(self, name: str, make: Callable[[], Entry]) -> Entry:
        """The entry of this name: the one that is there, else what `make` gives."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.safetensors"
        if path.exists():
            with refusing(self.error, f"{path} is damaged", "Delete it, and it is measured again."):
                entry = self._read(path, name)
            self.resumed += 1
            return entry
        made = {key: np.ascontiguousarray(value) for key, value in make().items()}
        with refusing(self.error, f"the checkpoint {self.folder} cannot be used", ""):
            write_bytes(path, sealed(KIND, {"call": self._call, "entry": name}, made))
        return made

    def has(self, name: str) -> bool:
        """Whether the folder holds an entry of this name."""
        return self.folder is not None and (self.folder / f"{name}.safetensors").exists()

    def _read(self, path: Path, name: str) -> Entry:
        with arrays_file(path, LARGEST) as file:
            facts = unsealed(file, KIND)
            if (facts.text("call"), facts.text("entry")) != (self._call, name):
                raise FileFault("it is of other measurements")
            return file.arrays()
