"""Half the work on a finer grid: what is drawn is what is said, and a grid that cannot be read says why."""

from importlib.util import find_spec

import pytest

from dicache.bench.studies.finer_grid import rows, words
from dicache.bench.zoo.members import Exact
from dicache.bench.zoo.model import Setting

pytestmark = pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn")


def test_a_finer_grid_with_half_the_evaluations_comes_nearer_the_limit():
    drawn = list(rows(Setting(Exact("digits", "flow"), "euler", 12), conditions=6, finer=(2.0,)))
    assert [(row.run, row.steps, row.evaluations) for row in drawn] == [
        ("uncached", 12, 12),
        ("uncached, euler", 6, 6),
        ("uncached, euler shift 3", 6, 6),
        ("uncached, dpm++", 6, 6),
        ("default", 24, 6),
        ("tuned", 24, 6),
    ]
    medians = {row.run: row.median for row in drawn}
    assert medians["uncached"] < medians["uncached, euler"] and medians["tuned"] < medians["uncached, euler"]
    assert all(0 < row.median <= row.p90 for row in drawn) and all(0 <= row.nearer <= 1 for row in drawn[1:])
    assert words(drawn[-1]).startswith("exact digits, flow, euler, 12 steps | tuned | 24 | 6 | ")


def test_a_grid_that_cannot_be_read_says_why():
    *_, default, tuned = rows(Setting(Exact("digits", "epsilon"), "ddim", 28), conditions=2, finer=(3.0,))
    assert default.median is tuned.median is None and default.why and tuned.why in words(tuned)
    assert "cannot be read off its scheduler" in tuned.why and "DDIMScheduler mixes latents" in tuned.why
