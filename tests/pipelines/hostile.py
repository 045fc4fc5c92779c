"""Files that must not be read as what they claim to be."""

import pickle

import pytest


def refuses_what_is_no_file_of_its_kind(load, error, message, saved, folder):
    """A pickle, a link, deep nesting, nothing at all and a folder: one clear error each, and nothing runs."""

    class Bomb:
        def __reduce__(self):
            return (folder.joinpath("ran").touch, ())

    (folder / "bomb.json").write_bytes(pickle.dumps(Bomb()))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "link.json").symlink_to(saved)
    for name in ("bomb.json", "deep.json", "link.json", "nothing.json", "."):
        with pytest.raises(error, match=message):
            load(folder / name)
    assert not (folder / "ran").exists()
