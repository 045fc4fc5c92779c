"""Living with a cache: callbacks, the decorator, settings from a file."""

import asyncio
import dataclasses
import json

import pytest
import torch

import dicache
from dicache.errors import AlreadyEnabledError, ModeError, SettingsError
from helpers.requesting import Requested
from helpers.watching import strips, untouched
from pipelines.exact import ExactDenoiser, pictures
from pipelines.loops import flow_up, noise
from pipelines.neighbours import quiet
from pipelines.tiny import draw_flux, make_flux
from pipelines.videos import VIDEOS

STEPS = 8


@pytest.fixture
def pipe():
    return quiet(make_flux())


def test_every_step_and_every_run_is_told_once(pipe):
    steps, reports = [], []
    with dicache.enable(pipe, error_budget=0.5, on_step=steps.append, on_report=reports.append) as cache:
        for _ in range(2):
            steps.clear()
            draw_flux(pipe, [1, 2], STEPS)
            cache.report(), cache.report()
            facts = cache.report().to_dict()
            assert [step.step for step in steps] == list(range(STEPS)) and {step.steps for step in steps} == {STEPS}
            assert [list(step.estimated_errors) for step in steps] == [
                each["estimated_error"] for each in facts["steps"]
            ]
            for i, sample in enumerate(facts["samples"]):
                assert [[step.decisions[i]] for step in steps] == sample["actions"]
                assert steps[-1].work[i] == sample["computed_fraction"]
            assert steps[0].work == (1.0, 1.0) and max(steps[-1].work) < 1
    assert len(reports) == 2 and reports[1].to_dict() | {"enabled": False} == facts | {"enabled": False}
    with pytest.raises(dataclasses.FrozenInstanceError):
        steps[0].step = 3


def test_a_callback_may_look_at_the_report_so_far(pipe):
    lengths = []
    with dicache.enable(
        pipe, error_budget=0.5, on_step=lambda step: lengths.append(len(cache.report().to_dict()["steps"]))
    ) as cache:
        draw_flux(pipe, [1], STEPS)
    assert lengths == list(range(1, STEPS + 1))


@pytest.mark.parametrize("at", [0, 3, STEPS - 1])
def test_what_a_callback_raises_reaches_the_user_and_the_next_run_is_as_any(pipe, at):
    exact = draw_flux(pipe, [1, 2], STEPS)
    with dicache.enable(pipe, error_budget=0.5) as cache:
        cached, expected = draw_flux(pipe, [1, 2], STEPS), strips(cache)
    stop, reports = stopping([at]), list[dicache.Report]()
    with dicache.enable(pipe, error_budget=0.5, on_step=stop, on_report=reports.append) as cache:
        with pytest.raises(KeyError, match="enough"):
            draw_flux(pipe, [1, 2], STEPS)
        assert cache.report().to_dict()["complete"] == (at == STEPS - 1) == bool(reports)
        assert len(cache.report().to_dict()["steps"]) == at + 1
        assert torch.equal(draw_flux(pipe, [1, 2], STEPS), cached) and strips(cache) == expected
    assert untouched(pipe) and torch.equal(draw_flux(pipe, [1, 2], STEPS), exact)


def test_an_error_at_the_end_of_a_run_leaves_nothing_behind(pipe):
    def stop(report):
        raise KeyError("enough")

    cache = dicache.enable(pipe, error_budget=0.5, on_report=stop)
    with pytest.raises(KeyError, match="enough"):
        draw_flux(pipe, [1], STEPS)
    cache.disable()
    assert untouched(pipe)


def stopping(at):
    """Raises at the steps that it is told, once."""
    stops = list(at)

    def stop(step):
        if step.step in stops:
            stops.remove(step.step)
            raise KeyError("enough")

    return stop


def test_what_is_raised_when_a_cache_is_taken_off_leaves_nothing_behind():
    """Nobody sees a hand-written loop end before that."""
    model = ExactDenoiser(pictures())
    with (
        pytest.raises(KeyError, match="enough"),
        dicache.enable(model, error_budget=0.5, on_step=stopping([STEPS - 1])),
        torch.no_grad(),
    ):
        flow_up(model, noise(range(2)), STEPS)
    assert not any(part._forward_hooks or "forward" in vars(part) for part in model.modules())


