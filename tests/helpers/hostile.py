"""Files that must not be read as what they claim to be."""

import pickle

import pytest


def refuses_what_is_no_file_of_its_kind(load, error, message, saved, folder):
    """A pickle, deep nesting, nothing at all, a folder and links to nothing, to itself and to a folder: one clear error
    each, and nothing runs. A link to a plain file is read, as model hubs lay files out.
    """

    class Bomb:
        def __reduce__(self):
            return (folder.joinpath("ran").touch, ())

    (folder / "bomb.json").write_bytes(pickle.dumps(Bomb()))
    (folder / "deep.json").write_text("[" * 100_000)
    for name, target in {"lost": folder / "nothing", "loop": folder / "loop.json", "folder": folder}.items():
        (folder / f"{name}.json").symlink_to(target)
    (folder / "link.json").symlink_to(saved)
    assert load(folder / "link.json") is not None
    for name in ("bomb.json", "deep.json", "lost.json", "loop.json", "folder.json", "nothing.json", "."):
        with pytest.raises(error, match=message):
            load(folder / name)
    assert not (folder / "ran").exists()
