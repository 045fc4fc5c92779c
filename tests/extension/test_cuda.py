"""The CUDA kernels: compiled where there is a compiler, run on the CPU behind a shim, on a GPU where there is one."""

import ctypes
import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch

from dicache.errors import ArgumentError
from dicache.extension import build, combine, native, reference, residual_sums
from dicache.extension.cuda import CombinationStruct, CompiledLibrary, Cuda, LinesStruct
from dicache.extension.cupy import OPTIONS, Cupy, source

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = [
    ((1, 1), 1),
    ((2, 7), 1),
    ((3, 16384), 1),
    ((2, 16385), 1),
    ((2, 50003), 1),
    ((2, 33, 64), 3),
    ((2, 33, 257), 3),
    ((2, 5, 3001), 2),
    ((70, 40, 30), 2),
]
ENTRIES = ["dicache_sums_0", "dicache_sums_1", "dicache_sums_2", "dicache_combine_0_0", "dicache_combine_1_0"]
ENTRIES += ["dicache_combine_1_1", "dicache_combine_2_0", "dicache_combine_2_1"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The kernels on the CPU, behind the same C functions as the CUDA library."""
    try:
        compiler = build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    target = tmp_path_factory.mktemp("shim") / "libshim.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-Wno-unknown-pragmas"]
    done = subprocess.run(
        [compiler, *flags, build.SOURCES / "check" / "shim.cpp", "-o", target], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return Cuda(CompiledLibrary(ctypes.CDLL(str(target))))


def run_sums(cuda, a, b):
    out, tickets = torch.full((len(a), 6), torch.nan), torch.zeros(len(a), dtype=torch.int32)
    cuda.launch_sums(a, b, out, tickets, 0)
    assert not tickets.any(), "the tickets are not back at 0"
    return out


def made(shape, every, dtype, misaligned=False):
    whole = (*shape[:1], shape[1] * every, *shape[2:]) if len(shape) > 2 else shape
    store = torch.randn(torch.Size(whole).numel() + 1).to(dtype)
    t = store[int(misaligned) :][: torch.Size(whole).numel()].view(whole)
    return t[:, ::every] if len(shape) > 2 else t


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "every"), CASES, ids=str)
def test_the_kernels_body_equals_float64(shim, shape, every, dtype):
    torch.manual_seed(0)
    a, b = made(shape, every, dtype), made(shape, every, dtype)
    x, y = a.double().flatten(1), b.double().flatten(1)
    terms = torch.stack([(x - y).abs(), y.abs(), (x - y) ** 2, y * y, x * y, x * x])
    got = run_sums(shim, a, b)
    assert bool(((got - terms.sum(2).T).abs() <= 1e-6 * terms.abs().sum(2).T).all())
    shifted = made(shape, every, dtype, misaligned=True).copy_(a)
    assert torch.equal(run_sums(shim, shifted, b), got), "sums depend on alignment"
    assert torch.equal(run_sums(shim, a[-1:], b[-1:])[0], got[-1]), "sums depend on batch mates"


def test_the_last_block_folds_more_partial_sums_than_it_has_threads(shim):
    a, b = torch.randn(1, 2 * 2064, 1025)[:, ::2], torch.randn(1, 2064, 1025)  # 258 blocks of 8 lines
    wanted = reference.residual_sums(a.double(), b.double())
    torch.testing.assert_close(run_sums(shim, a, b), wanted, rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_the_kernels_body_passes_on_what_is_not_finite(shim, bad):
    a, b = torch.randn(3, 40000), torch.randn(3, 40000)
    a[1, 20011] = bad
    got = run_sums(shim, a, b)
    assert got[[0, 2]].isfinite().all() and torch.equal(got.isnan(), reference.residual_sums(a, b).isnan())
    assert got[1].isfinite().tolist() == [False, True, False, True, False, False]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("to_float", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (2, 8193), (300, 5)], ids=str)
def test_the_combining_kernels_body_equals_the_reference(shim, shape, dtype, to_float):
    torch.manual_seed(0)
    terms, coefficients = [made(shape, 1, dtype, misaligned=k == 1) for k in range(4)], torch.randn(shape[0], 4)
    coefficients[0, 1], coefficients[-1] = 0, torch.tensor([0.0, 0, 1, 0])
    terms[1][0] = torch.nan
    out = torch.full(shape, torch.nan, dtype=torch.float32 if to_float else dtype)
    shim.launch_combine(terms, coefficients, out, 0)
    wanted = reference.combine(terms, coefficients, to_float=to_float)
    torch.testing.assert_close(out, wanted, rtol=torch.finfo(out.dtype).eps, atol=1e-6)
    assert torch.equal(out[-1], terms[2][-1].to(out.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_combining_kernels_body_rounds_as_torch_does(shim, dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)[None]
    for factor in (0.3711, 2.0**-12, 3.0):
        out = torch.empty_like(every)
        shim.launch_combine([every], torch.tensor([[factor]]), out, 0)
        wanted = (every.float() * torch.tensor(factor)).to(dtype)
        assert torch.equal(out.isnan(), wanted.isnan()) and torch.equal(out[~out.isnan()], wanted[~wanted.isnan()])


def test_cupy_is_told_the_same_as_the_library(shim):
    """CuPy itself needs a driver; a stand-in hands what it is given to the kernels behind the shim."""
    library, calls = shim.launcher, []

    class Stream:
        def __init__(self, *arguments): ...
        def __enter__(self): ...
        def __exit__(self, *error): ...

    class Module:
        def __init__(self, code, options, backend):
            assert code == source() and backend == "nvrtc"

        def get_function(self, name):
            assert name in ENTRIES

            def launch(grid, block, arguments):
                calls.append(name)
                kind = LinesStruct if "sums" in name else CombinationStruct
                structure = kind.from_buffer_copy(arguments[0].tobytes())
                assert arguments[0].shape == (1,) and block == (256,)
                if kind is LinesStruct:
                    library.sums(int(name[-1]), 0, *grid, structure, arguments[1:], 0)
                else:
                    library.combine(int(name[-3]), bool(int(name[-1])), 0, *grid, structure, 0)

            return launch

    class Package:
        RawModule = Module

        class cuda:
            Device, ExternalStream = Stream, Stream

    cupy = Cuda(Cupy(Package))
    a, b = torch.randn(3, 20000).half(), torch.randn(3, 20000).half()
    assert torch.equal(run_sums(cupy, a, b), run_sums(shim, a, b))
    out = torch.empty(3, 20000)
    cupy.launch_combine([a, b], torch.tensor([[1.0, 2.0]] * 3), out, 0)
    torch.testing.assert_close(out, a.float() + 2 * b.float())
    assert calls[-2:] == ["dicache_sums_2", "dicache_combine_2_1"]


def test_nvcc_compiles_for_ampere_and_hopper_and_the_library_loads_without_a_driver(tmp_path):
    try:
        build.nvcc()
    except build.BuildError as error:
        pytest.skip(f"{error} It comes with CUDA's toolkit.")
    build.cuda(tmp_path)
    library = native.load("cuda", tmp_path)
    assert all(hasattr(library, f"dicache_cuda_{name}") for name in ("sums", "combine", "usable"))
    if not torch.cuda.is_available():
        library.dicache_cuda_error.restype = ctypes.c_char_p
        assert b"driver" in library.dicache_cuda_error(library.dicache_cuda_usable(0)).lower()


def nvrtc():
    """NVRTC of the wheel nvidia-cuda-nvrtc-cu12, which needs no GPU."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations]
    found = [path for folder in folders for path in folder.glob("*nvrtc*/**/libnvrtc.so.*")]
    if not found:
        pytest.skip("nvidia-cuda-nvrtc-cu12 is not installed: the package index did not have it")
    return ctypes.CDLL(str(found[0]))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvrtc_compiles_the_same_source(architecture):
    library, program = nvrtc(), ctypes.c_void_p()
    options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}")]
    assert library.nvrtcCreateProgram(ctypes.byref(program), source().encode(), b"kernels.cu", 0, None, None) == 0
    status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    library.nvrtcGetCUBIN(program, cubin)
    assert all(entry.encode() in cubin.raw for entry in ENTRIES)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "every"), CASES, ids=str)
