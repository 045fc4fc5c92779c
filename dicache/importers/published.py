"""What the importers share: a file that somebody published, beside the run that it is for.

Papers count blocks, and name what lies in a block; the sites of the run are known by path. A file must have as many
steps and blocks as the run; what its schedule loses there is measured.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dicache._version import __version__
from dicache.errors import ScheduleError
from dicache.files.checked import read_json, refusing
from dicache.measuring.schedule_measurements import Calibration
from dicache.schedules.schedule import Schedule
from dicache.schedules.setting import Cell, Origin
from dicache.sites import Sites
from dicache.types import Action, Kind

NAMES: dict[Kind, tuple[str, ...]] = {
    Kind.ATTENTION: ("attn", "attn1", "attention", "self_attn"),
    Kind.CROSS_ATTENTION: ("attn2", "xattn", "cross_attn"),
    Kind.FEED_FORWARD: ("mlp", "ff", "ffn", "feed_forward"),
}
"""What papers call the sublayers."""
MOST_DIGITS = 10


class Published:
    """Raises ScheduleError for sites that published schedules are not of."""

    path: Path
    sites: Sites

    def __init__(self, path: str | Path, pipe: Any, sites: Sites, calibration: Calibration) -> None:  # noqa: ANN401
        self.path, self.sites = Path(path), sites
        self._measurements = calibration.on(pipe, sites)
        self.cells: tuple[Cell, ...] = self._measurements.basis.cells
        self.shape: tuple[int, int] = self._measurements.basis.shape
        """Steps and sites."""
        self.blocks: list[int] = blocks_of(self.cells)
        """The block that every site lies in."""

    def json(self) -> dict[str, Any]:
        """Raises ScheduleError for anything but a JSON object."""
        with refusing(ScheduleError, f"{self.path} cannot be read as JSON", ""):
            content = dict(read_json(self.path).content)
        if not content:
            raise ScheduleError(f"{self.path} holds no JSON object with entries.")
        return content

    def check_steps(self, count: int) -> None:
        """Raises ScheduleError where the file has another number."""
        if count != self.shape[0]:
            raise ScheduleError(f"{self.path} is for {count} steps. Expected {self.shape[0]}: import at its own.")

    @property
    def n_blocks(self) -> int:
        return max(self.blocks) + 1

    def schedule(self, computed: np.ndarray, method: str) -> Schedule:
        """Of what computes, (T, S) bool, with what it loses on the calibration prompts. The first step computes."""
        measurements, calibration = self._measurements, self._measurements.calibration
        table = measurements.filled(computed, Action.REUSE)
        origin = Origin(
            f"imported from {method}", {}, calibration.seed, measurements.prompts, calibration.digest, __version__
        )
        return Schedule(measurements.basis, table, origin, float(measurements.errors([table]).mean()))


def number_of(key: str) -> int | None:
    """Of a step or block, where a key is one."""
    return int(key) if key.isdecimal() and len(key) < MOST_DIGITS else None


def blocks_of(cells: Sequence[Cell]) -> list[int]:
    """The number of the block that every sublayer lies in, in order of execution. Raises ScheduleError for other
    sites.
    """
    if any(cell.kind not in NAMES for cell in cells):
        raise ScheduleError("published schedules are of attention and feed-forward modules. Use sites=Sublayers().")
    paths = [cell.path.rpartition(".")[0] for cell in cells]
    order = {path: number for number, path in enumerate(dict.fromkeys(paths))}
    return [order[path] for path in paths]
