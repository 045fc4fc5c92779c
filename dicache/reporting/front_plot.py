"""Pictures of fronts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dicache.schedules.pareto import ParetoSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(fronts: Mapping[str, ParetoSet]) -> "Figure":
    """Error over work, a line per set."""
    from matplotlib.figure import Figure

    result = Figure(figsize=(7, 4.5), layout="constrained")
    axes = result.subplots()
    for name, front in fronts.items():
        points = [(s.work, s.error) for s in front.members if s.error]  # none of error 0: the scale is logarithmic
        axes.plot([work for work, _ in points], [error for _, error in points], marker="o", markersize=4, label=name)
    axes.set(xlabel="executed / uncached MACs", ylabel="relative error of the final latent, mean", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return result
