"""Options that several commands share, as dataclasses. A command takes one argument for each, and `spread` makes of it
a function that takes their fields, which is what the command line shows.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from dicache.errors import SettingsError
from dicache.files.settings_file import PIPELINE, check_known, read_file


class Dtype(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Offload(StrEnum):
    MODEL = "model"
    GROUP = "group"
    SEQUENTIAL = "sequential"


def _take(context: typer.Context, settings: Path | None) -> Path | None:
    """What a file says of the pipeline stands where an option would and is not given. Raises SettingsError for names
    that are no options.
    """
    if settings is None:
        return None
    table = read_file(settings).get(PIPELINE, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{PIPELINE} is {table!r:.60} in {settings}. Expected a table, as [{PIPELINE}] begins one.")
    check_known(table, IN_FILES, f"no option of a pipeline, and stands in {settings}")
    context.default_map = {name: _option(name, value, settings) for name, value in table.items()}
    return settings


def _option(name: str, value: Any, settings: Path) -> Any:  # noqa: ANN401
    """As the command line takes it; paths begin at the file's folder where there is such a file."""
    if name == "argument":
        if not isinstance(value, dict):
            raise SettingsError(f"argument is {value!r:.60} in {settings}. Expected a table, as {{num_frames = 49}}.")
        return [f"{key}={each if isinstance(each, str) else json.dumps(each)}" for key, each in value.items()]
    if name == "model" and (settings.parent / str(value)).exists():
        return str(settings.parent / str(value))
    if name == "lora":
        return [_lora(str(each), settings.parent) for each in (value if isinstance(value, list) else [value])]
    return value


def _lora(text: str, folder: Path) -> str:
    path, equals, scale = text.rpartition("=") if "=" in text else (text, "", "")
    return f"{folder / path}{equals}{scale}" if (folder / path).exists() else text


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which pipeline."""

    settings: Annotated[
        Path | None,
        typer.Option(
            help="A file of settings, TOML or JSON; options that are given win.", callback=_take, is_eager=True
        ),
    ] = None

    model: Annotated[
        str | None,
        typer.Option(help="A folder that save_pretrained wrote, or a repository; without, the model that ships."),
    ] = None
    variant: Annotated[str | None, typer.Option(help="Of the repository's weights, as fp16.")] = None
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the weights; without, bfloat16 on a GPU and float32 on a CPU.")
    ] = None
    device: Annotated[str | None, typer.Option(help="As cuda:1; without, a GPU if there is one.")] = None
    offload: Annotated[
        Offload | None, typer.Option(help="What waits in main memory: whole models, groups of blocks, or every layer.")
    ] = None
    module: Annotated[
        list[str] | None,
        typer.Option(help="A Python module, by name, in which classes of the pipeline are your own; repeatable."),
    ] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA's file, folder or repository, as style.safetensors=0.8; repeatable."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PipelineCall:
    """How it is called."""

    steps: Annotated[
        int | None, typer.Option(min=2, help="Denoising steps; without, the pipeline's own (of what ships, 28).")
    ] = None
    guidance: Annotated[
        float | None,
        typer.Option(min=0.0, help="Guidance scale, 1 for none; without, the pipeline's own (of what ships, 3.5)."),
    ] = None
    negative_prompt: Annotated[str | None, typer.Option(help="What to keep away from, the same for all.")] = None
    height: Annotated[int | None, typer.Option(min=1, help="Pixels; without, the pipeline's own.")] = None
    width: Annotated[int | None, typer.Option(min=1, help="Pixels; without, the pipeline's own.")] = None
    argument: Annotated[
        list[str] | None,
        typer.Option(
            help="Another argument of the pipeline's call, as num_frames=49 or image=@photo.png: JSON, a text, or a "
            "picture's file; repeatable."
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of the first prompt; the next one's is one more.")] = 0
    batch: Annotated[int, typer.Option(min=1, help="Samples drawn at once.")] = 8


IN_FILES = tuple(field.name for kind in (Source, PipelineCall) for field in fields(kind) if field.name != "settings")
"""What the table of a file of settings may hold."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is drawn."""

    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; repeatable.")] = None
    prompts: Annotated[Path | None, typer.Option(help="A text file in UTF-8, one prompt a line.")] = None
    first: Annotated[int | None, typer.Option(min=1, help="Only so many of the prompts.")] = None


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its dataclasses in their place."""
    hints = get_type_hints(command, include_extras=True)
    signature, parameters = inspect.signature(command), list[inspect.Parameter]()
    groups = {name: hints[name] for name in signature.parameters if is_dataclass(hints[name])}
    for name, parameter in signature.parameters.items():
        alone = [parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)]
        parameters += _fields(groups[name]) if name in groups else alone

    def call(**arguments: Any) -> None:  # noqa: ANN401
        made = {
            name: kind(**{field.name: arguments.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**arguments, **made)

    call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
    call.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _fields(kind: Any) -> list[inspect.Parameter]:  # noqa: ANN401
    hints, keyword = get_type_hints(kind, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(
            field.name,
            keyword,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]
