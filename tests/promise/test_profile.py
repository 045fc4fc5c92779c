"""Profiles as files: what is written comes back, and whatever else a file holds is refused and not used."""

import hashlib
import json
import math
import string
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from safetensors.numpy import save
from torch import nn

import dicache
from dicache.controllers.planned import cautious
from dicache.defaults import EARLIER, FILLS, for_profile
from dicache.errors import DicacheError, ProfileError
from dicache.models.conditioning import SIZE
from dicache.planning.error_law import RULES
from dicache.promise.choose_profile import ProfileChoice, profiles_for
from dicache.promise.keep_budget import parse_budget
from dicache.promise.profile import Profile, load_profile
from dicache.types import RunFacts, Timetable
from helpers.calibrating import Captioned, calibrated, made_up
from helpers.fuzzing import examples
from helpers.hostile import refuses_what_is_no_file_of_its_kind

HOSTILE = examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def saved(tmp_path):
    made_up().save(tmp_path / "p.json")
    return tmp_path / "p.json"


def rebound(path, **changes):
    """The same profile with some arrays changed, and the digest made to fit."""
    arrays = {key: np.array(value) for key, value in made_up().arrays.items()}
    for key, value in changes.items():
        arrays[key.replace("loss_", "loss.")] = value
    data = save({key: np.ascontiguousarray(value) for key, value in arrays.items() if value is not None})
    path.with_suffix(".safetensors").write_bytes(data)
    content = json.loads(path.read_text())
    content["arrays"]["sha256"] = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(content))


def test_what_is_saved_comes_back(saved):
    before, after = made_up(), load_profile(saved)
    assert after.facts == before.facts and after.metrics == ["latent"]
    assert after.arrays.keys() == before.arrays.keys()
    for key, value in before.arrays.items():
        np.testing.assert_array_equal(after.arrays[key], value)


@HOSTILE
@given(data=st.data())
def test_arrays_of_which_a_byte_changed_or_is_missing_are_refused(saved, data):
    path = saved.with_suffix(".safetensors")
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(1, 255))
    broken = data.draw(
        st.sampled_from(
            [whole[:place], whole + b"\0", whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]]
        )
    )
    path.write_bytes(broken)
    with pytest.raises(ProfileError, match=r"p\.json is no profile that can be used: .*Calibrate again"):
        load_profile(saved)
    path.write_bytes(whole)


@HOSTILE
@given(text=st.text() | st.binary().map(lambda b: b.decode("latin-1")), cut=st.integers(0, 2000))
def test_a_json_file_that_is_cut_or_something_else_is_refused(saved, text, cut):
    whole = saved.read_text()
    for broken in (text, whole[: min(cut, len(whole) - 3)]):
        saved.write_text(broken, encoding="utf-8", errors="replace")
        with pytest.raises(ProfileError, match="Calibrate again"):
            load_profile(saved)
    saved.write_text(whole)


@pytest.mark.parametrize("left", [0, 1, 40, 0.5, -5])
def test_a_json_file_that_is_cut_short_is_called_that(saved, left):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * left) if isinstance(left, float) else left])
    with pytest.raises(ProfileError, match="cut short or damaged"):
        load_profile(saved)
    saved.write_bytes(b"\xff" + whole)
    with pytest.raises(ProfileError, match="cut short or damaged"):
        load_profile(saved)


@pytest.mark.parametrize("place", ["q.json", "elsewhere/p.json", "elsewhere/q.json"])
def test_two_files_that_are_moved_renamed_or_copied_together_are_a_profile(saved, tmp_path, place):
    moved = tmp_path / place
    moved.parent.mkdir(exist_ok=True)
    for suffix in (".json", ".safetensors"):
        saved.with_suffix(suffix).rename(moved.with_suffix(suffix))
    assert load_profile(moved).facts == made_up().facts
    other = made_up(prompts=70)
    other.save(saved)  # under the name that the moved one still has inside
    assert load_profile(moved).prompts == 60 and load_profile(saved).prompts == 70


