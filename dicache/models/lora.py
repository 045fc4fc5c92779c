"""What LoRA does to a denoiser at this moment: which adapters there are, which act, how strongly, which are merged into
the weights. Read off the host, by the attributes that peft gives its layers; peft itself is not imported. What anything
else does to the weights is told by `dicache.models.weights`.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dicache.tensors.tree import Tree


class Adapters:
    """Those of one denoiser. Looking costs nothing while there are none."""

    any: bool

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.names: tuple[tuple[str, int], ...] = ()
        self.configs: list[object] = []
        """Referred to, so that no other gets their ids."""
        self.layers: list[nn.Module] = []
        self.any = False
        """Whether there are some, or ever were."""
        self.first: tuple[Any, ...] = self.state()
        self.seen: tuple[Any, ...] = (self.first, ())

    def state(self) -> tuple[Any, ...]:
        """Equal as long as the same adapters do the same."""
        loaded = vars(self.denoiser).get("peft_config", {})
        names = tuple((name, id(config)) for name, config in loaded.items())
        self.any = self.any or bool(names)
        if names != self.names:
            self.names, self.configs = names, list(loaded.values())
            self.layers = [module for module in self.denoiser.modules() if "scaling" in vars(module)] if names else []
        return (*names, *map(_acting, self.layers))

    def changed(self, arguments: Mapping[str, Tree]) -> bool:
        """Whether they do something else than when this was asked last; `arguments` are those of the denoiser."""
        options = [value for value in arguments.values() if isinstance(value, dict)]
        before, self.seen = self.seen, (self.state(), tuple(one["scale"] for one in options if "scale" in one))
        return self.seen != before

    @property
    def as_at_first(self) -> bool:
        return self.seen[0] == self.first


def _acting(layer: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Scales to 6 digits: where a pipeline scales a layer for one call, undoing it rounds."""
    scales = tuple((name, f"{scale:.6g}") for name, scale in layer.scaling.items())
    return layer._disable_adapters, tuple(layer._active_adapter), tuple(layer.merged_adapters), scales
