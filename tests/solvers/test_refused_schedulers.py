"""The docs name every scheduler of diffusers with which everything computes, and say how far from linear it is."""

import inspect
import re
from pathlib import Path

import diffusers
import pytest
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from dicache.solvers.clock import timeline_of
from dicache.solvers.play import play

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers' DPM2
PAGE = (Path(__file__).parents[2] / "docs" / "ecosystem.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## Schedulers")[2].partition("*Off by*")[0]
BENT = {
    name: float(number)
    for line in TABLE.splitlines()
    for name in re.findall(r"`(\w+Scheduler)`(?! with)", line.split("|")[1] if line.startswith("|") else "")
    if (number := line.split("|")[3].strip()) and number[0].isdigit()
}


def made():
    """Every scheduler that can be made and given 20 steps without being told anything."""
    classes = [value for name in dir(diffusers) if inspect.isclass(value := getattr(diffusers, name))]
    for kind in classes:
        if not issubclass(kind, SchedulerMixin):
            continue
        try:
            scheduler = kind()
            scheduler.set_timesteps(20)
        except (TypeError, ValueError, ImportError, AttributeError, KeyError):
            continue  # it needs arguments, or a package that is not there
        yield scheduler


def test_a_scheduler_that_is_not_cached_is_named_by_the_docs():
    reasons = {type(scheduler).__name__: timeline_of(scheduler).reason for scheduler in made()}
    refused = {name for name, reason in reasons.items() if reason}
    assert len(reasons) > 30 and len(refused) > 8
    assert not {name for name in refused if f"`{name}`" not in TABLE}
    assert not {name for name in reasons.keys() - refused if name in BENT}


@pytest.mark.parametrize("name", sorted(BENT))
def test_how_far_from_linear_it_is_stands_in_the_docs(name):
    scheduler = getattr(diffusers, name)(**({"clip_sample": True} if name == "LCMScheduler" else {}))
    scheduler.set_timesteps(20)
    assert play(scheduler).bend == pytest.approx(BENT[name], rel=0.05)


def test_thresholding_is_as_far_from_linear_as_the_docs_say():
    for kind in (diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler):
        scheduler = kind(thresholding=True)
        scheduler.set_timesteps(20)
        assert play(scheduler).bend == pytest.approx(0.99, abs=0.02)
