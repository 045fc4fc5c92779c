"""Schedules: they do what their table says, cost what they say, and whatever else a file holds is refused."""

import json
import string
import subprocess
import sys
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import HealthCheck, given

import dicache
from dicache.errors import DicacheError, ModeError, ScheduleError
from dicache.measuring.schedule_measurements import Calibration
from dicache.regressions.fit_coefficients import fit
from dicache.schedules.action_table import NEEDS, computes, lines_of, macs, repaired, table_of
from dicache.schedules.pareto import ParetoSet
from dicache.schedules.schedule import Schedule
from dicache.schedules.setting import Dynamic, Origin
from dicache.sites import Branches, Evaluation, Spans, Sublayers
from dicache.types import Action
from helpers.calibrating import PROMPTS, Captioned
from helpers.fuzzing import examples
from helpers.hostile import refuses_what_is_no_file_of_its_kind

STEPS = 8
ORIGIN = Origin("by hand", {"interval": 2}, 0, 2, "0" * 64, dicache.__version__)
SOME = examples(8, suppress_health_check=[HealthCheck.function_scoped_fixture])
HOSTILE = examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def pipe():
    return Captioned()


@pytest.fixture(scope="module")
def calibration():
    return Calibration(PROMPTS[:2], STEPS, call={"guidance": 4.0})


def schedule(pipe, calibration, sites, lines, **kwargs):
    return Schedule(calibration.on(pipe, sites).basis, table_of(lines), ORIGIN, **kwargs)


def run(pipe, plan, samples=(0, 1), steps=STEPS):
    with dicache.enable(pipe, schedule=plan) as cache:
        latents = pipe.draw(samples, steps)
    return latents, cache.trace


def repeated(*letters, sites=5):
    return [letter * sites for letter in letters]


# What a table does.


@pytest.mark.parametrize("sites", [Evaluation(), Spans(), Sublayers()])
def test_computing_everything_is_the_uncached_run_bit_for_bit(pipe, calibration, sites):
    basis = calibration.on(pipe, sites).basis
    everything = Schedule(basis, np.zeros(basis.shape, np.uint8), ORIGIN)
    latents, trace = run(pipe, everything)
    assert torch.equal(latents, pipe.draw([0, 1], STEPS)) and everything.work == 1
    assert (trace.executed == everything.macs).all() and (trace.uncached == basis.uncached).all()


@pytest.mark.parametrize("sites", [Evaluation(), Spans(), Sublayers()])
def test_reusing_after_the_first_step_computes_every_site_once(pipe, calibration, sites):
    basis = calibration.on(pipe, sites).basis
    table = np.full(basis.shape, Action.REUSE, np.uint8)
    table[0] = Action.COMPUTE
    _, trace = run(pipe, Schedule(basis, table, ORIGIN))
    around = basis.uncached - sum(basis.rows) * sum(cell.macs for cell in basis.cells)
    if isinstance(sites, Evaluation):  # where that is skipped the denoiser is not entered
        around *= basis.rows[0] / sum(basis.rows)
    assert (trace.executed == around + basis.rows[0] * sum(cell.macs for cell in basis.cells)).all()


@SOME
@given(data=st.data(), sites=st.sampled_from([Evaluation(), Spans(2), Sublayers()]))
def test_executed_macs_are_the_predicted_ones_whatever_the_table(pipe, calibration, data, sites):
    basis = calibration.on(pipe, sites).basis
    rows = st.text("#=/0^", min_size=basis.shape[1], max_size=basis.shape[1])
    lines = ["#" * basis.shape[1], *data.draw(st.lists(rows, min_size=STEPS - 1, max_size=STEPS - 1))]
    plan = Schedule(basis, table_of(lines), ORIGIN)
    latents, trace = run(pipe, plan)
    assert (trace.executed == plan.macs).all() and latents.isfinite().all()
    done = np.stack([record.action[0].numpy() for record in trace.records])
    assert (done == plan.done).all()


