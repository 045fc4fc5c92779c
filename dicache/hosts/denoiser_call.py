"""One call of the denoiser, as it is heard from outside: what it is called with, whether the model is another than at
the call before, and what it returns.

Whatever the model takes and gives, its latents and its predictions are one tensor each to a session:

    a tensor (R, ...)                  as it is
    a list of R samples                stacked, (R, ...)
    several streams (R, ...), (R, ..)  flattened and joined, (R, D)

What the session hands back takes the way back. What may happen to a denoiser in its life is looked for at each call:
weights, LoRA, compiled blocks, another cache.
"""

import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from threading import get_ident
from typing import SupportsFloat

import torch
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from dicache.errors import UnsupportedModelError
from dicache.hosts.bypass import Bypass
from dicache.hosts.checks import check_branches, check_others, check_uncached
from dicache.hosts.compiled_blocks import Compilation
from dicache.hosts.module_hook import BranchName, Hooks, Uncopied, eager
from dicache.models.conditioning import conditions_of, fingerprint
from dicache.models.family import Batch, Family
from dicache.models.find_blocks import find
from dicache.models.lora import Adapters
from dicache.models.weights import Weights
from dicache.runtime.run_state import Inputs, Marks
from dicache.runtime.session import Session
from dicache.tensors.tree import Tree, filled, plain, tensors
from dicache.types import Kind

TIMES = (Tensor, float, int, SupportsFloat)
ADAPTED, WRITTEN = "the LoRA was changed", "the weights were changed"


