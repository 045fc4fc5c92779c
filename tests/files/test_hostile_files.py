"""Files from elsewhere: whatever they hold, one clear error or what they say, in memory of twice the file and little
more.
"""

import json
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from dicache.errors import FittedError
from dicache.files.arrays_file import arrays_bytes, arrays_file
from dicache.files.bound_arrays import bound_arrays, read_facts, write_bound
from dicache.files.checked import JSON_BYTES, Fields, FileFault, json_of, plain_bytes, read_json, refusing, sibling
from dicache.files.sealed_arrays import sealed, unsealed

IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
REFUSED = r"^this is refused: .*\. Do that\.$"
MEBI = 1 << 20


def reads(path: Path) -> dict | None:
    """The arrays of a sealed file; None where it is refused with the one error."""
    try:
        with refusing(FittedError, "this is refused", "Do that."), arrays_file(path, 1 << 30) as file:
            unsealed(file, "test")
            return file.arrays()
    except FittedError as error:
        assert str(error).startswith("this is refused: ") and "\n" not in str(error)
        return None


def arrays() -> dict[str, np.ndarray]:
    return {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3), "c": np.zeros(0, np.int64)}


def with_header(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@given(data=st.binary(max_size=200), headed=st.booleans())
def test_bytes_of_anything_are_refused(data, headed, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "any"
    path.write_bytes(with_header(data, data) if headed else data)
    assert reads(path) is None


@IN_ONE_FOLDER
@given(data=st.data())
def test_a_file_that_was_changed_is_refused_or_says_the_same(data, tmp_path):
    path = tmp_path / "any"
    good = bytearray(sealed("test", {"k": 1}, arrays()))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(good[: data.draw(st.none() | st.integers(0, len(good)))])
    read = reads(path)
    assert read is None or all((read[key] == array).all() for key, array in arrays().items())


def test_numbers_of_another_kind_are_other_numbers(tmp_path):
    path = tmp_path / "any"
    good = sealed("test", {"k": 1}, arrays())
    path.write_bytes(good.replace(b'"F64"', b'"I64"', 1))
    assert good.count(b'"F64"') == 1 and reads(path) is None


NUMBERS = st.integers(-2, 40) | st.sampled_from([2**31, 2**62, 2**64, 10**30, -1, True, 1.5, None, "1"])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "U8", "BF16", "F8_E4M3", "F4", "", "I64", 3]),
        "shape": st.lists(NUMBERS, max_size=3) | NUMBERS,
        "data_offsets": st.lists(NUMBERS, max_size=3) | st.just([0, 24]),
    }
)


@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "", "__metadata__"]), ENTRIES | NUMBERS, max_size=3),
    body=st.binary(max_size=40),
)
def test_a_header_that_says_anything_is_refused_or_fits_the_file(header, body, tmp_path_factory):
    path = tmp_path_factory.mktemp("header") / "any"
    path.write_bytes(with_header(header, body))
    try:
        with arrays_file(path, 1 << 20) as file:
            assert sum(array.nbytes for array in file.arrays().values()) == len(body)
    except FileFault as error:
        assert "\n" not in str(error)
    except ValueError as error:  # shapes of no elements that numpy cannot have
        assert "array" in str(error) or "dimension" in str(error)


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "MADE_UP"])
def test_numbers_that_numpy_has_not_are_refused_by_name(kind, tmp_path):
    path = tmp_path / "any"
    path.write_bytes(with_header({"a": {"dtype": kind, "shape": [4], "data_offsets": [0, 8]}}, bytes(8)))
    with arrays_file(path, 100) as file:
        with pytest.raises(FileFault, match=f"'a' holds {kind} numbers"):
            file.array("a")
        with pytest.raises(FileFault, match=f"'a' holds {kind} numbers, not F32"):
            file.check_kinds("F32")


@pytest.mark.parametrize("text", ["true", "[]", '"x"', "3", "null", "[" * 100_000, '{"a": ' * 100_000, "9" * 5000])
def test_facts_that_are_no_object_are_one_error(text, tmp_path):
    (tmp_path / "any.json").write_text(text)
    with pytest.raises(FittedError, match=REFUSED), refusing(FittedError, "this is refused", "Do that."):
        read_json(tmp_path / "any.json")
    with pytest.raises((FileFault, ValueError)):
        json_of(text.encode())