def test_coefficients_that_multiply_are_in_the_prediction(pipe, calibration):
    fitted = fit(pipe, PROMPTS[:4], steps=STEPS, kind="scale_shift", progress=False, guidance=4.0)
    corrected = schedule(pipe, calibration, Spans(), repeated(*"#*#*#***"), fitted=fitted)
    reused = schedule(pipe, calibration, Spans(), repeated(*"#=#=#==="))
    latents, trace = run(pipe, corrected)
    assert (trace.executed == corrected.macs).all() and corrected.macs == reused.macs
    assert not torch.equal(latents, run(pipe, reused)[0])


@given(
    table=st.lists(
        st.lists(st.sampled_from(range(8)).filter(lambda a: a != Action.ALIGN), min_size=3, max_size=3),
        min_size=2,
        max_size=12,
    )
)
def test_an_action_that_lacks_values_computes_and_nothing_else_is_changed(table):
    table = np.array(table, np.uint8)
    done, stored = repaired(table), np.zeros(3, int)
    for before, after in zip(table, done, strict=True):
        lacking = stored < NEEDS[before]
        assert (after[lacking] == Action.COMPUTE).all()
        if stored.any():
            assert (after[~lacking] == before[~lacking]).all()
        stored += after == Action.COMPUTE
    assert (repaired(done) == done).all() and computes(done[0]).all()
    assert (table_of(lines_of(table)) == table).all()


def test_an_extrapolation_with_one_value_is_computed_and_counted(pipe, calibration):
    plan = schedule(pipe, calibration, Evaluation(), list("#/=/##//"))
    assert lines_of(plan.done) == list("##=/##//")
    assert (run(pipe, plan)[1].executed == plan.macs).all()
    assert plan.macs == schedule(pipe, calibration, Evaluation(), list("##=/##//")).macs


def test_what_is_computed_unstored_leaves_what_was_remembered(pipe, calibration):
    sites = Spans()
    unstored = schedule(pipe, calibration, sites, repeated(*"##^=####"))
    stored = schedule(pipe, calibration, sites, repeated(*"###=####"))
    older = schedule(pipe, calibration, sites, repeated(*"##==####"))
    assert unstored.macs == stored.macs > older.macs
    latents = [run(pipe, plan)[0] for plan in (unstored, stored, older)]
    assert not torch.equal(latents[0], latents[1]) and not torch.equal(latents[0], latents[2])


def test_nothing_in_the_place_of_a_block_is_the_model_without_it(pipe, calibration):
    lines = ["#####", *["0####"] * (STEPS - 1)]
    drawn, _ = run(pipe, schedule(pipe, calibration, Spans(), lines))
    reused, _ = run(pipe, schedule(pipe, calibration, Spans(), ["#####", *["=####"] * (STEPS - 1)]))
    assert not torch.equal(drawn, reused)
    block, calls = pipe.transformer.transformer_blocks[0], []

    def left_out(module, args, kwargs, output):
        calls.append(1)
        return output if len(calls) <= 2 else (kwargs["encoder_hidden_states"], kwargs["hidden_states"])

    handle = block.register_forward_hook(left_out, with_kwargs=True)
    by_hand = pipe.draw([0, 1], STEPS)
    handle.remove()
    torch.testing.assert_close(drawn, by_hand)


@pytest.mark.parametrize("sites", [Evaluation(), Spans()])
def test_samples_and_guidance_branches_do_not_mix(pipe, calibration, sites):
    plan = schedule(pipe, calibration, sites, repeated(*"#=#/#=/#", sites=calibration.on(pipe, sites).basis.shape[1]))
    together, _ = run(pipe, plan, (0, 1))
    for i in (0, 1):
        torch.testing.assert_close(run(pipe, plan, (i,))[0][0], together[i], rtol=1e-4, atol=1e-5)
    again, _ = run(pipe, plan, (0, 1))
    assert torch.equal(together, again)


# Where it may run.