class DenoiserCalls(Uncopied):
    """The two plain torch hooks of a denoiser: a registry hook on it would vanish under model offload."""

    family: Family
    session: Session
    hooks: Hooks
    compilation: Compilation
    branch: BranchName
    bypass: Bypass
    adapters: Adapters
    weights: Weights
    arguments: dict[str, Tree]
    denoiser: nn.Module

    def __init__(
        self,
        denoiser: nn.Module,
        family: Family,
        session: Session,
        hooks: Hooks,
        compilation: Compilation,
        branch: BranchName,
        bypass: Bypass,
    ) -> None:
        self.denoiser, self.family, self.session = denoiser, family, session
        self.hooks, self.compilation, self.branch, self.bypass = hooks, compilation, branch, bypass
        self.signature: inspect.Signature = inspect.signature(type(denoiser).forward)
        _, *parameters = self.signature.parameters.values()
        named = (p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        self.named: dict[str, inspect.Parameter] = {p.name: p for p in named}
        """Its arguments that have names of their own, in their order."""
        self.adapters, self.weights = Adapters(denoiser), Weights(denoiser)
        self.by_branch: bool = any(site.kind is Kind.BRANCH for site in session.sites)
        self.arguments = dict[str, Tree]()
        self.resting: int | None = None
        """The thread whose calls pass unheard: those that slots make."""

    @eager
    def before(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> None:
        if self.resting == get_ident():
            return
        owner = self.session.owner
        if owner.thread != get_ident() and owner.claim():
            self.session.reset()  # calls of two loops in turn are no run
        self.arguments = arguments = self.by_name(args, kwargs)
        latent, timestep = latent_of(self.family, arguments), self._timestep(arguments)
        run = self.session.run
        begins = run is None or run.complete or run.step.index == run.step.total - 1  # or may begin
        other_weights = self.look_around(arguments, begins=begins)
        holds_cache = _holds_cache(arguments)
        if holds_cache and self.family.cacheless:
            raise UnsupportedModelError(
                f"{self.family.model} was called with a cache of keys and values that its blocks write and later steps "
                f"read, so that a skipped block would corrupt it. Call the pipeline with {self.family.cacheless}."
            )
        gathered = self.family.batch is Batch.SAMPLE and not holds_cache
        prints = partial(fingerprint, arguments, latent.shape[0])
        seen = latent, timestep, self.branch.name, call_key(arguments), gathered, other_weights
        conditions = conditions_of(self.family, arguments, latent)
        self.session.begin(Inputs(*seen, conditions, marks_of(conditions), prints))
        self.bypass.prepare(seen[3])

    @eager
    def after(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree], output: Tree) -> Tree:
        call = self.session.call
        if call is not None and call.rejected is not None and not call.again:  # a draft failed: the same call again
            self.session.repeat()
            output = module.forward(*args, **kwargs)
        arguments, self.arguments = self.arguments, {}
        if call is None:
            return output
        self.bypass.remember(call.key, output)
        prediction = prediction_of(self.family, call.latent, arguments, output)
        result = self.session.end(prediction)
        return output if result is prediction else returned(output, result)

    def by_name(self, args: tuple[Tree, ...], kwargs: Mapping[str, Tree]) -> dict[str, Tree]:
        """The denoiser's arguments; what stands in a dict, or what is left over for **kwargs, by its own name too."""
        if not args and kwargs.keys() <= self.named.keys():  # bound at once: this is asked at every call
            named = {name: kwargs[name] for name in self.named if name in kwargs}
        else:
            bound = self.signature.bind_partial(self.denoiser, *args, **kwargs).arguments
            named = {name: value for name, value in bound.items() if value is not self.denoiser}
        inside = [value for value in named.values() if isinstance(value, Mapping)]
        for name, value in (item for mapping in inside for item in mapping.items()):
            named.setdefault(str(name), value)
        return named

    def _timestep(self, arguments: Mapping[str, Tree]) -> Tree:
        timestep = timestep_of(self.family, arguments)
        if timestep is None:
            self.session.note(
                f"no timestep was found: the denoiser was called with {', '.join(arguments)}, and none of "
                f"{', '.join(self.family.time)} is a time among them. Name it in a dicache.Family(time=...)."
            )
        return timestep

    # What may have happened to the model since the call before.

    def look_around(self, arguments: Mapping[str, Tree], *, begins: bool) -> str:
        """How the weights became others since the last call, empty where they did not; `begins`: a run may begin. What
        cannot be lived with is an error here.
        """
        denoiser, compilation = self.denoiser, self.compilation
        if isinstance(denoiser, CacheMixin) and denoiser.is_cache_enabled:
            check_uncached(denoiser)
        if begins:
            check_others(denoiser, self.weights.modules)
        written = (begins or self.weights.touched()) and self._written()
        if self.by_branch:
            check_branches(denoiser)
        if compilation.options is not None or any(m._compiled_call_impl for m in (denoiser, *compilation.modules)):
            compilation.check()
        hooked = self.hooks.put_back()
        self.bypass.look(hooked=hooked)
        if not hooked:
            self.session.note(
                "its hooks are gone from the blocks, so everything was computed: offload was turned off that had been "
                "turned on before dicache. Call disable() and dicache.enable again."
            )
        # Looking costs nothing while there are no adapters and never were.
        adapted = (self.adapters.any or "peft_config" in vars(denoiser)) and self._adapted(arguments)
        return ADAPTED if adapted else WRITTEN if written else ""

    def _written(self) -> bool:
        """Whether the weights were written to, or exchanged, since this was asked last."""
        changed = self.weights.changed()
        if not self.weights.as_at_first:
            self._say(WRITTEN)
        return changed

    def _adapted(self, arguments: Mapping[str, Tree]) -> bool:
        """Whether LoRA does something else than at the call before."""
        changed = self.adapters.changed(arguments)
        if changed:
            self.hooks.surround(find(self.denoiser, self.family).around)
        if not self.adapters.as_at_first:
            self._say(ADAPTED)
        return changed

    def _say(self, change: str) -> None:
        """What it means for the run. Raises ProfileError where it cannot be lived with."""
        for text in self.session.config.on_other_weights(f"{change} after dicache.enable"):
            self.session.note(text)


def call_key(arguments: Mapping[str, Tree]) -> tuple[Hashable, ...]:
    """What tells calls apart that run other parts, or the same on other shapes: switches and layers to leave out."""
    shapes = (t.shape for t in tensors(tuple(arguments.values())))
    return (*shapes, *((name, repr(value)) for name, value in arguments.items() if _is_switch(value)))


def _is_switch(value: Tree) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and all(isinstance(i, int) for i in value))


def _holds_cache(arguments: Mapping[str, Tree]) -> bool:
    """Whether blocks read keys and values of all samples from an object, which cannot be taken apart."""
    return any("cache" in name and value is not None for name, value in arguments.items())


def timestep_of(family: Family, arguments: Mapping[str, Tree]) -> Tree:
    """Among a denoiser's arguments; None if there is none."""
    return next((time for name in family.time if isinstance(time := arguments.get(name), TIMES)), None)


