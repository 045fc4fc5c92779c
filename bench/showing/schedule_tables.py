"""The tables of `python -m dicache.bench schedules`: what every schedule executed and lost."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
"""What one schedule did: its name, and numbers."""


def show(groups: Iterable[list[Row]]) -> None:
    table = Table("schedule", "asked", "work", "median error", "mean", "90th pct", "on calibration captions")
    for row in (row for rows in groups for row in rows):
        if "errors" not in row:
            share = f", of the seeds it beats {row['dominates']:.0%}" if "dominates" in row else ""
            table.add_row(row["name"], "", f"hypervolume {row['hypervolume']:.4f}{share}")
            continue
        e, on = np.array(row["errors"]), row["calibration"]
        numbers = (f"{np.median(e):.4f}", f"{e.mean():.4f}", f"{np.quantile(e, 0.9):.4f}")
        table.add_row(
            row["name"], f"{row['cost']:g}", f"{row['work']:.4f}", *numbers, "-" if on is None else f"{on:.4f}"
        )
    Console(width=140).print(table)