def test_requests_call_back_too_and_one_that_is_stopped_harms_no_other(pipe):
    reports = []
    jobs = [Requested(pipe, sample, STEPS) for sample in (1, 2)]
    with dicache.enable(pipe, error_budget=0.5, on_step=stopping([3]), on_report=reports.append) as cache:
        with torch.no_grad():
            slots = [job.join(cache) for job in jobs]
            for i in range(STEPS):
                outputs = cache.step(slots, [job.inputs for job in jobs], return_exceptions=True)
                if i == 4:
                    assert isinstance(outputs[0], KeyError)
                    jobs, slots, outputs = jobs[1:], slots[1:], outputs[1:]
                for job, output in zip(jobs, outputs, strict=True):
                    job.advance(output)
        assert not reports
        slots[0].leave()
        assert len(reports) == 1 and reports[0].to_dict()["complete"]
    assert untouched(pipe) and len(reports) == 1


def test_two_denoisers_that_take_turns_have_one_report():
    pair = VIDEOS["Wan 2.2, two experts"]
    pipe, steps, reports = quiet(pair.make()), [], []
    with dicache.enable(pipe, error_budget=0.5, on_step=steps.append, on_report=reports.append) as cache:
        pair.draw(pipe, [1], STEPS)
        assert len(reports) == 1 and reports[0].to_dict() == cache.report().to_dict()
    assert sorted(step.step for step in steps) == list(range(STEPS))


def test_a_run_that_does_not_say_that_it_is_over_is_told_when_the_next_begins(pipe):
    reports = []
    pipe.maybe_free_model_hooks = lambda: None
    with dicache.enable(pipe, error_budget=0.5, on_report=reports.append):
        draw_flux(pipe, [1], STEPS)
        assert not reports
        draw_flux(pipe, [2], STEPS)
        assert len(reports) == 1
    assert len(reports) == 2 and all(report.to_dict()["complete"] for report in reports)


def test_what_cannot_be_called_is_refused(pipe):
    for name in ("on_step", "on_report"):
        with pytest.raises(ModeError, match=rf"{name} is 3\. Expected a function of one argument"):
            dicache.enable(pipe, error_budget=0.5, **{name: 3})
    assert untouched(pipe)


def test_a_decorated_function_caches_while_it_runs(pipe):
    reports = []

    @dicache.enable(pipe, error_budget=0.5, on_report=reports.append)
    def draw(seed, *, steps):
        """Draws."""
        assert not untouched(pipe)
        return draw_flux(pipe, [seed], steps)

    assert untouched(pipe) and draw.__name__ == "draw" and draw.__doc__ == "Draws."
    with dicache.enable(pipe, error_budget=0.5):
        expected = draw_flux(pipe, [1], STEPS)
        with pytest.raises(AlreadyEnabledError):
            draw(1, steps=STEPS)
    assert torch.equal(draw(1, steps=STEPS), expected) and torch.equal(draw(1, steps=STEPS), expected)
    assert untouched(pipe) and len(reports) == 2
    fails = dicache.enable(pipe, error_budget=0.5)(lambda: draw(1, steps=STEPS))
    with pytest.raises(AlreadyEnabledError):
        fails()
    assert untouched(pipe)


def test_what_is_not_over_when_it_returns_cannot_be_decorated(pipe):
    async def later():
        await asyncio.sleep(0)

    def some():
        yield

    cache = dicache.enable(pipe, error_budget=0.5)
    for function in (later, some):
        with pytest.raises(ModeError, match="a generator or a coroutine"):
            cache(function)
    cache.disable()
    with pytest.raises(ModeError, match=r"this Cache was disabled\. Call dicache\.enable again"):
        cache(len)