def test_another_step_count_is_refused_unless_resampling_is_asked_for(pipe, calibration):
    plan = schedule(pipe, calibration, Evaluation(), list("##=#=#=#"))
    with pytest.raises(ScheduleError, match=r"steps: it was made at 8, this run has 12.*resampled"):
        run(pipe, plan, steps=12)
    _, trace = run(pipe, plan.resampled(), steps=12)
    assert len(trace.records) == 12 and bool((trace.executed < trace.uncached).all())
    _, same = run(pipe, plan.resampled())
    assert (same.executed == plan.macs).all()


def test_another_scheduler_and_another_model_are_refused(calibration):
    pipe = Captioned()
    plan = schedule(pipe, calibration, Evaluation(), list("##=#=#=#"))
    pipe.pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(ScheduleError, match="scheduler: it was made with FlowMatchEuler"):
        run(pipe, plan)
    pipe = Captioned()
    with dicache.enable(pipe.transformer, schedule=plan), pytest.raises(ScheduleError, match="are not known"):
        pipe.draw([0], STEPS)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.mul_(2)
    with pytest.raises(ScheduleError, match="of another model"):
        dicache.enable(pipe, schedule=plan)


def test_exactly_one_mode_and_one_schedule(pipe, calibration):
    plan = schedule(pipe, calibration, Evaluation(), list("##=#=#=#"))
    for wrong in (
        {"schedule": plan, "speedup": 2.0},
        {"schedule": plan, "confidence": 0.9},
        {"schedule": 3},
        {"schedule": ParetoSet((plan,))},
    ):
        with pytest.raises(ModeError):
            dicache.enable(pipe, **wrong)
    with pytest.raises(ScheduleError, match="cannot be scheduled"):
        calibration.on(pipe, Branches())


# Left to the run.


def test_open_cells_are_decided_within_their_bounds(pipe, calibration):
    lines, static = list("###??#??"), list("###==#==")
    least, most = (
        schedule(pipe, calibration, Evaluation(), static).macs,
        calibration.on(pipe, Evaluation()).basis.uncached,
    )
    for limit, longest, expected in ((0.0, 8, most), (1e9, 8, least)):
        plan = schedule(pipe, calibration, Evaluation(), lines, dynamic=Dynamic(limit, longest))
        assert (plan.least_macs, plan.macs) == (least, most)
        assert (run(pipe, plan)[1].executed == expected).all()
    bounded = schedule(pipe, calibration, Evaluation(), lines, dynamic=Dynamic(1e9, 1))
    done = [record.action[0, 0].item() for record in run(pipe, bounded)[1].records]
    assert [action == Action.COMPUTE for action in done] == [True, True, True, False, True, True, False, True]
    trace = run(pipe, schedule(pipe, calibration, Evaluation(), lines, dynamic=Dynamic(0.01, 8)))[1]
    assert ((trace.executed >= least) & (trace.executed <= most)).all()


def test_samples_deviate_from_the_same_schedule_each_for_itself(pipe, calibration):
    patterns = set()
    for limit in (0.003, 0.01, 0.03, 0.1):
        plan = schedule(pipe, calibration, Evaluation(), list("####????"), dynamic=Dynamic(limit, 3))
        trace = run(pipe, plan, tuple(range(6)))[1]
        patterns.add(len({tuple(record.action[i, 0].item() for record in trace.records) for i in range(6)}))
    assert max(patterns) > 1


# As files.


@pytest.fixture
def saved(pipe, calibration, tmp_path):
    schedule(pipe, calibration, Spans(), repeated(*"##=/#=0^"), error=0.01).save(tmp_path / "s.json")
    return tmp_path / "s.json"


def test_what_is_saved_comes_back_and_runs_bitwise_alike_in_another_process(pipe, calibration, saved, tmp_path):
    before, after = schedule(pipe, calibration, Spans(), repeated(*"##=/#=0^"), error=0.01), Schedule.load(saved)
    assert (before.basis, before.origin, before.error) == (after.basis, after.origin, after.error)
    assert before.table.tobytes() == after.table.tobytes()
    after.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == saved.read_bytes()
    code = (
        "import sys, torch, conftest, dicache; from helpers.calibrating import Captioned; pipe = Captioned()\n"
        "with dicache.enable(pipe, schedule=sys.argv[1]): torch.save(pipe.draw([0, 1], 8), sys.argv[2])\n"
        "dicache.Schedule.load(sys.argv[1]).save(sys.argv[3])"
    )
    files = [str(saved), str(tmp_path / "there.pt"), str(tmp_path / "there.json")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *files], check=True, cwd="tests")
    assert torch.equal(torch.load(files[1], weights_only=True), run(pipe, str(saved))[0])
    assert (tmp_path / "there.json").read_bytes() == saved.read_bytes()


