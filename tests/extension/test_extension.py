"""The fused operations: every path equals the plain-torch reference in float64, whatever the layout and the threads."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicache.errors import ArgumentError, ExtensionError
from dicache.extension import build, choice, combine, native, reference, residual_sums
from dicache.tensors.norms import alignment, cosine, length, relative_change, relative_change_l1, root_mean_square

ROOT = Path(__file__).resolve().parents[2]
NO_NORMS = {
    "end_of_step.py",
    "moments.py",
    "schedule_measurements.py",
    "learning_to_cache.py",
    "play.py",
    "prediction.py",
}
"""Files that add up what sites spent or how a scheduler mixes data and noise (a few numbers that never were on the
device), or work offline: with magnitudes per channel, table cells, or a loss that gradients flow through.
"""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BOUND = 4e-7
"""Error of a sum over the sum of its terms' magnitudes: half a float32 step for the result, the rest for adding up."""
SHAPES = [
    (0, 5),
    (3, 0),
    (1, 1),
    (4,),
    (1, 7),
    (2, 3, 31),
    (3, 17),
    (2, 1, 129),
    (2, 4, 2047),
    (1, 16385),
    (3, 33, 1025),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where a library of these sources is: the installed one, or one built for the tests."""
    try:
        native.load("cpu")
        return Path(native.__file__).parent
    except native.Unavailable:
        built = tmp_path_factory.mktemp("native")
    try:
        build.cpu(built)
    except build.BuildError as error:
        pytest.skip(str(error))
    return built


@pytest.fixture(scope="session")
def paths(folder):
    """Every path this processor has."""
    library = native.load("cpu", folder)
    return {name: native.Native(library, name) for name in native.paths(library)}


def run_sums(path, a, b):
    return path.residual_sums(a, b, out := torch.full((len(a), 6), torch.nan)) or out


def run_combine(path, terms, coefficients, dtype):
    return path.combine(terms, coefficients, out := torch.full(terms[0].shape, torch.nan, dtype=dtype)) or out


def exact(a, b):
    """The sums in float64, (B, 6), and those of the terms' magnitudes."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    terms = torch.stack([(a - b).abs(), b.abs(), (a - b) ** 2, b * b, a * b, a * a])
    return terms.sum(2).T, terms.abs().sum(2).T


def assert_sums(out, a, b):
    wanted, magnitude = exact(a, b)
    assert out.dtype == torch.float32 and out.shape == wanted.shape
    assert bool(((out - wanted).abs() <= BOUND * magnitude).all()), (out - wanted).abs().max() / magnitude.max()


def layouts(shape, dtype):
    """Pairs of one shape: contiguous, misaligned, tokens and channels at a stride, axes swapped, samples apart."""

    def made(*size):
        return torch.randn(size).to(dtype)

    n = torch.Size(shape).numel()
    yield made(*shape), made(*shape)
    yield made(n + 1)[1:].view(shape), made(n + 3)[3:].view(shape)
    yield made(2 * shape[0], *shape[1:])[::2], made(*shape)
    if len(shape) > 1:
        yield made(*shape[:-1], 2 * shape[-1])[..., ::2], made(*shape)
        yield made(shape[0], 3 * shape[1], *shape[2:])[:, ::3], made(shape[0], 2 * shape[1], *shape[2:])[:, ::2]
        yield made(*shape[:-1], shape[-1] + 3)[..., :-3], made(*shape)
        yield made(1, *shape[1:]).expand(shape), made(*shape)
    if len(shape) > 2:
        swapped = (shape[0], *shape[:0:-1])
        yield made(*swapped).permute(0, *range(len(shape) - 1, 0, -1)), made(*shape)
        yield tuple(made(*swapped).permute(0, *range(len(shape) - 1, 0, -1)) for _ in range(2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if torch.Size(shape).numel()], ids=str)
def test_sums_equal_those_in_float64_on_every_path_and_layout(paths, shape, dtype):
    torch.manual_seed(0)
    for a, b in layouts(shape, dtype):
        for path in paths.values():
            assert_sums(
                run_sums(path, a, b), a.view(a.shape) if a.ndim > 1 else a[:, None], b if b.ndim > 1 else b[:, None]
            )


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float64))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_users_call_takes_every_shape(shape, dtype):
    a, b = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    wide = (shape[0], torch.Size(shape[1:]).numel())
    assert_sums(residual_sums(a, b), a.view(wide), b.view(wide))
    assert_sums(reference.residual_sums(a, b), a.view(wide), b.view(wide))
    out = torch.full((shape[0], 6), torch.nan)
    assert residual_sums(a, b, out=out) is out and torch.equal(out, residual_sums(a, b))