SETTINGS = {
    "s.toml": 'error_budget = 0.5\naudit = 1.0\nmemory = "prompts.sqlite"\n',
    "s.json": json.dumps({"error_budget": 0.5, "audit": 1.0, "memory": "prompts.sqlite"}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_from_a_file_are_the_arguments(tmp_path, name):
    pipe = dicache.reference.pipeline()
    (tmp_path / name).write_text(SETTINGS[name])
    with dicache.enable(pipe, settings=tmp_path / name) as cache:
        pipe(dicache.reference.prompts("test", 1), num_inference_steps=STEPS, output_type="latent")
    facts = cache.report().to_dict()
    assert facts["samples"][0]["budget"] == 0.5 and facts["audit"]["samples"] == 1
    assert (tmp_path / "prompts.sqlite").exists()
    with dicache.enable(pipe, settings=str(tmp_path / name), error_budget=0.25, audit=0.0) as cache:
        pipe(dicache.reference.prompts("test", 1), num_inference_steps=STEPS, output_type="latent")
    facts = cache.report().to_dict()
    assert facts["samples"][0]["budget"] == 0.25 and facts["audit"] is None
    with pytest.raises(ModeError, match="the settings say error_budget and enable was given speedup"):
        dicache.enable(pipe, settings=tmp_path / name, speedup=2.0)


def test_a_preset_has_a_name_and_options(pipe, tmp_path):
    (tmp_path / "s.toml").write_text('preset = {name = "fora", interval = 3}')
    for settings in (tmp_path / "s.toml", {"preset": {"name": "fora", "interval": 3}}):
        with dicache.enable(pipe, settings=settings) as cache:
            draw_flux(pipe, [1], STEPS)
        assert strips(cache) == ["##==#==#"]
    for preset, message in (
        ("forra", "'forra' is no preset. Did you mean fora?"),
        ({"interval": 3}, "None is no preset"),
        ({"name": "fora", "every": 3}, "preset fora does not take its options: .*every"),
    ):
        with pytest.raises(SettingsError, match=message):
            dicache.enable(pipe, settings={"preset": preset})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "s.toml",
            "eror_budget = 0.5",
            r"'eror_budget' is no setting, and stands in .*s\.toml\. Did you mean error_budg",
        ),
        ("s.toml", "xyz = 1", "Expected one of error_budget, speedup"),
        ("s.toml", "error_budget 0.5", r"s\.toml holds no settings: .*Expected TOML or JSON"),
        ("s.json", "[1]", "it holds no JSON object"),
        ("s.yaml", "error_budget: 0.5", r"its name ends in '\.yaml'"),
        ("s.toml", "profile = 3", "profile is 3 in the settings. Expected the path"),
        ("s.toml", "\xff", "holds no settings"),
        ("none.toml", None, "does not exist or is not a plain file"),
    ],
)
def test_settings_that_are_none_have_one_clear_error(pipe, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=message):
        dicache.enable(pipe, settings=tmp_path / name)
    with pytest.raises(SettingsError, match="settings is a int"):
        dicache.enable(pipe, settings=3)
    assert untouched(pipe)


def test_paths_begin_at_the_file(tmp_path):
    from dicache.enable_options import SETTINGS as names
    from dicache.files.settings_file import read_settings

    path = tmp_path / "s.toml"
    path.write_text('profile = ["a.json", "/b/c.json", "user/repository"]\nschedule = "sub/t.json"\n')
    assert read_settings(path, names) == {
        "profile": [str(tmp_path / "a.json"), "/b/c.json", "user/repository"],
        "schedule": str(tmp_path / "sub" / "t.json"),
    }
    path.write_text('profile = "nearest"')
    assert read_settings(path, names) == {"profile": "nearest"}


def test_attributes_are_flat_and_plain(pipe):
    with dicache.enable(pipe, error_budget=[0.5, 0.1], audit=1.0) as cache:
        assert cache.report().attributes()["dicache.samples"] == 0
        draw_flux(pipe, [1, 2], STEPS)
    attributes = cache.report().attributes()
    assert attributes["dicache.speedup"] == cache.report().compute_speedup > 1
    assert attributes["dicache.budgets"] == [0.5, 0.1] and attributes["dicache.decisions"] == strips(cache)
    assert "dicache.confidence" not in attributes
    for name, value in attributes.items():
        values = value if isinstance(value, list) else [value]
        assert name.startswith("dicache.") and len({type(each) for each in values}) <= 1
        assert all(type(each) in (bool, int, float, str) for each in values)