def test_fitted_coefficients_are_bound_to_the_schedule(pipe, calibration, tmp_path):
    fitted = fit(pipe, PROMPTS[:2], steps=STEPS, kind="affine", progress=False, guidance=4.0)
    plan = schedule(pipe, calibration, Spans(), repeated(*"#*#*#*#*"), fitted=fitted)
    plan.save(tmp_path / "s.json")
    assert torch.equal(run(pipe, tmp_path / "s.json")[0], run(pipe, plan)[0])
    fit(pipe, PROMPTS[2:4], steps=STEPS, kind="affine", progress=False, guidance=4.0).save(tmp_path / "s.safetensors")
    with pytest.raises(ScheduleError, match="sha256 differs"):
        Schedule.load(tmp_path / "s.json")


def test_several_schedules_are_one_file_and_one_is_chosen(pipe, calibration, saved, tmp_path):
    errors = {"########": 0.0, "##=#=#=#": 0.02, "##==#===": 0.1, "##=##=##": 0.03}
    members = [schedule(pipe, calibration, Evaluation(), list(x), error=e) for x, e in errors.items()]
    ParetoSet(tuple(members)).save(tmp_path / "set.json")
    loaded = ParetoSet.load(tmp_path / "set.json")
    assert ["".join(lines_of(s.table)) for s in loaded.members] == sorted(errors, key=lambda x: -x.count("#"))
    assert loaded.at(0.7).error == 0.02 and loaded.within(0.05).error == 0.02
    assert [s.error for s in loaded.front().members] == [0.0, 0.02, 0.1]
    for ask in (lambda: loaded.at(0.01), lambda: loaded.within(-1.0)):
        with pytest.raises(ScheduleError, match="no schedule"):
            ask()
    with pytest.raises(ScheduleError, match=r"ParetoSet\.load"):
        dicache.enable(pipe, schedule=tmp_path / "set.json")
    with pytest.raises(ScheduleError, match=r"Schedule\.load"):
        ParetoSet.load(saved)


def test_what_is_no_schedule_and_what_is_no_one_file_is_refused(pipe, calibration, tmp_path):
    fitted = [
        fit(pipe, PROMPTS[:2], steps=STEPS, kind="scale_shift", progress=False, guidance=4.0, longest=n) for n in (2, 3)
    ]
    plain, blocks = schedule(pipe, calibration, Evaluation(), list("##=#=#=#"), error=0.1), repeated(*"#=#=#=##")
    for wrong in ({"table": plain.table * 3}, {"table": plain.table * 100}, {"error": float("nan")}, {"error": -1.0}):
        with pytest.raises(ScheduleError, match=r"no action|finite number"):
            replace(plain, **wrong)
    reused = schedule(pipe, calibration, Spans(), blocks, error=0.1)
    moved = [schedule(pipe, calibration, Spans(), repeated(*"#*#*****"), error=0.2, fitted=f) for f in fitted]
    for members, message in (((plain, reused), "several models, sites or steps"), (moved, "several sets")):
        with pytest.raises(ScheduleError, match=message):
            ParetoSet(tuple(members)).save(tmp_path / "set.json")
    with pytest.raises(ScheduleError, match="cannot be written"):
        replace(reused, origin=ORIGIN._replace(arguments={"interval": np.int64(2)})).save(tmp_path / "set.json")
    assert not (tmp_path / "set.json").exists()
    ParetoSet((reused, moved[0])).save(tmp_path / "set.json")
    first, second = ParetoSet.load(tmp_path / "set.json").members
    assert (first.error, second.error) == (0.1, 0.2) and second.fitted is not None