def test_on_the_device_the_operations_equal_the_reference(shape, every, dtype):
    a, b = (made(shape, every, dtype).cuda() for _ in range(2))
    wanted = reference.residual_sums(a.double(), b.double())
    torch.testing.assert_close(residual_sums(a, b), wanted, rtol=1e-5, atol=1e-3 * float(wanted.abs().max()))
    coefficients = torch.randn(shape[0], 2)
    torch.testing.assert_close(combine([a, b], coefficients), reference.combine([a, b], coefficients))


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_on_the_device_what_is_not_finite_comes_out_and_stays_in_its_sample(dtype, bad):
    a, b = (torch.randn(3, 70001, device="cuda").to(dtype) for _ in range(2))
    clean = residual_sums(a, b)
    a[1, 50021] = bad
    got = residual_sums(a, b)
    assert torch.equal(got[[0, 2]], clean[[0, 2]])
    assert got[1].isfinite().tolist() == [False, True, False, True, False, False]
    mixed = combine([a, b], torch.tensor([[1.0, 1.0], [0.0, 2.0], [1.0, 1.0]]))
    assert torch.equal(mixed[1], 2 * b[1]), "a term of coefficient 0 was read"


@needs_gpu
def test_on_the_device_a_samples_bits_depend_neither_on_its_mates_nor_on_alignment_nor_on_the_run():
    store = torch.randn(5 * 60000 + 1, device="cuda")
    a, b = store[1:].view(5, 60000), torch.randn(5, 60000, device="cuda")
    whole = residual_sums(a, b)
    assert torch.equal(whole, residual_sums(a.clone(), b)) and torch.equal(whole, residual_sums(a, b))
    assert all(torch.equal(residual_sums(a[i : i + 1], b[i : i + 1])[0], whole[i]) for i in range(5))