@given(st.integers(1, 3), st.integers(1, 40), st.integers(200, 700), st.integers(1, 3), st.integers(0, 3))
def test_sums_of_odd_token_views(paths, batch, tokens, channels, every, offset):
    store = torch.randn(offset + batch * tokens * every * channels)
    a = store[offset:].view(batch, tokens * every, channels)[:, ::every]
    for path in paths.values():
        assert_sums(run_sums(path, a, b := torch.randn(a.shape)), a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_samples_sums_depend_neither_on_threads_nor_on_its_batch_mates_nor_on_alignment(paths, dtype):
    a, b = torch.randn(5, 331, 301).to(dtype), torch.randn(5, 331, 301).to(dtype)
    for path in paths.values():
        alone = run_sums(path, a, b)
        torch.set_num_threads(3)
        try:
            assert torch.equal(run_sums(path, a, b), alone)
        finally:
            torch.set_num_threads(1)
        mates = torch.cat([a[3:4], torch.full_like(a, torch.nan)]), torch.cat([b[3:4], b])
        assert torch.equal(run_sums(path, *mates)[0], alone[3])
        shifted = torch.cat([a.flatten()[:1], a[3].flatten()])[1:].view(1, 331, 301)
        assert torch.equal(run_sums(path, shifted, b[3:4])[0], alone[3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 16, 2051])
def test_what_is_not_finite_comes_out_not_finite(paths, dtype, bad, at):
    a, b = torch.randn(3, 2052).to(dtype), torch.randn(3, 2052).to(dtype)
    a[1, at] = bad
    b[2, at] = bad
    for path in paths.values():
        sums = run_sums(path, a, b)
        assert sums[0].isfinite().all()
        assert sums[1].isfinite().tolist() == [False, True, False, True, False, False]
        assert sums[2].isfinite().tolist() == [False, False, False, False, False, True]
        assert torch.equal(sums.isnan(), reference.residual_sums(a, b).isnan())


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(2, 3), torch.ones(3, 2), "one shape"),
        (torch.ones(()), torch.ones(()), "batch axis"),
        (torch.ones(2, 3), torch.ones(2, 3).half(), "one dtype"),
        (torch.ones(2, 3).int(), torch.ones(2, 3).int(), "one dtype"),
        (torch.ones(2, 3), torch.ones(2, 3, device="meta"), "one device"),
        (torch.ones(2, 3).to_sparse(), torch.ones(2, 3).to_sparse(), "dense"),
    ],
)
def test_wrong_operands_are_refused_by_name(a, b, message):
    with pytest.raises(ArgumentError, match=message):
        residual_sums(a, b)
    with pytest.raises(ArgumentError, match=message):
        combine([a, b], torch.ones(*a.shape[:1], 2))


def test_a_wrong_out_is_refused():
    store = torch.zeros(40)
    a, b = store[:24].view(4, 6), torch.ones(4, 6)
    for out in (torch.ones(4, 5), torch.ones(4, 6).double(), torch.ones(6, 4).T, torch.ones(4, 6, device="meta")):
        with pytest.raises(ArgumentError, match="Expected a contiguous float32"):
            residual_sums(a, b, out=out)
    for out in (a, store[16:].view(4, 6)):
        with pytest.raises(ArgumentError, match="overlaps"):
            residual_sums(a, b, out=out)
    assert torch.equal(store, torch.zeros(40))


