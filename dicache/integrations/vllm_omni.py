"""A cache for vLLM-Omni's stepwise serving: a budget for each request of one running batch.

Its runner keeps what a cache remembers of a request on the request, in `state.cache_slot`, and tells a manager before
and after each denoising step which requests are in it:

    manager.activate(states); noise = pipeline.denoise_step(batch); manager.deactivate(states); ...; manager.free(state)

`OmniSlots` is such a manager. The batch holds the rows of one request after those of another, all of them once per
guidance branch. Where the pipeline calls its transformer the rows are taken apart, each request decides by itself
(`dicache.slots`), those that compute run in one call, and the pipeline gets what it would have got. It stands in the
manager's place and not in that of a driver (`DiTCacheStateDriverBase`), because a driver is not told whose slot it is
handed, and the budget and the scheduler are the request's.

A request says what it wants in `sampling.extra_args["dicache"]`, such as {"error_budget": 0.05}.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor

from dicache.api import enable
from dicache.errors import PipelineError
from dicache.models.family import Family
from dicache.reporting.report import Report
from dicache.runtime.end_of_step import remembered_bytes
from dicache.slots.joint_calls import CallRows, joined, layout_of
from dicache.slots.slot import Slot
from dicache.slots.twin import module_twin
from dicache.tensors.tree import Tree

NAME = "dicache"


@dataclass
class CacheSlot:
    """What a request carries; as vLLM-Omni's `CacheBackendSlot`."""

    payload: Slot
    backend_name: str = NAME
    metadata: dict[str, Any] = field(default_factory=dict)
    resident_bytes: int = 0


class OmniRequest(Protocol):
    """What is read of a request, and where its slot is kept."""

    request_id: str
    latents: Tensor
    """(rows, ...)."""
    scheduler: Any
    sampling: Any
    cache_slot: CacheSlot | None


def asked_of(state: OmniRequest) -> Mapping[str, Any]:
    """What a request asks for."""
    return (state.sampling.extra_args or {}).get(NAME, {})


class OmniSlots:
    """The manager, around a pipeline's `transformer`; `asked` are arguments of `dicache.enable` for requests that ask
    for nothing, `error_budget=0.05` by default, and `reads` tells what one asks for.

    Raises what `enable` raises; `activate` what `Cache.join` raises, and the transformer's call PipelineError where its
    rows are not those of the requests.
    """

    supports_batch_activation = True

    def __init__(
        self,
        pipeline: Any,  # noqa: ANN401
        *,
        family: Family | None = None,
        reads: Callable[[Any], Mapping[str, Any]] = asked_of,
        **asked: Any,  # noqa: ANN401
    ) -> None:
        self.pipeline, self.denoiser, self.reads = pipeline, pipeline.transformer, reads
        self.cache = enable(self.denoiser, family=family, **(asked or {"error_budget": 0.05}))
        self.slots = self.cache._open_slots()
        self.names = tuple(signature(type(self.denoiser).forward).parameters)[1:]
        self.active: list[OmniRequest] = []
        pipeline.transformer = module_twin(self.denoiser, lambda *args, **kwargs: self._forward(*args, **kwargs))

    # As the runner calls it.

    def activate(self, state: OmniRequest | list[Any]) -> bool | list[bool]:
        """Of each request whether it goes on; one that is new joins."""
        states = state if isinstance(state, list) else [state]
        goes_on = [self._joined(each) for each in states]
        self.active = states
        return goes_on if isinstance(state, list) else goes_on[0]

    def deactivate(self, state: OmniRequest | list[Any] | None = None) -> None:
        for each in self.active:
            if each.cache_slot is not None:
                each.cache_slot.resident_bytes = bytes_of(each.cache_slot.payload)
        self.active = []

    def free(self, state: OmniRequest) -> None:
        """It leaves; its report stays with whoever asked for it."""
        if state.cache_slot is not None:
            state.cache_slot.payload.leave()
            state.cache_slot = None

    def report(self, state: OmniRequest) -> Report | None:
        """On a request, before it is freed."""
        return None if state.cache_slot is None else state.cache_slot.payload.report()

    def disable(self) -> None:
        """Everything as it was before."""
        self.pipeline.transformer = self.denoiser
        self.cache.disable()

    def _joined(self, state: OmniRequest) -> bool:
        slot = state.cache_slot
        if slot is not None and slot.backend_name == NAME and slot.payload.on:
            return True
        joined_slot = self.slots.join(state.scheduler, **self.reads(state))
        state.cache_slot = CacheSlot(joined_slot)
        return False

    # As the pipeline calls its transformer.

    def _forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        inputs = dict(zip(self.names, args, strict=False)) | kwargs
        if not self.active:  # a warm-up, or a request that is not run stepwise
            with self.slots._resting():
                return self.denoiser(**inputs)
        latent = next(value for value in inputs.values() if isinstance(value, Tensor) and value.ndim > 1)
        parts = self._parts(inputs, latent)
        own_inputs = [joined([part]) for part in parts]
        slots = [state.cache_slot.payload for state in self.active if state.cache_slot is not None]
        outputs = self.slots.step(slots, own_inputs)
        return together(outputs, [part.some for part in parts if part.some is not None], len(latent))

    def _parts(self, inputs: Mapping[str, Tree], latent: Tensor) -> list[CallRows]:
        """The rows of each request, (rows of a branch x branches)."""
        counts = [len(state.latents) for state in self.active]
        total = sum(counts)
        if len(latent) % total:
            raise PipelineError(
                f"the transformer was called with {len(latent)} rows for {len(counts)} requests that have {total} "
                "together. Expected all of them, once for each guidance branch that lies in the batch."
            )
        layout = layout_of(inputs, len(latent), self.slots.attachment.family.time)
        rows = torch.arange(len(latent)).view(-1, total).split(counts, dim=1)
        return [CallRows(inputs, layout, own.flatten().to(latent.device), latent.device) for own in rows]


def bytes_of(slot: Slot) -> int:
    """That a request's histories hold at this moment."""
    run = slot.session.run
    return 0 if run is None else remembered_bytes(run)


def together(outputs: Sequence[Tree], rows: Sequence[Tensor], total: int) -> Tree:
    """One output of `total` rows, of several that are for some `rows` each."""
    first = outputs[0]
    if isinstance(first, Tensor):
        output = first.new_empty((total, *first.shape[1:]))
        for part, some in zip(outputs, rows, strict=True):
            output.index_copy_(0, some, part)
        return output
    if isinstance(first, OrderedDict):  # diffusers wraps outputs in classes of their own
        return type(first)(**{key: together([each[key] for each in outputs], rows, total) for key in first})
    if isinstance(first, tuple | list):
        return type(first)(together([each[i] for each in outputs], rows, total) for i in range(len(first)))
    return first
