"""Evolution of schedules: seeded, ended."""

import numpy as np
import pytest

from dicache.finders.base import MOST
from dicache.finders.ecad import Ecad
from dicache.finders.fixed import FixedInterval
from dicache.measuring.schedule_measurements import Calibration
from dicache.schedules.action_table import computes
from dicache.sites import Evaluation
from helpers.calibrating import PROMPTS


@pytest.mark.parametrize("seeded", [False, True])
def test_a_search_that_has_tried_every_table_ends(pipe, seeded):
    drawn = Calibration(PROMPTS[:1], 3, call={"guidance": 4.0})
    finder = Ecad(generations=5, population=6, seeded=seeded, seeds=(FixedInterval(),))
    assert finder.find(pipe, Evaluation(), drawn).members[0].work == 1
    assert len(finder.tables(drawn.on(pipe, Evaluation()), None, 0)) == 4


def test_a_search_that_measures_on_the_way_chooses_from_all_it_measured(pipe, calibration):
    measurements, finder = calibration.on(pipe, Evaluation()), Ecad(generations=6, population=8)
    schedules = finder.schedules(measurements, finder.tables(measurements, None, 0), 0)
    assert len(schedules) > MOST
    front = finder.find(pipe, Evaluation(), calibration).members
    for s in schedules:
        assert any(best.work <= s.work and best.error <= s.error for best in front)


def test_a_seeded_front_dominates_its_seeds_and_the_first_step_is_no_gene(pipe, calibration):
    from pymoo.indicators.hv import HV

    def volume(schedules):
        return HV(ref_point=[1.0, 1.0])(np.array([[s.error, s.work] for s in schedules]))

    measurements = calibration.on(pipe, Evaluation())
    finder = Ecad(generations=6, population=8)
    seeds = finder.schedules(measurements, finder.first(measurements, 0), 0)
    front = finder.find(pipe, Evaluation(), calibration)
    assert volume(front.members) >= volume(seeds)
    for seed in seeds:
        assert any(s.work <= seed.work and s.error <= seed.error for s in front.members)
    assert all(computes(s.table)[0].all() for s in front.members)
