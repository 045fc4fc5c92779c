"""The differentiable stand-in for a schedule that Learning-to-Cache trains on: every site hands on a mixture of what it
gives now and what it gave at the full step before,

    o~ = beta f(h~) + (1 - beta) C

where h~ is what reaches it through the sites before, mixed too, and C comes from a step that computed everything. For
blocks it is what they add that is mixed.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dicache.errors import ScheduleError
from dicache.tensors.block_output import OutputLayout, layout_of
from dicache.tensors.tree import Tree, map_tensors, tensors
from dicache.types import Site


class RecordedCall(NamedTuple):
    """One call of a denoiser."""

    args: tuple[Tree, ...]
    kwargs: Mapping[str, Tree]

    def run(self, denoiser: nn.Module) -> Tensor:
        """The first tensor of what it returns, (R, ...)."""
        return tensors(denoiser(*self.args, **self.kwargs))[0]


class Recorded(NamedTuple):
    """The denoiser's calls on a run of the calibration prompts."""

    calls: list[list[RecordedCall]]
    """By step, one per call of the step."""
    mixture: list[list[float]]
    """The weight of every branch in the guided output, by call and chunk; 1 where that is not known."""
    coefficients: tuple[float, ...]
    """How much of the output each step adds to the latent."""
    sites: tuple[Site, ...]


class Branch(NamedTuple):
    """One call of a step that may reuse."""

    call: RecordedCall
    truth: Tensor
    """What it gives with everything computed."""
    values: Mapping[int, list[Tensor]]
    """What every site gave at the step before, by its index."""
    weights: list[float]
    """Of its chunks in the guided output."""


class SoftGates:
    """Hooks on the modules of sites, while the context lasts; nothing else of the model is touched, and its parameters
    take no gradients. Raises ScheduleError for sites of several modules.
    """

    sites: Sequence[Site]
    denoiser: nn.Module

    def __init__(self, denoiser: nn.Module, sites: Sequence[Site]) -> None:
        self.denoiser, self.sites = denoiser, sites
        if any(len(site.modules) != 1 for site in sites if site.inside_denoiser):
            raise ScheduleError(
                "a router is trained for sites of one module each: Evaluation(), Spans(1), Sublayers()."
            )
        self.values: dict[int, list[Tensor]] = {}
        self.layouts: dict[int, OutputLayout] = {}
        self.beta: Tensor | None = None
        self.handles: list[Any] = []
        self.learning: list[nn.Parameter] = []

    def __enter__(self) -> "SoftGates":
        self.learning = [p for p in self.denoiser.parameters() if p.requires_grad]
        for parameter in self.learning:
            parameter.requires_grad_(False)
        for index, site in enumerate(self.sites):
            module = self.denoiser.get_submodule(site.modules[0]) if site.inside_denoiser else self.denoiser
            self.handles.append(module.register_forward_hook(self._hook(index, site), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self.handles:
            handle.remove()
        for parameter in self.learning:
            parameter.requires_grad_(True)
        self.handles, self.values = [], {}

    def pair(self, runs: Recorded, step: int) -> list[Branch]:
        """All calls of a step, with what the step before left."""
        pairs = []
        for before, after, weights in zip(runs.calls[step - 1], runs.calls[step], runs.mixture, strict=True):
            truth = self._full(after)
            self._full(before)
            pairs.append(Branch(after, truth, self.values, weights))
        return pairs

    def _full(self, call: RecordedCall) -> Tensor:
        """Compute everything, and remember what every site gave."""
        self.beta, self.values = None, {}
        with torch.no_grad():
            return call.run(self.denoiser)

    def mixed(self, branch: Branch, beta: Tensor) -> Tensor:
        """Compute with every site mixed, `beta`, (S,), with what is remembered."""
        self.beta, self.values = beta, dict(branch.values)
        return branch.call.run(self.denoiser)

    def _hook(self, index: int, site: Site) -> Any:  # noqa: ANN401
        def after(module: nn.Module, args: Tree, kwargs: Tree, output: Tree) -> Tree:
            inputs = tensors((args, kwargs))
            if self.beta is None:
                self._remember(index, site, inputs, output)
                return output
            beta, values = self.beta[index], iter(self.values[index])
            bases = iter(self.layouts[index].bases)

            def mix(value: Tensor) -> Tensor:
                base, then = next(bases), next(values)
                before = then if base is None or not self.layouts[index].added else inputs[base] + then
                return beta.to(value.dtype) * value + (1 - beta).to(value.dtype) * before

            return _mapped(mix, output)

        return after

    def _remember(self, index: int, site: Site, inputs: list[Tensor], output: Tree) -> None:
        outputs = tensors(output)
        if index not in self.layouts:
            layout = layout_of(inputs, output, outputs[0].shape[0], site.added and site.inside_denoiser)
            if layout is None:
                raise ScheduleError(f"{site.path} cannot be mixed: what it gives has not the batch on its first axis.")
            self.layouts[index] = layout
        layout = self.layouts[index]
        self.values[index] = [
            t - inputs[base] if layout.added and base is not None else t.clone()
            for t, base in zip(outputs, layout.bases, strict=True)
        ]


def _mapped(function: Any, output: Tree) -> Tree:  # noqa: ANN401
    """The same kind of object with its tensors replaced."""
    if hasattr(output, "to_tuple"):
        return type(output)(**{key: map_tensors(function, value) for key, value in output.items()})
    return map_tensors(function, output)
