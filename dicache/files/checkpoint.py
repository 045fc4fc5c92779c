"""What a long measurement has done so far, in a folder, an entry per file: killed, the same call goes on there. A file
is written under another name and then renamed, so that none is ever half there.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dicache.errors import ProfileError

Entry = dict[str, np.ndarray]


class Checkpoint:
    """Of one call, known by its arguments; in memory where no folder is given.

    Raises ProfileError for a folder that holds another call's entries, or that cannot be written.
    """

    def __init__(self, folder: Path | None, arguments: Sequence[Any]) -> None:
        self.folder, self.found = folder, 0
        digest = hashlib.sha256(json.dumps(list(arguments)).encode()).hexdigest()
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark = folder / "arguments.sha256"
            if mark.is_file() and mark.read_text() != digest:
                raise ProfileError(f"{folder} holds other measurements. Delete it, or give another checkpoint.")
            mark.write_text(digest)
        except OSError as error:
            raise ProfileError(f"the checkpoint {folder} cannot be used: {error}.") from error

    def entry(self, name: str, make: Callable[[], Entry]) -> Entry:
        """The entry of this name: the one that is there, else what `make` gives."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.safetensors"
        if path.is_file():
            try:
                held = load_file(path)
            except SafetensorError as error:
                raise ProfileError(f"{path} is damaged: {error}. Delete it, and it is measured again.") from error
            self.found += 1
            return held
        made = {key: np.ascontiguousarray(value) for key, value in make().items()}
        part = path.with_suffix(".part")
        save_file(made, part)
        part.replace(path)
        return made
