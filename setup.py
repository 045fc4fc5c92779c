"""Packaging. The folders probes, estimators, extension and bench lie beside the package and install inside it."""

from pathlib import Path

from setuptools import setup

FOLDERS = {
    "dicache": "dicache",
    "dicache.probes": "probes",
    "dicache.estimators": "estimators",
    "dicache.extension": "extension",
    "dicache.bench": "bench",
}
PACKAGES = [
    *FOLDERS,
    "dicache.approximators",
    "dicache.controllers",
    "dicache.models",
    "dicache.reference",
    "dicache.reference.training",
]

setup(
    name="dicache",
    version="0.1.0",
    description="Adaptive, per-sample caching for diffusion inference, with an error budget instead of a threshold.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=PACKAGES,
    package_dir=FOLDERS,
    package_data={"dicache": ["py.typed"], "dicache.reference": ["weights/*.safetensors", "weights/*.md"]},
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
        "bench": ["torchmetrics>=1.5"],
        "search": ["pymoo>=0.6"],
        "test": ["pytest>=8", "hypothesis>=6.100", "ruff>=0.9", "mypy>=1.15"],
    },
    entry_points={"console_scripts": ["dicache=dicache.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
