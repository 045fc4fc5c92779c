"""Pictures of fronts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dicache.schedules.schedule import ParetoSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(fronts: Mapping[str, ParetoSet]) -> "Figure":
    """Error over work, a line per set."""
    from matplotlib.figure import Figure

    result = Figure(figsize=(7, 4.5), layout="constrained")
    axes = result.subplots()
    for name, front in fronts.items():
        known = [s for s in front.members if s.error]
        axes.plot([s.work for s in known], [s.error or 0.0 for s in known], marker="o", markersize=4, label=name)
    axes.set(xlabel="executed / uncached MACs", ylabel="relative error of the final latent, mean", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return result