def marks_of(conditions: Mapping[str, Tree]) -> Marks | None:
    """None where there is more to look at than tensors that are counted, and names."""
    objects = tuple(None if isinstance(value, Mapping) and not value else value for value in conditions.values())
    facts = []
    for name, value in zip(conditions, objects, strict=True):
        writes = 0
        if isinstance(value, Tensor) and not value.is_inference():
            writes = value._version
        elif not (value is None or isinstance(value, bool | str)):
            return None
        facts.append((name, id(value), writes))
    return Marks(tuple(facts), objects)


# Latents and predictions as one tensor each.


def latent_of(family: Family, arguments: Mapping[str, Tree]) -> Tensor:
    """What is denoised among a denoiser's arguments, (R, ...). Raises UnsupportedModelError where there is none, or
    samples of several sizes.
    """
    if family.latents:
        streams = [arguments[name] for name in family.latents if isinstance(arguments.get(name), Tensor)]
        return _joined(streams, family, arguments)
    first = next(iter(arguments.values()), None)
    if isinstance(first, list) and first and all(isinstance(sample, Tensor) for sample in first):
        return _stacked(family.model, first)
    latents = (t for t in tensors(tuple(arguments.values())) if t.is_floating_point() and t.ndim > 1)
    latent = None if isinstance(first, list | tuple) else next(latents, None)
    return _joined([] if latent is None else [latent], family, arguments)


def prediction_of(family: Family, latent: Tensor, arguments: Mapping[str, Tree], output: Tree) -> Tensor:
    """What a denoiser returned for it, (R, ...). Raises UnsupportedModelError where it is something else."""
    parts, first = tensors(plain(output)), next(iter(arguments.values()), None)
    if isinstance(first, list) and len(parts) == len(first) and all(t.ndim == latent.ndim - 1 for t in parts):
        return _stacked(family.model, parts)
    streams = sum(isinstance(arguments.get(name), Tensor) for name in family.latents) or 1
    if len(parts) == streams and all(t.ndim and t.shape[0] == latent.shape[0] for t in parts):
        return _joined(parts, family, arguments)
    shapes = ", ".join(str(tuple(t.shape)) for t in parts)
    raise UnsupportedModelError(
        f"{family.model} returned {len(parts)} tensors ({shapes}) for a latent of {tuple(latent.shape)}. Expected one "
        "prediction with the samples on its first axis; for several streams name them in a dicache.Family(latents=...)."
    )


def returned(output: Tree, prediction: Tensor) -> Tree:
    """The denoiser's output with another prediction in it; the same kind of object."""
    before = tensors(plain(output))
    alone = len(before) == 1 and before[0].ndim == prediction.ndim  # a list may hold one sample
    parts = iter([prediction] if alone else _apart(prediction, before))
    return filled(output, lambda _: next(parts))


def _apart(prediction: Tensor, before: list[Tensor]) -> Iterator[Tensor]:
    if len(before) == prediction.shape[0] and before[0].shape == prediction.shape[1:]:
        yield from prediction.unbind(0)
        return
    ends = list(accumulate(t[0].numel() for t in before))
    for t, end in zip(before, ends, strict=True):
        yield prediction[:, end - t[0].numel() : end].reshape(t.shape)


def _joined(streams: Sequence[Tensor], family: Family, arguments: Mapping[str, Tree]) -> Tensor:
    if not streams:
        named = f"tensors named {', '.join(family.latents)}, as its family says"
        raise UnsupportedModelError(
            f"{family.model} was called without a latent, with {', '.join(arguments) or 'nothing'}. Expected "
            f"{named if family.latents else 'a floating tensor with a batch axis as its first input'}. "
            "dicache.Family(latents=...) takes names of arguments, and of keys where an argument is a dict."
        )
    return streams[0] if len(streams) == 1 else torch.cat([t.flatten(1) for t in streams], dim=1)


def _stacked(model: str, samples: Sequence[Tensor]) -> Tensor:
    sizes = len({sample.shape for sample in samples})
    if sizes > 1:
        raise UnsupportedModelError(
            f"{model} was called with samples of {sizes} sizes in one batch. "
            "Expected one size: run each size by itself."
        )
    return torch.stack(list(samples))