def test_facts_alone_are_a_profile_only_beside_the_arrays_that_they_were_saved_with(saved, tmp_path):
    alone = tmp_path / "alone.json"
    alone.write_bytes(saved.read_bytes())
    assert load_profile(alone).prompts == 60
    (tmp_path / "alone.safetensors").write_bytes(b"of something else")
    assert load_profile(alone).prompts == 60
    made_up(prompts=70).save(saved)
    with pytest.raises(ProfileError, match=r"safetensors is not the file|no safetensors file"):
        load_profile(alone)


@pytest.mark.parametrize("lost", ["away", "renamed"])
def test_facts_whose_arrays_were_left_behind_say_how_to_bring_them_back(saved, lost):
    arrays, facts = saved.with_suffix(".safetensors"), saved
    if lost == "away":
        arrays.unlink()
    else:
        arrays.rename(arrays.with_name("other.safetensors"))
        facts = saved.rename(saved.with_name("q.json"))
    with pytest.raises(ProfileError, match=r"not beside it.*Copy the two files together, or rename it back") as refused:
        load_profile(facts)
    assert "Calibrate again" not in str(refused.value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


@HOSTILE
@given(
    key=st.sampled_from(["format", "model", "sigmas", "guidance", "about", "arrays", "scheduler", "prices", "weaker"]),
    value=VALUES,
)
def test_any_value_in_any_place_loads_or_is_one_clear_error(saved, key, value):
    whole = saved.read_text()
    saved.write_text(json.dumps(json.loads(whole) | {key: value}))
    try:
        found = load_profile(saved)
    except ProfileError as error:
        assert str(error).startswith(str(saved)) and "\n" not in str(error)
    else:  # only what is free text, a number that may be anything, or what no decision depends on
        assert key in ("model", "scheduler", "about", "guidance") or value in ("law", "measured", {})
        assert found.facts.guidance >= 1
    saved.write_text(whole)


@pytest.mark.parametrize("name", ["../p.safetensors", "/etc/passwd", "p.pickle", "a/b.safetensors", "..\\x", ""])
def test_nothing_outside_the_folder_and_no_other_kind_of_file_is_opened(saved, name):
    content = json.loads(saved.read_text())
    content["arrays"]["file"] = name
    saved.write_text(json.dumps(content))
    with pytest.raises(ProfileError, match="not the name of a safetensors file"):
        load_profile(saved)


def test_a_pickle_a_link_deep_nesting_and_nothing_at_all_are_refused(saved, tmp_path):
    refuses_what_is_no_file_of_its_kind(load_profile, ProfileError, "no profile that can be used", saved, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimate": np.zeros((3, 3), np.float32)}, "'estimate' has the shape"),
        ({"work": np.ones((10, 9, 9), np.float32)}, "shape"),
        ({"loss_psnr": np.zeros((60, 2), np.float32)}, r"'loss\.psnr' has the shape"),
        ({"levels": np.array([0.2, 0.1, 0.3], np.float32)}, "levels must rise"),
        ({"levels": np.array([0.0, 0.1, 0.3], np.float32)}, "levels must rise"),
        ({"work": np.full((60, 3), 1.5, np.float32)}, r"work must lie in \(0, 1\]"),
        ({"estimate": np.full((60, 3), np.nan, np.float32)}, "not finite"),
        ({"loss_latent": np.full((60, 3), -1.0, np.float32)}, "below 0"),
        ({"loss_latent": np.full((60, 3), np.inf, np.float32)}, "not finite"),
        ({"loss_latent": None}, "without loss.latent"),
        ({"work": np.ones((60, 3), np.int64)}, "floating-point"),
    ],
)
def test_arrays_that_cannot_be_are_refused_though_their_digest_fits(saved, changes, message):
    rebound(saved, **changes)
    with pytest.raises(ProfileError, match=message):
        load_profile(saved)


def test_what_earlier_versions_wrote_besides_is_left_unread(saved):
    """They planned by the law too, and wrote what single gaps cost."""
    rebound(saved, turning=np.full((3, 10, 9, 9), np.nan, np.float32), correlation=np.zeros(4, np.float32))
    content = json.loads(saved.read_text())
    saved.write_text(json.dumps(content | {"prices": "law"}))
    after = load_profile(saved)
    assert after.facts == made_up().facts and after.arrays.keys() == made_up().arrays.keys()
    saved.write_text(json.dumps(content | {"prices": "measured"}))
    with pytest.raises(ProfileError, match=r"planned by measured prices.*Calibrate again"):
        load_profile(saved)


