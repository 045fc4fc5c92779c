"""Evolution of schedules: killed, resumed, seeded, ended."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from dicache.errors import ScheduleError
from dicache.finders.base import MOST
from dicache.finders.ecad import Ecad
from dicache.finders.fixed import FixedInterval
from dicache.measuring.schedule_measurements import Calibration
from dicache.schedules.action_table import computes, lines_of
from dicache.schedules.pareto import ParetoSet
from dicache.sites import Evaluation
from helpers.calibrating import PROMPTS


class Killed(Exception):
    pass


def test_a_search_killed_after_any_generation_goes_on_to_the_same_front(pipe, calibration, tmp_path):
    def finder(folder):
        return Ecad(generations=4, population=6, checkpoint=folder, seeds=(FixedInterval(),))

    def search(folder, tick=calibration.tick):
        mine = Calibration(PROMPTS[:2], 8, call={"guidance": 4.0}, tick=tick)
        return finder(folder).find(pipe, Evaluation(), mine)

    def kill(what, done, total):
        if what == "generations" and done == 2:
            raise Killed

    uninterrupted = search(tmp_path / "whole")
    with pytest.raises(Killed):
        search(tmp_path / "killed", kill)
    entries = sorted(path.name for path in (tmp_path / "killed").glob("generation-*"))
    assert entries == ["generation-0.safetensors", "generation-1.safetensors"]
    assert len(ParetoSet.load(tmp_path / "killed" / "front.json").members) > 1
    resumed = search(tmp_path / "killed")
    assert [lines_of(s.table) for s in resumed.members] == [lines_of(s.table) for s in uninterrupted.members]
    assert [s.error for s in resumed.members] == [s.error for s in uninterrupted.members]
    final = [(tmp_path / folder / "front.json").read_bytes() for folder in ("whole", "killed")]
    assert final[0] == final[1] and "checkpoint" not in json.loads(final[0])["schedules"][0]["finder"]["arguments"]
    first = tmp_path / "killed" / "generation-0.safetensors"
    save_file({"errors": np.zeros((1, 1))}, first)
    with pytest.raises(ScheduleError, match="is damaged"):
        search(tmp_path / "killed")
    first.unlink()
    checkpoint = finder(tmp_path / "killed")._checkpoint(calibration.on(pipe, Evaluation()), 0)
    checkpoint.entry("generation-0", lambda: {"genomes": np.zeros((6, 7), dtype=bool), "errors": np.zeros((6, 2))})
    with pytest.raises(ScheduleError, match="holds another search"):
        search(tmp_path / "killed")
    with pytest.raises(ScheduleError, match="holds other measurements"):
        Ecad(generations=4, population=8, checkpoint=tmp_path / "whole").find(pipe, Evaluation(), calibration)


@pytest.mark.parametrize("seeded", [False, True])
def test_a_search_that_has_tried_every_table_ends(pipe, seeded):
    drawn = Calibration(PROMPTS[:1], 3, call={"guidance": 4.0})
    finder = Ecad(generations=5, population=6, seeded=seeded, seeds=(FixedInterval(),))
    assert finder.find(pipe, Evaluation(), drawn).members[0].work == 1
    assert len(finder.tables(drawn.on(pipe, Evaluation()), None, 0)) == 4


def test_a_checkpoint_is_of_one_scheduler(pipe, calibration, tmp_path):
    finder = Ecad(generations=1, population=6, seeds=(FixedInterval(),), checkpoint=str(tmp_path))
    measurements = calibration.on(pipe, Evaluation())
    finder._checkpoint(measurements, 0)
    elsewhere = replace(measurements.basis, scheduler="Another()")
    other = Calibration(PROMPTS[:2], 8, call={"guidance": 4.0}).on(pipe, Evaluation())
    other.__dict__["_uncached"] = measurements._uncached._replace(basis=elsewhere)
    with pytest.raises(ScheduleError, match="holds other measurements"):
        finder._checkpoint(other, 0)


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
