"""Builds the native libraries: `python extension/build.py [--out FOLDER] [--sanitize] [--only cpu|cuda]`.

Plain C functions in shared libraries, so one build serves every Python 3 and every torch, and needs neither to compile.
setup.py calls this for wheels and for editable installs; by hand it builds into this folder. Nothing but the standard
library is imported, and nothing of dicache: under build isolation there is nothing else.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "csrc"
COMMON = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off")
WARNINGS = ("-Wall", "-Wextra", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized", "-Wno-uninitialized")
"""Without the two: gcc 12's own AVX-512 header gives hundreds of false ones."""
X86 = {"avx2": ("-mavx2", "-mfma", "-mf16c"), "avx512": ("-mavx512f", "-mavx512bw", "-mfma", "-mf16c")}
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")
ARCHITECTURES = ("-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]")
"""Ampere, Hopper, and PTX for what comes after."""
NAMES = {"cpu": "libdicache_cpu.so", "cuda": "libdicache_cuda.so"}


class BuildError(Exception):
    """There is no compiler, or it failed. The message is for a person, and the eager path remains."""


def digest(kind: str) -> str:
    """Of the sources of a library: a library that was built from others is not used."""
    suffixes = {"cpu": (".h", ".inl", ".cpp"), "cuda": (".cu", ".cuh")}[kind]
    files = sorted(path for path in SOURCES.iterdir() if path.suffix in suffixes)
    text = b"".join(path.name.encode() + path.read_bytes() for path in files)
    return hashlib.sha256(text).hexdigest()[:16]


def compiler() -> str:
    """The C++ compiler. Raises BuildError where there is none."""
    wanted = os.environ.get("CXX", "").split()[:1] or ["g++", "clang++", "c++"]
    compiler = next((path for path in map(shutil.which, wanted) if path), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler was found (looked for {', '.join(wanted)}).")
    return compiler


def nvcc() -> str:
    """CUDA's compiler. Raises BuildError where there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    compiler = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))
    if compiler is None:
        raise BuildError("no nvcc was found.")
    return compiler


def cpu(out: Path, *, sanitize: bool = False) -> Path:
    """The library for the CPU into the folder `out`; with `sanitize` the driver that runs it under AddressSanitizer and
    UBSan. Raises BuildError.
    """
    target = out / ("sanitized" if sanitize else NAMES["cpu"])
    flags = [*COMMON, *WARNINGS, f'-DDICACHE_SOURCES="{digest("cpu")}"', *(SANITIZE if sanitize else ())]
    paths: dict[str, tuple[str, ...]] = {"baseline": (), "entry": ()}
    if platform.machine().lower() in ("x86_64", "amd64"):
        flags.append("-DDICACHE_X86")
        paths |= X86
    if sanitize:
        paths["check/driver"] = ()
    objects = [_object(out, name, [*flags, *extra]) for name, extra in paths.items()]
    link = ["-pthread", *SANITIZE] if sanitize else ["-shared"]
    _run([compiler(), *link, *map(str, objects), "-o", str(target)])
    for path in objects:
        path.unlink()
    return target


def _object(out: Path, name: str, flags: list[str]) -> Path:
    target = out / f"{Path(name).name}.o"
    _run([compiler(), *flags, "-c", str(SOURCES / f"{name}.cpp"), "-o", str(target)])
    return target


def cuda(out: Path) -> Path:
    """The library for CUDA; it loads without a driver. Raises BuildError."""
    target = out / NAMES["cuda"]
    flags = ["-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC,-fvisibility=hidden", *ARCHITECTURES]
    defined = f'-DDICACHE_SOURCES="{digest("cuda")}"'
    _run([nvcc(), *flags, defined, str(SOURCES / "launch.cu"), "-o", str(target)])
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{command[0]} failed:\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build dicache's native libraries.")
    parser.add_argument("--out", type=Path, default=SOURCES.parent, help="folder; this one by default")
    parser.add_argument("--sanitize", action="store_true", help="build and run the driver under ASan and UBSan instead")
    parser.add_argument("--only", choices=NAMES, help="one library; default: all that there are compilers for")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.sanitize:
        sys.exit(subprocess.run([cpu(args.out, sanitize=True)]).returncode)
    failed = False
    for kind, build in (("cpu", cpu), ("cuda", cuda)):
        if args.only in (None, kind):
            try:
                print(build(args.out))
            except BuildError as error:
                print(f"{kind}: {error}", file=sys.stderr)
                failed |= kind in (args.only, "cpu")
    sys.exit(failed)


if __name__ == "__main__":
    main()