@needs_gpu
@pytest.mark.parametrize(
    "view", [lambda t: t[:, ::2], lambda t: t.transpose(1, 2), lambda t: t[..., 3:-2]], ids=["steps", "turned", "cut"]
)
def test_on_the_device_views_are_read_where_they_lie(view):
    a, b = view(torch.randn(3, 64, 600, device="cuda")), view(torch.randn(3, 64, 600, device="cuda"))
    wanted = reference.residual_sums(a.double(), b.double())
    torch.testing.assert_close(residual_sums(a, b), wanted, rtol=1e-5, atol=1e-2)
    mixed = combine([a, b], torch.tensor([[1.0, -2.0]] * 3), to_float=True)
    torch.testing.assert_close(mixed, a - 2 * b)


@needs_gpu
def test_on_the_device_every_stream_has_counters_of_its_own():
    pairs = [(torch.randn(4, 400_000, device="cuda"), torch.randn(4, 400_000, device="cuda")) for _ in range(4)]
    wanted = [residual_sums(*pair) for pair in pairs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in pairs]
    for _ in range(20):
        got = []
        for stream, pair in zip(streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                got.append(residual_sums(*pair))
        torch.cuda.synchronize()
        assert all(map(torch.equal, got, wanted))


@needs_gpu
def test_on_the_device_a_graph_replays_what_it_recorded():
    a, b = torch.randn(2, 300_000, device="cuda"), torch.randn(2, 300_000, device="cuda")
    residual_sums(a, b), combine([a, b], torch.ones(2, 2))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        six, mixed = residual_sums(a, b), combine([a, b], torch.ones(2, 2))
    a.normal_()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(six, residual_sums(a, b)) and torch.equal(mixed, a + b)


@needs_gpu
def test_on_the_device_an_overlapping_out_and_tensors_of_two_devices_are_refused():
    a = torch.randn(2, 64, device="cuda")
    with pytest.raises(ArgumentError, match="overlaps"):
        residual_sums(a, a.clone(), out=a[:, :6].as_strided((2, 6), (6, 1)))
    with pytest.raises(ArgumentError, match="one device"):
        residual_sums(a, a.cpu())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU here")
def test_a_second_device_is_used_where_the_tensors_lie():
    a, b = (torch.randn(3, 50_000, device="cuda:1") for _ in range(2))
    got = residual_sums(a, b)
    torch.testing.assert_close(got, reference.residual_sums(a, b), rtol=1e-5, atol=1e-2)
    assert got.device == a.device and combine([a, b], torch.ones(3, 2)).device == a.device


@needs_gpu
def test_on_the_device_there_is_one_launch_and_no_sync():
    a, b = torch.randn(4, 4096, 64, device="cuda"), torch.randn(4, 4096, 64, device="cuda")
    residual_sums(a, b)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.cuda.set_sync_debug_mode("error")
        try:
            residual_sums(a, b)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    assert len([event for event in profile.events() if "Memcpy" in event.name or "dicache" in event.name]) == 1
