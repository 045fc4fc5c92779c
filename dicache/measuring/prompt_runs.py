"""Drawing prompts by index, always with the same noise: prompt k has the generator of seed + k, in whatever batch. What
can be known to be wrong with a prompt is said before anything is drawn, and the pipeline's own progress bar is off.

A prompt is a text, or what stands for one in a pipeline's call, by argument: tensors (1, ...), of which a batch is
made, and anything else, of which a list is made. All prompts have the same arguments.
"""

import inspect
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dicache.api import denoisers
from dicache.errors import DicacheError, ProfileError
from dicache.files.content import digest_of
from dicache.hosts.attachment import attached_to
from dicache.hosts.pipeline_call import listening

Prompt = str | Mapping[str, Any]
_OWN = {
    "prompt": "it is prompts=...",
    "num_inference_steps": "it is steps=...",
    "generator": "prompt k has the generator of seed + k, with seed=...",
    "output_type": "what is measured says which it has to be",
    "callback_on_step_end": "the final latents are read with it",
    "callback": "the final latents are read with it",
    "callback_steps": "the final latents are read with it",
}
"""Arguments of a pipeline that whoever draws prompts gives."""


class Drawn(NamedTuple):
    latents: Tensor
    """The final ones, (B, ...)."""
    images: Tensor | None
    """(B, C, H, W) in [0, 1], where a metric asks for them."""


class Spent(NamedTuple):
    """What was drawn, the seconds it took, and the denoisers' MACs: those executed, and of all without a cache."""

    samples: int = 0
    seconds: float = 0.0
    executed: float = 0.0
    uncached: float = 0.0


@dataclass(frozen=True)
class DrawOrder:
    """Some prompts, and all that is needed to draw them anywhere."""

    prompts: Mapping[int, Prompt]
    """By index."""
    indices: tuple[int, ...]
    steps: int
    seed: int
    call: Mapping[str, Any]
    images: bool

    def drawer(self, pipe: Any) -> "Drawer":  # noqa: ANN401
        return Drawer(pipe, self.prompts, self.steps, self.seed, self.call, images=self.images)


class Drawer:
    """Of one pipeline, at one step count, with the same further arguments."""

    pipe: Any
    prompts: Sequence[Prompt] | Mapping[int, Prompt]
    steps: int
    seed: int
    call: Mapping[str, Any]
    images: bool
    samples: int
    seconds: float
    executed: float
    uncached: float

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401
        prompts: Sequence[Prompt] | Mapping[int, Prompt],
        steps: int,
        seed: int,
        call: Mapping[str, Any],
        *,
        images: bool,
    ) -> None:
        self.pipe, self.prompts, self.steps, self.seed, self.call, self.images = (
            pipe,
            prompts,
            steps,
            seed,
            call,
            images,
        )
        self.samples, self.seconds, self.executed, self.uncached = 0, 0.0, 0.0, 0.0
        """What was drawn so far, as in `Spent`."""

    @property
    def spent(self) -> Spent:
        return Spent(self.samples, self.seconds, self.executed, self.uncached)

    def book(self, spent: Spent) -> None:
        """Count what was drawn elsewhere."""
        self.samples, self.seconds = self.samples + spent.samples, self.seconds + spent.seconds
        self.executed, self.uncached = self.executed + spent.executed, self.uncached + spent.uncached

    def order(self, indices: Sequence[int]) -> DrawOrder:
        """What `draw` draws, to be drawn anywhere."""
        some = {i: self.prompts[i] for i in indices}
        return DrawOrder(some, tuple(indices), self.steps, self.seed, self.call, self.images)

    def draw(self, indices: Sequence[int]) -> Drawn:
        """One run; the same index twice is the same sample twice. Raises ProfileError for a pipeline that does not call
        back after its steps, or does not give a tensor.
        """
        last: dict[str, Tensor] = {}
        texts, arguments = batch_arguments(self.pipe, [self.prompts[i] for i in indices])
        started = time.perf_counter()
        with torch.no_grad(), silenced(self.pipe):
            output = self.pipe(
                *texts,
                num_inference_steps=self.steps,
                generator=[torch.Generator().manual_seed(self.seed + i) for i in indices],
                output_type="pt" if self.images else "latent",
                **listening(self.pipe, lambda latents: last.update(latents=latents)),
                **arguments,
                **listed(self.call, len(indices)),
            )
        if not last:
            raise ProfileError(
                f"{type(self.pipe).__name__} does not call back after its steps: it cannot be calibrated."
            )
        images = output[0] if self.images else None
        if self.images and not (isinstance(images, Tensor) and images.ndim == 4):
            raise ProfileError(f"{type(self.pipe).__name__} gives no picture tensor (B, C, H, W) for output_type='pt'.")
        self._book(last["latents"], len(indices), started)
        return Drawn(last["latents"], images)

    def _book(self, latents: Tensor, samples: int, started: float) -> None:
        latents.reshape(-1)[:1].cpu()  # until then the device is at work
        self.samples, self.seconds = self.samples + samples, self.seconds + time.perf_counter() - started
        for denoiser in denoisers(self.pipe).values():
            attachment = attached_to(denoiser)
            trace = None if attachment is None else attachment.session.trace()
            if trace is not None:
                self.executed += float(trace.executed.sum())
                self.uncached += float(trace.uncached.sum())