def sparse(path: Path, size: int, start: bytes = b"") -> Path:
    """A file of that size, which takes no room on the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def peak(read) -> int:
    """Bytes of memory that reading takes, and is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(FittedError, match=REFUSED), refusing(FittedError, "this is refused", "Do that."):
            read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_sparse_giants_are_refused_in_little_memory(tmp_path):
    size = 1 << 28
    header = {"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    facts = {"format": "test/1"}
    write_bound(tmp_path / "bound.json", facts, "arrays", arrays_bytes(arrays()))
    sealed_header = {"__metadata__": {"test": "{}", "sha256": "0"}, **header}
    start, sealed_start = with_header(header), with_header(sealed_header)
    reading = [
        lambda: read_json(sparse(tmp_path / "a.json", 1 << 30)),
        lambda: plain_bytes(sparse(tmp_path / "b", 1 << 30), 1 << 20),
        lambda: unsealed_file(sparse(tmp_path / "c", 1 << 30)),
        lambda: unsealed_file(sparse(tmp_path / "d", len(sealed_start) + size, sealed_start)),
        lambda: bound(tmp_path / "bound.json", sparse(tmp_path / "bound.safetensors", len(start) + size, start)),
    ]
    for read in reading:
        assert peak(read) < 20 * MEBI


def unsealed_file(path: Path) -> None:
    with arrays_file(path, 1 << 31) as file:
        unsealed(file, "test")


def bound(path: Path, _: Path) -> None:
    with bound_arrays(path, read_facts(path, "test/1"), "arrays", 1 << 31) as file:
        file.arrays()


@pytest.mark.parametrize(
    "text",
    [
        "[" + "[]," * (JSON_BYTES // 4),
        '{"a":' + '{"b":1},' * (JSON_BYTES // 16),
        "[" + "1," * (JSON_BYTES // 4),
        '["' + "x" * (JSON_BYTES // 2) + '😀"]',
        '["' + "x" * (JSON_BYTES - 10) + '"',
        "[" + "[]," * 390_000,
        "[" + '{"a":{}},' * 129_000,
        "{" + ",".join(f'"{k:x}":{k}.5' for k in range(198_000)),
    ],
    ids=["lists", "objects", "numbers", "a wide letter", "a long string", "some lists", "some objects", "some keys"],
)
def test_json_takes_twice_its_size_and_little_more(text, tmp_path):
    path = tmp_path / "any.json"
    path.write_text(text)
    size = path.stat().st_size
    del text
    assert peak(lambda: read_json(path)) < 2 * size + 64 * MEBI


def test_arrays_are_read_in_their_own_size_and_little_more(tmp_path):
    path = tmp_path / "any"
    path.write_bytes(sealed("test", {}, {"a": np.zeros(4 * MEBI, np.float64)}))
    tracemalloc.start()
    assert reads(path) is not None
    assert tracemalloc.get_traced_memory()[1] < 40 * MEBI
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["../a.safetensors", "/a.safetensors", "a\\b.safetensors", "a.pickle", "", "a" * 999])
def test_only_a_file_of_the_same_folder_is_named(name):
    with pytest.raises(FileFault, match="not the name of a safetensors file in the same folder"):
        sibling(name)


FIELDS = Fields({"text": "a", "number": 1.5, "count": 3, "flag": True, "none": None, "list": [1, "a"], "inf": 1e999})


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (lambda: FIELDS.text("count"), "'count' is missing or of another kind"),
        (lambda: FIELDS.number("flag"), "'flag' is missing or of another kind"),
        (lambda: FIELDS.number("inf"), "'inf' is .* not a finite number"),
        (lambda: FIELDS.number("number", 2.0), "'number' is 1.5, not a finite number from 2 on"),
        (lambda: FIELDS.integer("number"), "'number' is missing"),
        (lambda: FIELDS.integer("flag"), "'flag' is missing"),
        (lambda: FIELDS.integer("count", 4, 5), "'count' is 3, not from 4 to 5"),
        (lambda: FIELDS.numbers("list"), "'list' are not all finite numbers"),
        (lambda: FIELDS.texts("list"), "'list' are not all strings"),
        (lambda: FIELDS.each("list"), "'list' is not a list of objects"),
        (lambda: FIELDS.fields("nowhere"), "'nowhere' is missing"),
        (lambda: Fields({"a": 10**400}).number("a"), "'a' is .* not a finite number"),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named(take, message):
    with pytest.raises(FileFault, match=message):
        take()


def test_fields_that_are_what_they_should_be_are_taken():
    assert (FIELDS.text("text"), FIELDS.number("count"), FIELDS.integer("count", 3, 3)) == ("a", 3.0, 3)
    assert FIELDS.has("flag") and not FIELDS.has("none") and not FIELDS.has("nowhere")
