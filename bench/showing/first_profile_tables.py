"""What first calibrations said, took and were worth, in words and a table (`dicache.bench.studies.first_profile`)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from dicache.bench.showing.tables import Table, markdown
from dicache.promise.metrics import asked
from dicache.types import LATENT, Wanted

HEAD = "setting | calibrated on | asked | confidence | test captions | within | p | median / budget | work"


@dataclass
class Said:
    """What the calibration said after two of its runs, and what it then took."""

    samples: int
    seconds: float | None
    """For what was left; None where a checkpoint held all of it."""
    drawn: int = 0
    took: float = 0.0
    resumed: bool = False
    busy: tuple[float, float] | None = None
    """Shares of the time for which this process had a processor: until it said so, and after. On a machine with other
    work they tell how much of the difference is that work's.
    """

    @property
    def ratio(self) -> float | None:
        """What it took over what it said; None where nothing was said."""
        return None if self.resumed or self.seconds is None else self.took / self.seconds

    @property
    def processor_ratio(self) -> float | None:
        """The same in the processor's time."""
        return None if self.ratio is None or self.busy is None else self.ratio * self.busy[1] / self.busy[0]


def table(every: Sequence[dict[str, Any]]) -> Table:
    """Of all settings."""
    return [HEAD.split(" | "), *(_row(facts, line) for facts in every for line in facts["lines"] if line["losses"])]


def _row(facts: dict[str, Any], line: dict[str, Any]) -> list[str]:
    losses, bound, latent = np.array(line["losses"]), line["bound"], line["metric"] == LATENT
    within, n = int((losses <= bound).sum()), len(losses)
    p = stats.binomtest(within, n, facts["confidence"], alternative="less").pvalue
    return [
        facts["setting"],
        str(facts["prompts"]),
        asked(Wanted(line["metric"], bound)),
        f"{facts['confidence']:g}",
        str(n),
        f"{within} ({within / n:.3f})",
        f"{p:.3f}" + (" FAILS" if p < 0.01 else ""),
        f"{np.median(losses) / bound:.2f}" if latent else f"{-np.median(losses):.3g}",
        f"{np.mean(line['work']):.3f}" if line["level"] else "1 (no level passes)",
    ]


def said_in_words(facts: dict[str, Any]) -> str:
    """Of the calibration's forecast."""
    said = Said(**facts["said"])
    if said.ratio is None:
        return f"{facts['setting']}: the calibration went on where it was, so what it said is not held against it."
    text = (
        f"{facts['setting']}: the calibration said {said.samples} samples and {said.seconds:.0f} s to go, and took "
        f"{said.drawn} samples and {said.took:.0f} s ({said.ratio:.2f}"
    )
    return text + (")." if said.processor_ratio is None else f"; in the processor's time {said.processor_ratio:.2f}).")


def shown(folder: Path) -> str:
    """The tables of all files of a folder."""
    every = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not every:
        raise SystemExit(f"there is nothing to show in {folder}: draw something first.")
    begun = [facts for facts in every if not facts["said"]["resumed"]]  # of one profile the last word
    profiles = {facts["profile"]: facts for facts in (*every, *begun)}
    return "\n\n".join([markdown(table(every)), *map(said_in_words, profiles.values())])