def batch_arguments(pipe: Any, prompts: Sequence[Prompt]) -> tuple[list[Any], dict[str, Any]]:  # noqa: ANN401
    """A pipeline's arguments for these prompts: those without a name, and those with one."""
    mappings = [prompt for prompt in prompts if isinstance(prompt, Mapping)]
    if not mappings:
        taken = list(inspect.signature(pipe).parameters)
        by_name = "prompt" in taken[1:]  # a picture to go by comes first
        return ([], {"prompt": list(prompts)}) if by_name else ([list(prompts)], {})
    columns = {name: [prompt[name] for prompt in mappings] for name in mappings[0]}
    return [], {name: torch.cat(each) if isinstance(each[0], Tensor) else each for name, each in columns.items()}


def listed(call: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """With one negative prompt per sample: some pipelines refuse a text beside a list of prompts."""
    return {
        name: [value] * samples if name.startswith("negative_prompt") and isinstance(value, str) else value
        for name, value in call.items()
    }


def text_of(prompt: Prompt) -> str:
    """By which a prompt is known from others."""
    return prompt if isinstance(prompt, str) else digest_of(dict(prompt))


def misuse(prompts: Any, call: Mapping[str, Any]) -> str | None:  # noqa: ANN401
    """What is wrong with prompts and further arguments that were given, if anything is."""
    if isinstance(prompts, str | bytes | Mapping | Tensor) or not isinstance(prompts, Collection):
        what = f"the text {prompts!r:.60}" if isinstance(prompts, str) else f"a {type(prompts).__name__}"
        return (
            f"prompts is {what}. Expected a list: of texts, Path('prompts.txt').read_text().splitlines() for example, "
            "or of mappings such as {'prompt_embeds': tensor}, one per sample."
        )
    if names := sorted(name for name in call if name in _OWN):
        return f"call has {names[0]}. Leave it out: {_OWN[names[0]]}."
    return _uneven(list(prompts), call)


def _uneven(prompts: list[Any], call: Mapping[str, Any]) -> str | None:
    mappings = [prompt for prompt in prompts if isinstance(prompt, Mapping)]
    if not mappings:
        return None
    names = {frozenset(prompt) for prompt in mappings}
    if len(mappings) < len(prompts) or len(names) > 1:
        return "prompts are not alike. Expected texts only, or mappings that all have the same arguments."
    if twice := sorted({*mappings[0]} & ({*call, *_OWN} - {"prompt"})):
        return f"prompts have {twice[0]}, which call or what draws them gives too. Leave it out of one."
    tensors = [(name, value) for prompt in mappings for name, value in prompt.items() if isinstance(value, Tensor)]
    if long := [(name, value) for name, value in tensors if value.ndim < 1 or len(value) != 1]:
        name, value = long[0]
        return f"{name} of a prompt has shape {tuple(value.shape)}. Expected one row, (1, ...), as a batch has it."
    return None


def without_encoder(pipe: Any, prompts: Sequence[Prompt]) -> str | None:  # noqa: ANN401
    """What to do where a pipeline cannot read these prompts."""
    encoders = [part for name, part in vars(pipe).items() if name.startswith("text_encoder")]
    if not encoders or any(part is not None for part in encoders) or not all(isinstance(p, str) for p in prompts):
        return None
    return (
        f"this {type(pipe).__name__} has no text encoder, so it cannot read prompts. Give what its call takes in their "
        "place, a mapping per prompt with tensors of one row: prompts=[{'prompt_embeds': tensor, ...}, ...]."
    )


def check_prompts(pipe: Any, prompts: Sequence[Any]) -> None:  # noqa: ANN401
    """Raises ProfileError, or what the pipeline's tokenizers raise, for the first prompt that cannot be drawn."""
    components = getattr(pipe, "components", {})
    tokenizers = [part for name, part in components.items() if name.startswith("tokenizer") and callable(part)]
    for k, prompt in enumerate(prompts):
        if isinstance(prompt, Mapping):
            continue
        name = f"prompt {k} (counted from 0) of {len(prompts)}"
        if not isinstance(prompt, str) or not prompt.strip():
            raise ProfileError(f"{name} is {prompt!r:.80}. Expected a text that is not empty.")
        for tokenizer in tokenizers:
            try:
                tokenizer(prompt)
            except DicacheError as error:
                raise type(error)(f"{name}, {prompt!r:.80}, cannot be drawn: {error}") from error
            except (TypeError, ValueError, LookupError) as error:
                raise ProfileError(f"{name}, {prompt!r:.80}, cannot be read: {error}.") from error


@contextmanager
def silenced(pipe: Any) -> Iterator[None]:  # noqa: ANN401
    """With the progress bar of a diffusers pipeline off; it is what it was afterwards."""
    if not callable(getattr(pipe, "set_progress_bar_config", None)):
        yield
        return
    before = vars(pipe).get("_progress_bar_config")
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
