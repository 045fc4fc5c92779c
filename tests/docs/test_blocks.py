"""Every block of Python in the README and the docs runs as it is written, page by page, one after the other in one
namespace.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
ELSEWHERE = {"custom-models.md", "CONTRIBUTING.md"}
"""Pages whose blocks run in a test that also looks at what they did."""


def blocks(page: Path):
    """The blocks of a page, each on the lines it has there."""
    text = page.read_text()
    return [("\n" * text[: found.start(1)].count("\n") + found[1], found.start(1)) for found in BLOCK.finditer(text)]


def run(page: Path, names: dict) -> dict:
    for source, _ in blocks(page):
        exec(compile(source, str(page), "exec"), names)
    return names


def pages():
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if page.name not in ELSEWHERE and blocks(page)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_one_after_the_other(page, as_a_reader):
    run(page, {"__name__": "page"})


def test_pages_with_code_are_found():
    assert {"README", "getting-started", "promise", "schedules", "ecosystem", "report"} <= {p.stem for p in pages()}


def test_the_parts_that_contributing_adds_are_decided_with(as_a_reader):
    import dicache

    given = """
from dataclasses import dataclass
from torch import Tensor
from dicache.approximators.base import Approximator, Histories, Target
from dicache.config import Config
from dicache.controllers.clip import Clip
from dicache.controllers.threshold import Threshold
from dicache.estimators.base import Estimator, Evidence
from dicache.probes.base import Probe, View
from dicache.types import Action, Grid, Rows
"""
    names: dict = {"__name__": "page"}
    exec(given, names)
    config = run(ROOT / "CONTRIBUTING.md", names)["steady"]()
    pipe = dicache.reference.pipeline()
    with dicache.enable(pipe, config=config) as cache:
        pipe(dicache.reference.prompts("test", 1), num_inference_steps=8, output_type="latent")
    assert "=" in cache.report().strip(0) and cache.report().compute_speedup > 1