@HOSTILE
@given(text=st.text() | st.binary().map(lambda b: b.decode("latin-1")), cut=st.integers(0, 3000))
def test_a_file_that_is_cut_or_something_else_is_refused(saved, text, cut):
    content = saved.read_text()
    for broken in (text, content[: min(cut, len(content) - 3)]):
        saved.write_text(broken, encoding="utf-8", errors="replace")
        with pytest.raises(ScheduleError, match="find it again"):
            Schedule.load(saved)
    saved.write_text(content)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
KEYS = ["format", "model", "scheduler", "sigmas", "rows", "uncached_macs", "selector", "sites", "actions", "dynamic"]


@HOSTILE
@given(key=st.sampled_from([*KEYS, "fitted", "finder", "predicted"]), inside=st.integers(0, 5), value=VALUES)
def test_any_value_in_any_place_loads_or_is_one_clear_error(saved, key, inside, value):
    content = json.loads(saved.read_text())
    broken = json.loads(saved.read_text())
    if isinstance(broken[key], dict) and inside < len(broken[key]):
        broken[key][sorted(broken[key])[inside]] = value
    elif isinstance(broken[key], list) and 0 < inside < len(broken[key]):
        broken[key][inside] = value
    else:
        broken[key] = value
    path = saved.with_name("broken.json")
    path.write_text(json.dumps(broken))
    try:
        loaded = Schedule.load(path)
    except ScheduleError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert loaded.table.shape == loaded.basis.shape == (STEPS, 5) and loaded.macs <= loaded.basis.uncached
        assert key not in ("format", "predicted") or broken == content or loaded.error != 0.01
    saved.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": ["=####", *["#####"] * 7]}, "first step does not compute"),
        ({"actions": ["#####"] * 7}, "has 7 rows for 8 steps"),
        ({"actions": [*["#####"] * 7, "####"]}, "4 letters for 5 sites in row 7"),
        ({"actions": [*["#####"] * 7, 5]}, "not all strings"),
        ({"actions": [*["#####"] * 7, "####x"]}, "'x' is no action"),
        ({"actions": [*["#####"] * 7, "####?"]}, "need `dynamic`"),
        ({"actions": [*["#####"] * 7, "####*"]}, "need fitted coefficients"),
        ({"dynamic": {"limit": -1, "longest": 2}}, "'limit' is -1"),
        ({"dynamic": {"limit": 1, "longest": 10**30}}, "not from 1 to 10000"),
        ({"fitted": {"file": "../x.safetensors", "sha256": "0"}}, "not the name of a safetensors file"),
        ({"selector": {"name": "Spans", "size": 1.5}}, "of another kind"),
        ({"selector": {"name": "Everything"}}, "Everything"),
        ({"uncached_macs": 10.0}, "cost more than the whole run"),
        ({"rows": [2] * 7}, "'rows' are not"),
    ],
)
def test_what_cannot_be_is_refused_by_name(saved, change, message):
    saved.write_text(json.dumps(json.loads(saved.read_text()) | change))
    with pytest.raises(ScheduleError, match=message):
        Schedule.load(saved)


def test_a_pickle_a_link_deep_nesting_and_nothing_at_all_are_refused(saved, tmp_path):
    refuses_what_is_no_file_of_its_kind(Schedule.load, ScheduleError, "no schedule that can be used", saved, tmp_path)
    for path in (tmp_path / "nowhere" / "s.json", tmp_path / "s.txt"):
        with pytest.raises(DicacheError, match=r"cannot be written|ends in \.json"):
            Schedule.load(saved).save(path)


def test_macs_of_many_tables_at_once_are_those_of_each(pipe, calibration):
    basis = calibration.on(pipe, Spans()).basis
    tables = np.random.default_rng(0).choice([0, 1, 2, 5, 6], (20, *basis.shape)).astype(np.uint8)
    tables[:, 0] = Action.COMPUTE
    one_by_one = [float(macs(table, basis.costs)) for table in tables]
    assert macs(tables, basis.costs).tolist() == one_by_one
