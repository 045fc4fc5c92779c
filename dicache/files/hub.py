"""What a name stands for: a file, a folder that holds one, or a repository of the Hugging Face hub that does.

    profile.json       the file
    shared/            shared/profile.json
    user/repo          profile.json of that repository, downloaded once; user/repo@v1 for a revision of it

A name of the shape of a repository's is one only where nothing on the disk has it.
"""

import re
from pathlib import Path

from dicache.files.checked import FileFault, read_json, sibling

_REPOSITORY = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*?)(@(?P<revision>[\w./-]+))?")


def is_of_hub(name: str | Path) -> bool:
    """Whether it is a repository's."""
    text = str(name)
    return bool(_REPOSITORY.fullmatch(text)) and not text.endswith(".json") and not Path(name).exists()


def located(name: str | Path, file: str, key: str) -> Path:
    """The JSON file that a name stands for; `file` is what it is called in folders and repositories, and the arrays
    that it names under `key` come along. Raises FileFault where a repository cannot be had.
    """
    if not is_of_hub(name):
        path = Path(name)
        return path / file if path.is_dir() else path
    match = _REPOSITORY.fullmatch(str(name))
    assert match is not None
    repository, revision = match["repository"], match["revision"]
    facts = _downloaded(repository, revision, file)
    arrays = read_json(facts).content.get(key)
    if isinstance(arrays, dict):
        _downloaded(repository, facts.parent.name, sibling(str(arrays.get("file"))))  # of the same commit
    return facts


def _downloaded(repository: str, revision: str | None, file: str) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    at = "" if revision is None else f" at {revision}"
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise FileFault(
            f"there is no such file, and {file} of the hub's repository {repository}{at} is not on this machine: {why}",
            "Download it where there is a network, `hf download REPOSITORY --local-dir FOLDER`, and give the folder.",
        ) from error
    except EntryNotFoundError as error:
        raise FileFault(
            f"the hub's repository {repository}{at} holds no {file}", f"Expected one with {file}, as share() writes it."
        ) from error
    except (OSError, ValueError) as error:
        raise FileFault(
            f"{file} of the hub's repository {repository}{at} cannot be had: {_brief(error)}",
            f"Look whether it is there and may be read: {constants.ENDPOINT}/{repository}.",
        ) from error


def _brief(error: Exception) -> str:
    """The hub's messages have several lines, the first of which are about the request."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}, {lines[-1] if len(lines) == 1 else ' '.join(lines[:2])}"[:300]