def test_wrong_coefficients_are_refused():
    terms = [torch.ones(2, 3), torch.ones(2, 3)]
    for wrong in (torch.ones(2, 3), torch.ones(1, 2), torch.ones(2, 2).long(), torch.ones(2, 2, device="meta")):
        with pytest.raises(ArgumentError, match="coefficients"):
            combine(terms, wrong)
    for wrong in ([], terms * 9):
        with pytest.raises(ArgumentError, match="1 to 16"):
            combine(wrong, torch.ones(2, len(wrong)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 33), (2, 16385)], ids=str)
@pytest.mark.parametrize("to_float", [False, True])
def test_combining_equals_float64_rounded_once(paths, shape, dtype, to_float):
    torch.manual_seed(0)
    coefficients = torch.randn(shape[0], 4, dtype=torch.float64)
    coefficients[0, 1] = 0
    terms = [a for pair in list(layouts(shape, dtype))[:2] for a in pair]
    terms[1][0] = torch.nan
    wide = torch.stack([torch.nan_to_num(t.double()) for t in terms], -1)
    weighted = wide * coefficients.float().double().view(-1, *[1] * (len(shape) - 1), 4)
    out_dtype = torch.float32 if to_float else dtype
    for path in (*paths.values(), reference.Eager()):
        out = run_combine(path, terms, coefficients, out_dtype)
        slack = weighted.abs().sum(-1) * 3e-7 + weighted.sum(-1).abs() * torch.finfo(out_dtype).eps / 2 + 1e-7
        assert bool(((out.double() - weighted.sum(-1)).abs() <= slack).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_is_read_and_written_as_torch_does(paths, dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)[None]
    factors = torch.tensor([0.3711, 1.0, 2.0**-12, 3.0])
    for path in paths.values():
        for factor in factors:
            row = factor.view(1, 1)
            wide, narrow = (run_combine(path, [every], row, d) for d in (torch.float32, dtype))
            assert torch.equal(wide.nan_to_num(7e7), (every.float() * factor).nan_to_num(7e7))
            assert torch.equal(narrow.nan_to_num(7.0), (every.float() * factor).to(dtype).nan_to_num(7.0))
            assert torch.equal(narrow.isnan(), (every.float() * factor).to(dtype).isnan())


def test_a_row_with_one_coefficient_of_1_is_a_bitwise_copy(paths):
    a, b = torch.randn(3, 40), torch.full((3, 40), torch.nan)
    a[0, 0] = -0.0
    for path in paths.values():
        copied = run_combine(path, [b, a], torch.tensor([[0.0, 1.0]] * 3), torch.float32)
        assert torch.equal(copied.view(torch.int32), a.view(torch.int32))
        assert not run_combine(path, [b], torch.zeros(3, 1), torch.float32).any()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_torch_accepts_the_operations(dtype):
    a, b = torch.randn(2, 3, 5).to(dtype), torch.randn(2, 3, 5).to(dtype)
    torch.library.opcheck(torch.ops.dicache.residual_sums.default, (a, b))
    torch.library.opcheck(torch.ops.dicache.residual_sums.default, (a[:, ::2], b[:, ::2]))
    torch.library.opcheck(torch.ops.dicache.residual_sums_out.default, (a, b, torch.zeros(2, 6)))
    for to_float in (False, True):
        torch.library.opcheck(torch.ops.dicache.combine.default, ([a, b], torch.randn(2, 2), to_float))


def test_compiles_as_one_graph():
    def step(a, b, c):
        return relative_change(combine([a, b], c), b) + residual_sums(a, b)[:, 0]

    a, b, c = torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.randn(2, 2)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(a, b, c), step(a, b, c))
    assert torch.equal(compiled(a[:1, :2], b[:1, :2], c[:1]), step(a[:1, :2], b[:1, :2], c[:1]))


