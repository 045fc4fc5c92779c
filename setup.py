"""Packaging. The folders probes, estimators, extension and bench lie beside the package and install inside it.

The native libraries are built where there are compilers for them, by `extension/build.py`; without one the package
installs all the same and runs on plain torch. DICACHE_BUILD says which must be built, and then a failure is an error:
`cpu`, `cuda` (both), `none`; by default whatever can be. They bind to no Python and no torch, so one wheel serves all.
"""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from runpy import run_path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

FOLDERS = {
    "dicache": "dicache",
    "dicache.probes": "probes",
    "dicache.estimators": "estimators",
    "dicache.extension": "extension",
    "dicache.bench": "bench",
}
PACKAGES = [
    ".".join((name, *Path(found).parent.relative_to(folder).parts))
    for name, folder in FOLDERS.items()
    for found in sorted(map(str, Path(folder).rglob("__init__.py")))
]


def _builder() -> ModuleType:
    """extension/build.py, by its path: under build isolation nothing here can be imported by name."""
    spec = spec_from_file_location("dicache_build", Path(__file__).resolve().parent / "extension" / "build.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILDER = _builder()
WANTED = os.environ.get("DICACHE_BUILD", "auto")
KINDS = {"auto": ("cpu", "cuda"), "cpu": ("cpu",), "cuda": ("cpu", "cuda"), "none": ()}
if WANTED not in KINDS:
    sys.exit(f"DICACHE_BUILD={WANTED} means nothing. Expected one of {', '.join(KINDS)}.")


class BuildLibraries(build_ext):
    """Every extension is a plain shared library, and may fail."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        kind = ext.name.rpartition("_")[2]
        try:
            getattr(BUILDER, kind)(target.parent)
        except BUILDER.BuildError as error:
            if WANTED != "auto":
                raise
            print(f"dicache: without the native library for {kind}, which is optional: {error}", file=sys.stderr)

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"


class BuildModules(build_py):
    """Starts without the libraries of an earlier build, which may have been for other devices."""

    def run(self) -> None:
        for name in BUILDER.NAMES.values():
            (Path(self.build_lib) / "dicache" / "extension" / name).unlink(missing_ok=True)
        super().run()


class AnyPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    name="dicache",
    version=run_path("dicache/_version.py")["__version__"],
    description="Adaptive, per-sample caching for diffusion inference, with an error budget instead of a threshold.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=PACKAGES,
    package_dir=FOLDERS,
    package_data={
        "dicache": ["py.typed", "profiles/*.json", "profiles/*.safetensors"],
        "dicache.web": ["*.html"],
        "dicache.reference": ["weights/*.safetensors", "weights/*.md"],
        "dicache.extension": ["csrc/*", "csrc/check/*"],
    },
    ext_modules=[
        Extension(f"dicache.extension.libdicache_{kind}", sources=[], optional=WANTED == "auto")
        for kind in KINDS[WANTED]
    ],
    cmdclass={"build_ext": BuildLibraries, "build_py": BuildModules, "bdist_wheel": AnyPython},
    install_requires=[
        "torch>=2.10",
        "diffusers>=0.42,<0.43",
        "transformers>=5",
        "tokenizers>=0.22",
        "safetensors>=0.5",
        "numpy>=1.26",
        "scipy>=1.12",
        "pillow>=10",
        "rich>=13",
        "tqdm>=4.66",
        "typer>=0.15",
        "matplotlib>=3.9",
        "jinja2>=3",
    ],
    extras_require={
        "cuda": ["cupy-cuda12x>=13"],
        "cuda13": ["cupy-cuda13x>=13.6"],
        "bench": ["torchmetrics>=1.5", "scikit-learn>=1.5"],
        "int8": ["torchao>=0.18"],
        "search": ["pymoo>=0.6"],
        "ray": ["ray>=2.40"],
        "web": ["fastapi>=0.115", "uvicorn>=0.34"],
        "serve": ["ray[serve]>=2.60", "fastapi>=0.115", "uvicorn>=0.34", "prometheus-client>=0.21"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.15",
            "accelerate>=1.0",
            "peft>=0.15",
            "torchao>=0.18",
            "pymoo>=0.6",
            "fastapi>=0.115",
            "uvicorn>=0.34",
            "prometheus-client>=0.21",
            "selenium>=4.20",
        ],
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29", "nbformat>=5.10"],
    },
    entry_points={"console_scripts": ["dicache=dicache.cli.app:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
