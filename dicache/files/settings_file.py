"""Settings of `enable` from a file in TOML or JSON, or from a mapping that another reader made: plain values by name.

    error_budget = 0.05
    confidence = 0.9
    profile = "profile.json"

    [pipeline]
    model = "my-pipeline"
    steps = 20

The table `pipeline` is for the command line alone (`dicache.cli.options`): which pipeline, and how it is called. A name
that is no setting is one error, which says the nearest that is. Paths are relative to the file's folder.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dicache.errors import SettingsError
from dicache.files.checked import FileFault, json_of, plain_bytes, refusing

MOST_BYTES = 1 << 20
PIPELINE = "pipeline"
"""The table of the command line."""
PATHS = ("profile", "schedule", "memory")
WORDS = ("nearest",)
"""What stands in the place of a path and is none."""
EXPECTED = "Expected TOML or JSON such as error_budget = 0.05, in a file that ends in .toml or .json."


def read_settings(settings: object, names: Sequence[str]) -> dict[str, Any]:
    """By name, without the command line's. Raises SettingsError for what is neither a file of them nor a mapping, and
    for names that are not among `names`.
    """
    if isinstance(settings, Mapping):
        check_known(settings, names, "no setting")
        return dict(settings)
    if not isinstance(settings, str | Path):
        raise SettingsError(f"settings is a {type(settings).__name__}. Expected the path of a file, or a mapping.")
    path = Path(settings)
    content = read_file(path)
    content.pop(PIPELINE, None)
    check_known(content, names, f"no setting, and stands in {path}")
    return {name: _placed(name, value, path.parent) if name in PATHS else value for name, value in content.items()}


def read_file(path: Path) -> dict[str, Any]:
    """All that stands in it, as it stands there. Raises SettingsError for what is no file of settings."""
    with refusing(SettingsError, f"{path} holds no settings", EXPECTED):
        return _content(path)


def check_known(names: Iterable[object], known_names: Sequence[str], what: str) -> None:
    """Raises SettingsError for the first that is not known: "NAME is {what}", with the nearest that is."""
    for name in names:
        if name not in known_names:
            near = difflib.get_close_matches(str(name), known_names, 1, 0.5)
            meant = f"Did you mean {near[0]}?" if near else f"Expected one of {', '.join(known_names)}."
            raise SettingsError(f"{name!r:.80} is {what}. {meant}")


def _content(path: Path) -> dict[str, Any]:
    data = plain_bytes(path, MOST_BYTES)
    if path.suffix == ".json":
        return dict(json_of(data).content)
    if path.suffix == ".toml":
        return tomllib.loads(data.decode("utf-8-sig"))
    raise FileFault(f"its name ends in {path.suffix!r}")


def _placed(name: str, value: Any, folder: Path) -> Any:  # noqa: ANN401
    """A path, or several, as seen from the file; "user/repository" where no such file is there stays one of the hub."""
    if isinstance(value, list):
        return [_placed(name, each, folder) for each in value]
    if not isinstance(value, str):
        raise SettingsError(f"{name} is {value!r:.60} in the settings. Expected the path of a file as a text.")
    path = folder / value
    of_hub = name != "memory" and value.count("/") == 1 and not Path(value).suffix and not path.exists()
    return value if value in WORDS or of_hub else str(path)