def timetable(steps=10, solver="Solver()", begin=0, shift=0.0):
    sigmas = tuple(1 - k / steps - shift * k * (steps - k) for k in range(steps))
    return Timetable(sigmas, (1 / steps,) * steps, tuple(-s for s in sigmas), begin, solver=solver)


@pytest.mark.parametrize(
    ("run", "guidance", "word"),
    [
        (timetable(12), 1.0, "steps: it was calibrated at 10, this run has 12"),
        (timetable(begin=3), 1.0, "steps: it was calibrated on whole runs"),
        (timetable(solver="Other()"), 1.0, r"scheduler: it was calibrated with Solver\(\), this run has Other"),
        (timetable(shift=0.002), 1.0, "scheduler: its time grid is another one"),
        (timetable(), 3.5, "guidance: it was calibrated at 1, this run has 3.5"),
    ],
)
def test_a_run_that_a_named_profile_does_not_fit_is_refused_by_name(run, guidance, word):
    profile = made_up()
    with pytest.raises(ProfileError, match=word):
        profiles_for("Model-0", profile).fitting(RunFacts(run, guidance), needed=False)
    assert profiles_for("Model-0", [profile, "nearest"]).fitting(RunFacts(run, guidance), needed=False) is not None


@pytest.mark.parametrize(
    ("run", "guidance", "word"),
    [
        (timetable(19), 1.0, "steps: it was calibrated at 20, this run has 19; there are profiles"),
        (timetable(10), 5.0, r"10 steps, guidance 3.5' differs in guidance: it was .* this run has 5; there are"),
        (timetable(20, solver="Other()"), 1.0, r"scheduler: it was calibrated with Solver\(\), this run has Other"),
    ],
)
def test_of_several_profiles_the_refusal_names_the_closest_and_lists_the_others_shortly(run, guidance, word):
    there = [(10, 3.5), (20, 1.0), (28, 3.5), (28, 1.0)]
    profiles = [made_up(steps=steps, guidance=scale) for steps, scale in there]
    with pytest.raises(ProfileError, match=word) as refused:
        profiles_for("Model-0", profiles).fitting(RunFacts(run, guidance), needed=True)
    text = str(refused.value)
    assert "10 steps (guidance 3.5), 20 steps (guidance 1), 28 steps (guidance 1, 3.5)" in text
    assert text.count("differs") == 1 and "call={...}" in text
    assert "leave out confidence and pass profile=[yours, 'nearest']" in text
    found = ProfileChoice(tuple(profiles), "found")
    with pytest.raises(ProfileError, match="leave out confidence and pass profile='nearest'"):
        found.fitting(RunFacts(run, guidance), needed=True)


def test_the_size_of_latents_is_saved_and_held_against_the_runs_where_it_is_known(tmp_path):
    made_up(size=(64, 48)).save(tmp_path / "p.json")
    sized = load_profile(tmp_path / "p.json")
    assert sized.facts.size == (64, 48)
    for profile, size, fits in [
        (sized, (64, 48), True),
        (sized, (256, 48), False),
        (sized, (), True),
        (made_up(), (9,), True),
    ]:
        assert (profile.differs(RunFacts(timetable(), 1.0, size=size)) is None) == fits
    with pytest.raises(ProfileError, match=r"size: .* on latents \(64, 48\) each, those of this run are \(256, 48\)"):
        profiles_for("Model-0", sized).fitting(RunFacts(timetable(), 1.0, size=(256, 48)), needed=False)


def test_controls_that_a_profile_has_not_seen_are_refused_by_name_and_seen_ones_must_be_there(tmp_path):
    made_up(controls=("residuals",)).save(tmp_path / "p.json")
    for profile, here, word in [
        (load_profile(tmp_path / "p.json"), (), "with residuals beside the prompt, this run has nothing"),
        (made_up(controls=()), ("a", "b"), "with nothing beside the prompt, this run has a, b"),
    ]:
        assert profile.differs(RunFacts(timetable(), 1.0, controls=profile.facts.controls)) is None
        assert profile.differs(RunFacts(timetable())) is None, "the first step is not over"
        with pytest.raises(ProfileError, match=f"differs in controls: .*{word}"):
            profiles_for("Model-0", profile).fitting(RunFacts(timetable(), 1.0, controls=here), needed=False)
    assert made_up().differs(RunFacts(timetable(), 1.0, controls=("any",))) is None