def test_norms_follow_from_the_sums():
    a, b = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    x, y = a.double().flatten(1), b.double().flatten(1)
    fitted = torch.linalg.lstsq(y[:, :, None], x[:, :, None]).solution[:, 0, 0]
    angle = torch.nn.functional.cosine_similarity(x, y)
    for got, wanted in (
        (relative_change(a, b), (x - y).norm(dim=1) / y.norm(dim=1)),
        (relative_change_l1(a, b), (x - y).abs().sum(1) / y.abs().sum(1)),
        (cosine(a, b), angle),
        (alignment(a, b).coefficient, fitted),
        (alignment(a, b).trust, angle**2),
        (length(a), x.norm(dim=1)),
        (root_mean_square(a), x.square().mean(1).sqrt()),
    ):
        torch.testing.assert_close(got, wanted.float(), rtol=1e-5, atol=1e-6)


def test_no_other_place_computes_norms_with_eager_expressions():
    files = [
        p for f in ("dicache", "probes", "estimators") for p in (ROOT / f).rglob("*.py") if "training" not in p.parts
    ]
    banned = {"norm", "vector_norm", "cosine_similarity", "square"}
    assert len(files) > 50
    for path in files:
        if path.name in NO_NORMS:
            continue
        called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        found = {f.attr for f in called if isinstance(f, ast.Attribute)} & banned
        summed = [
            f for f in called if isinstance(f, ast.Attribute) and f.attr in ("sum", "mean") and _magnitudes(f.value)
        ]
        assert not found and not summed, (
            f"{path} computes a norm itself: use dicache.tensors.norms ({found or 'sum of |x|'})"
        )


def _magnitudes(node):
    """Whether an expression is x.abs() or x ** 2 of a tensor; of complex or host numbers it would be refused too."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "abs"
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, cwd=ROOT
    )


def test_the_environment_chooses_and_a_wrong_wish_is_an_error():
    told = "from dicache.extension import describe; print(describe())"
    assert "cpu: eager (torch) (DICACHE_EXTENSION=eager)" in python(told, DICACHE_EXTENSION="eager").stdout
    assert "means nothing. Expected one of auto" in python(told, DICACHE_EXTENSION="fast").stderr


def test_without_a_library_plain_torch_runs_and_says_why(monkeypatch):
    def missing():
        raise native.Unavailable("it is not built")

    monkeypatch.setitem(choice._OFFERS, "cpu", {"native": missing})
    monkeypatch.setenv(choice.VARIABLE, "auto")
    choice.choose.cache_clear()
    try:
        a, b = torch.randn(2, 9), torch.randn(2, 9)
        assert choice.choose("cpu").path.name == "eager (torch)" and "it is not built" in choice.describe()
        assert torch.equal(residual_sums(a, b), reference.residual_sums(a, b))
        monkeypatch.setenv(choice.VARIABLE, "native")
        choice.choose.cache_clear()
        with pytest.raises(ExtensionError, match="it is not built"):
            residual_sums(a, b)
    finally:
        choice.choose.cache_clear()


def test_a_library_that_is_missing_or_broken_is_not_used(tmp_path):
    with pytest.raises(native.Unavailable, match="not built"):
        native.load("cpu", tmp_path)
    (tmp_path / build.NAMES["cpu"]).write_bytes(b"no library")
    with pytest.raises(native.Unavailable, match="does not load"):
        native.load("cpu", tmp_path)


def test_a_library_of_other_sources_is_not_used(folder, monkeypatch):
    monkeypatch.setattr(native, "digest", lambda kind: "other")
    with pytest.raises(native.Unavailable, match="other sources"):
        native.load("cpu", folder)


def test_without_a_compiler_the_build_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler"):
        build.cpu(tmp_path)


def test_the_library_is_clean_under_sanitizers(tmp_path):
    try:
        driver = build.cpu(tmp_path, sanitize=True)
    except build.BuildError as error:
        pytest.skip(f"no compiler with sanitizers: {str(error)[:200]}")
    done = subprocess.run([driver], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "0 failures" in done.stdout, done.stdout + done.stderr
