"""The docs' code runs as it is written, in a folder of its own, with three stand-ins: weights that cannot be had here
are the reference model's, calibrations try one internal budget in the place of eighteen, and prompts.txt is there.
"""

import functools

import diffusers
import pytest

import dicache

LEVELS = (0.05,)
PROMPTS = 22
"""The fewest for a promise at 0.9."""


@pytest.fixture
def as_a_reader(monkeypatch, tmp_path):
    """The folder that the code runs in."""

    def from_pretrained(cls, name, **options):
        pipe = dicache.reference.pipeline()
        pipe.to = lambda *where: pipe
        return pipe

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diffusers.FluxPipeline, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(
        dicache, "calibrate", functools.partial(dicache.calibrate, levels=LEVELS, batch=PROMPTS, progress=False)
    )
    (tmp_path / "prompts.txt").write_text("\n".join(dicache.reference.prompts("calibration", PROMPTS, seed=5)))
    return tmp_path