def test_a_profile_prints_what_it_is_of_and_what_it_can_promise():
    shown = repr(made_up())
    assert shown == str(made_up()) and "array" not in shown and "\n" not in shown and len(shown) < 250
    assert "Solver, 10 steps, guidance 1, tested on 60 prompts: confidence 0.8 from 0.0" in shown
    assert "0.9 from" in shown and "0.95 from" in shown
    assert "0.95" not in repr(made_up(prompts=30)) and "0.9 from" in repr(made_up(prompts=30))
    assert "8 prompts: too few for a confidence of 0.8" in repr(made_up(prompts=8))


def test_a_fitting_run_gets_its_profile_once_the_guidance_is_known():
    choice = profiles_for("Model-0", [made_up(steps=12), made_up()])
    assert choice.fitting(RunFacts(timetable()), needed=True) is None
    assert choice.fitting(RunFacts(timetable(), 1.0), needed=True).facts.steps == 10


@pytest.mark.parametrize("told", [[0.1] * (SIZE - 1), [0.1] * SIZE + ["1"], [math.inf] * SIZE, [True] * SIZE, 0.1])
def test_what_is_told_of_negative_prompts_comes_back_or_is_refused(saved, told):
    whole = replace(made_up().facts, negative_conditions={"0.text": tuple(range(SIZE))})
    Profile(whole, made_up().arrays).save(saved)
    assert load_profile(saved).facts == whole
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"weaker": {"0.text": told}}))
    with pytest.raises(ProfileError, match="weaker"):
        load_profile(saved)


def test_a_profile_of_another_model_is_refused():
    with pytest.raises(ProfileError, match="is of another model: Model-0, this is Other-1"):
        profiles_for("Other-1", made_up())


def test_a_profile_is_not_written_where_it_cannot_be(tmp_path):
    for path in (tmp_path / "nowhere" / "p.json", tmp_path / "p.txt"):
        with pytest.raises(DicacheError, match=r"cannot be written|ends in \.json"):
            made_up().save(path)


def test_of_a_bare_denoiser_nothing_is_promised_and_the_error_says_what_is_needed():
    net = nn.Module()
    net.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    for ask in (
        lambda: dicache.enable(net, error_budget=0.05, confidence=0.9),
        lambda: dicache.enable(net, error_budget=dicache.Psnr(30), confidence=0.9),
        lambda: dicache.calibrate(net, ["a"] * 8, steps=8),
        lambda: dicache.calibrate(net, ["a"], steps=8),
    ):
        with pytest.raises(ProfileError, match="promise needs a pipeline with a scheduler"):
            ask()


@pytest.mark.parametrize(("rule", "fills"), [(2, EARLIER[2]), (3, FILLS)])
def test_a_profile_decides_and_fills_in_by_the_rule_that_it_was_tested_by(rule, fills):
    pipe = Captioned()
    profile = calibrated(pipe)
    assert profile.facts.rule == RULES[-1]
    of_rule = replace(profile, facts=replace(profile.facts, rule=rule))
    choice, demand = ProfileChoice((of_rule,), "named"), parse_budget(0.3)
    config = for_profile(choice, demand)
    assert config.approximators == fills and config.controller.inner == cautious(0.3, rule)
    with dicache.enable(pipe, error_budget=0.3, profile=of_rule) as cache:
        pipe.draw([0])
    assert cache.report().to_dict()["profile_fits"]


def test_profiles_of_two_rules_are_not_mixed_and_one_of_a_rule_to_come_fits_no_run():
    pipe = Captioned()
    profile = calibrated(pipe)
    earlier, later = (replace(profile, facts=replace(profile.facts, rule=rule)) for rule in (2, 99))
    with pytest.raises(ProfileError, match=r"rules \[2, 3\], which decide differently"):
        dicache.enable(pipe, error_budget=0.3, profile=[profile, earlier])
    with dicache.enable(pipe, error_budget=0.3, profile=later), pytest.raises(ProfileError, match="by rule 99"):
        pipe.draw([0])
