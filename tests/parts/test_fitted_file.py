"""The file of fitted coefficients: what was saved is loaded, and nothing else is."""

import hashlib
import json
import pickle
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file, save_file

import dicache
from dicache import presets
from dicache.approximators.fitted.coefficients import Fitted
from dicache.errors import FittedError
from dicache.reference.weights import MODEL
from dicache.sites import Sublayers
from helpers.fits import GATES, PLACES, STEPS, fitted
from pipelines.tiny import PIPELINES, make_flux

FLUX = PIPELINES["two streams and one (flux)"]


@pytest.fixture
def file(tmp_path) -> Path:
    fitted("low_rank", Sublayers()).save(tmp_path / "found.safetensors")
    return tmp_path / "found.safetensors"


@pytest.mark.parametrize(("kind", "sites"), [*PLACES, GATES])
def test_what_was_saved_is_loaded(kind, sites, tmp_path):
    coefficients = fitted(kind, sites)
    coefficients.save(tmp_path / "found")
    again = dicache.Fitted.load(tmp_path / "found")
    assert same(coefficients, again) and again.sites == coefficients.sites and again.probe == coefficients.probe
    assert [p.name for p in tmp_path.iterdir()] == ["found"]


def same(one: Fitted, two: Fitted) -> bool:
    return (
        one.about == two.about
        and one.coefficients.keys() == two.coefficients.keys()
        and all(
            torch.equal(t, two.coefficients[site][n])
            for site, named in one.coefficients.items()
            for n, t in named.items()
        )
    )


def refused(path: Path) -> None:
    with pytest.raises(FittedError, match="no fitted coefficients"):
        Fitted.load(path)


@given(data=st.binary(max_size=300), headed=st.booleans())
def test_bytes_of_anything_else_are_refused(data, headed, tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "any"
    path.write_bytes(len(data).to_bytes(8, "little") + data if headed else data)
    refused(path)


@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_refused(share, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "found"
    fitted("low_rank", Sublayers()).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path)


@given(position=st.floats(0, 0.9999), value=st.integers(1, 255), header=st.booleans())
def test_a_file_with_one_byte_changed_is_refused_or_the_same(position, value, header, tmp_path_factory):
    path = tmp_path_factory.mktemp("flip") / "found"
    coefficients = fitted("low_rank", Sublayers())
    coefficients.save(path)
    content = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little") if header else len(content)
    content[int(position * end)] ^= value
    path.write_bytes(content)
    try:
        assert same(Fitted.load(path), coefficients)  # spaces after the header may be anything that JSON skips
    except FittedError as error:
        assert "no fitted coefficients" in str(error)


KINDS = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
}


def checksum(text: str, tensors) -> str:
    """As the file's format has it, written down a second time."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {KINDS[tensor.dtype]} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def forged(path: Path, change) -> None:
    """Rewrite a file with its header's fields and tensors changed, and a checksum that fits."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        fields = json.loads(f.metadata()["dicache.fitted"])
    tensors = load_file(path)
    text = change(fields, tensors)
    text = json.dumps(fields) if text is None else text
    save_file(tensors, path, {"dicache.fitted": text, "sha256": checksum(text, tensors)})


def setting(name, value):
    def change(fields, tensors):
        fields[name] = value

    return change


def tensor(change):
    def changed(fields, tensors):
        name = next(iter(tensors))
        tensors[name] = change(tensors[name])

    return changed


HOSTILE = {
    "kind": setting("kind", "__class__"),
    "version": setting("format", 2),
    "no steps": setting("sigmas", []),
    "steps of text": setting("sigmas", "abc"),
    "endless steps": setting("sigmas", [float("inf")]),
    "huge steps": setting("sigmas", [10**400]),
    "no model": setting("model", None),
    "negative gap": setting("longest", -1),
    "rank of text": setting("rank", "5"),
    "rank too small": setting("rank", 2),
    "sites": setting("sites", {"name": "Drafted"}),
    "options of sites": setting("sites", {"name": "Spans", "size": 0}),
    "sites that are a list": setting("sites", []),
    "an unknown field": setting("run", "rm"),
    "true": lambda fields, tensors: "true",
    "a number": lambda fields, tensors: "3",
    "a string": lambda fields, tensors: '"x"',
    "bfloat16": tensor(lambda t: t.bfloat16()),
    "fp8": tensor(lambda t: t.to(torch.float8_e4m3fn)),
    "a field less": lambda fields, tensors: (fields.pop("ridge"), None)[1],
    "a list": lambda fields, tensors: "[]",
    "deep": lambda fields, tensors: "[" * 100_000,
    "no json": lambda fields, tensors: "{",
    "not finite": tensor(lambda t: t * torch.nan),
    "another type": tensor(lambda t: t.half()),
    "another shape": tensor(lambda t: t[:, :-1].contiguous()),
    "another rank": tensor(lambda t: t[None].contiguous()),
    "no tensors": lambda fields, tensors: tensors.clear(),
    "one less": lambda fields, tensors: (tensors.pop(next(iter(tensors))), None)[1],
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_forged_header_is_refused(change, file):
    forged(file, change)
    refused(file)


def test_coefficients_for_other_channels_are_refused_where_they_are_used(file):
    forged(file, tensor(lambda t: t[:-1].contiguous()))
    with (
        dicache.enable(pipe := make_flux(), config=presets.icc(Fitted.load(file))),
        pytest.raises(FittedError, match="channels"),
    ):
        FLUX.draw(pipe, [1], STEPS)


def test_an_honest_rewrite_is_not(file):
    forged(file, lambda fields, tensors: None)
    assert same(Fitted.load(file), fitted("low_rank", Sublayers()))


def test_a_missing_file_a_folder_a_pickle_and_other_weights_are_refused_and_so_is_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "pickle").write_bytes(pickle.dumps({"ridge": 1}))
    for path in (tmp_path / "none", tmp_path, tmp_path / "pickle", MODEL):
        refused(path)
    with pytest.raises(FittedError, match="cannot be written"):
        fitted("low_rank", Sublayers()).save(tmp_path / "nowhere" / "found")
