"""The pipeline that a command is about: the one that ships, or `DiffusionPipeline.from_pretrained`, and what it is
called with. What diffusers and a pipeline refuse is one clear line.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers

from dicache.cli.options import Offload, PipelineCall, Source
from dicache.errors import DicacheError, ModeError, PipelineError
from dicache.hosts.pipeline_call import guided, taken_by
from dicache.reference import assembly
from dicache.reference.assembly import GUIDANCE, STEPS

LONGEST = 300
"""Characters of a message of others that are shown."""
OPTIONS = {
    "prompt": "--prompt",
    "num_inference_steps": "--steps",
    "generator": "--seed",
    "height": "--height",
    "width": "--width",
    "negative_prompt": "--negative-prompt",
}
_OWN = "has not been imported"
"""Diffusers' words for a component whose class it cannot find."""
OWN = (
    *("output_type", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "callback", "callback_steps"),
    "return_dict",
)


class Ready(NamedTuple):
    """A pipeline, and what to call it with."""

    pipe: Any
    steps: int
    call: dict[str, Any]
    """Further arguments of its call: guidance, negative prompt, size."""
    ships: bool
    """Whether it is the model that ships."""


def ready(source: Source, call: PipelineCall) -> Ready:
    """Raises PipelineError for what cannot be loaded or placed, ModeError for arguments that its call does not take."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipe = assembly.pipeline() if source.model is None else _loaded(source)
    pipe.set_progress_bar_config(disable=True)
    _move(pipe, source)
    ships = source.model is None
    steps = call.steps or (STEPS if ships else _default_steps(pipe))
    guidance = GUIDANCE if ships and call.guidance is None else call.guidance
    return Ready(pipe, steps, arguments_of(pipe, call, guidance), ships)


def arguments_of(pipe: Any, call: PipelineCall, guidance: float | None) -> dict[str, Any]:  # noqa: ANN401
    """What the options say, by the names of this pipeline. Raises ModeError for those that it does not take."""
    taken = taken_by(pipe)
    if "prompt" not in taken:
        raise ModeError(
            f"{type(pipe).__name__} takes no prompt, so the command line cannot draw with it. Use dicache.enable in "
            "Python."
        )
    wanted: dict[str, Any] = {"height": call.height, "width": call.width, "negative_prompt": call.negative_prompt}
    if guidance is not None:
        wanted |= guided(pipe, guidance, call.negative_prompt)
    arguments = {name: value for name, value in wanted.items() if value is not None}
    arguments |= dict(_argument(text) for text in call.argument or [])
    if strange := [name for name in arguments if name not in taken]:
        raise ModeError(
            f"{type(pipe).__name__} takes no {strange[0]}. It takes {', '.join(sorted(set(taken) - set(OWN)))}."
        )
    return arguments


@contextmanager
def refusals_of(pipe: Any) -> Iterator[None]:  # noqa: ANN401
    """What a pipeline refuses, or has no memory for, as a PipelineError."""
    try:
        yield
    except DicacheError:
        raise
    except torch.OutOfMemoryError as error:
        raise PipelineError(
            "there was not enough memory on the device. Draw fewer at once (--batch 1), smaller "
            "(--height, --width), or with --offload model."
        ) from error
    except (ValueError, TypeError) as error:
        raise PipelineError(f"{type(pipe).__name__} refused what it was called with: {brief(error)}") from error
    except RuntimeError as error:  # shapes that do not fit, mostly
        raise PipelineError(
            f"{type(pipe).__name__} failed in its call: {brief(error)}. If it takes other sizes than its "
            "own, give them: --height, --width, --argument num_frames=17."
        ) from error


def brief(error: BaseException) -> str:
    """In one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ModeError(f"--argument {text!r:.80} is none. Expected NAME=VALUE, as num_frames=49.")
    if name in OPTIONS:
        raise ModeError(f"--argument {name}=... is an option of its own. Use {OPTIONS[name]}.")
    if name in OWN:
        raise ModeError(f"--argument {name}=... is for dicache to give. Leave it out.")
    if value.startswith("@"):
        return name, _picture(Path(value[1:]))
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _picture(path: Path) -> Any:  # noqa: ANN401
    from PIL import Image

    try:
        return Image.open(path).convert("RGB")
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} is no picture that can be read: {brief(error)}") from error


def _default_steps(pipe: Any) -> int:  # noqa: ANN401
    parameter = taken_by(pipe).get("num_inference_steps")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else STEPS


def _loaded(source: Source) -> Any:  # noqa: ANN401
    name = str(source.model)
    if Path(name).is_file():
        raise PipelineError(f"{name} is a file. Expected a folder that a pipeline's save_pretrained wrote.")
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise PipelineError(
            f"there is no folder {name}. Expected one that a pipeline's save_pretrained wrote, or a repository's name, "
            "as black-forest-labs/FLUX.1-dev."
        )
    dtype = source.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    options = {"dtype": getattr(torch, dtype), **({"variant": source.variant} if source.variant else {})}
    for module in source.module or []:
        try:
            import_module(module)
        except ImportError as error:
            raise PipelineError(f"--module {module} cannot be imported: {brief(error)}") from error
    try:
        return diffusers.DiffusionPipeline.from_pretrained(name, **options)
    except Exception as error:  # whatever a repository's files make diffusers raise
        offline = " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") and not Path(name).is_dir() else ""
        own = " Where classes of it are your own, name their module: --module my_model." if _OWN in str(error) else ""
        raise PipelineError(f"{name} cannot be loaded as a pipeline: {brief(error)}.{own}{offline}") from error


def _move(pipe: Any, source: Source) -> None:  # noqa: ANN401
    """LoRAs first: they are placed with what they are in."""
    device = source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if source.model is None and source.device is None:
        device = "cpu"  # what ships is small
    try:
        _adapt(pipe, source.lora or [])
        if source.offload is None:
            pipe.to(device)
        elif source.offload is Offload.GROUP:
            pipe.enable_group_offload(torch.device(device), num_blocks_per_group=1)
        elif source.offload is Offload.MODEL:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.enable_sequential_cpu_offload(device=device)
    except torch.OutOfMemoryError as error:
        raise PipelineError(f"{type(pipe).__name__} does not fit on {device}. Use --offload model.") from error
    except Exception as error:  # torch, accelerate and peft each have errors of their own for this
        raise PipelineError(f"{type(pipe).__name__} cannot be placed as asked: {brief(error)}") from error


def _adapt(pipe: Any, loras: list[str]) -> None:  # noqa: ANN401
    if not loras:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise PipelineError(f"{type(pipe).__name__} takes no LoRA. Leave out --lora.")
    scales = {}
    for k, text in enumerate(loras):
        path, _, scale = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            scales[f"lora{k}"] = float(scale)
        except ValueError:
            raise PipelineError(
                f"--lora {text} has no scale. Expected FILE=NUMBER, as style.safetensors=0.8."
            ) from None
        where = Path(path)
        options = {"weight_name": where.name} if where.is_file() else {}
        pipe.load_lora_weights(str(where.parent) if where.is_file() else path, adapter_name=f"lora{k}", **options)
    pipe.set_adapters(list(scales), list(scales.values()))
