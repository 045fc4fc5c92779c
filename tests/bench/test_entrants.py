"""Arms from other people's files: what is read of them, what they may do to a run, and what is said of a bad one."""

import argparse
import json
import re
from pathlib import Path

import pytest

from dicache.bench import __main__ as commands
from dicache.bench.arms.entrant import ArmFileError, entrant, read
from dicache.bench.models.reference import Setting

GOOD = "name, sweep = 'mine', [2, 3]\ndef prepare(pipe, value):\n    pipe.append(value)\n"


@pytest.fixture
def arm_file(tmp_path):
    def written(text, name="my_arm.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


def yielded(arm, value=2, pipe=None):
    with arm.enter([] if pipe is None else pipe, value, Setting(steps=28)) as setting:
        return setting


def test_a_file_with_a_name_a_sweep_and_prepare_is_an_arm(arm_file):
    arm, pipe = read(arm_file(GOOD)), []
    assert (arm.name, arm.kind, arm.order, arm.note) == ("mine", "entrant", (2, 3), "from my_arm.py")
    assert yielded(arm, 3, pipe) == Setting(steps=28) and pipe == [3]


def test_the_files_that_the_docs_show_are_arms(arm_file):
    page = Path(__file__).parents[2] / "docs" / "your-arm.md"
    fora, fewer = (read(arm_file(block)) for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    assert (fora.name, fora.knob, fora.note) == ("FORA, as I play it", "interval", "no warm-up")
    assert yielded(fewer, 0.5).steps == 14


def test_prepare_may_return_a_context_take_the_setting_and_change_the_call(arm_file):
    text = """
import contextlib
name, sweep, knob, note = "mine", (0.5,), "share", "halves"
@contextlib.contextmanager
def prepare(pipe, value, setting):
    pipe.append("entered")
    yield {"num_inference_steps": round(value * setting.steps)}
    pipe.append("left")
"""
    arm, pipe = read(arm_file(text)), []
    assert yielded(arm, 0.5, pipe).steps == 14 and pipe == ["entered", "left"]
    assert (arm.knob, arm.note) == ("share", "halves")
    grid = read(arm_file(text.replace('{"num_inference_steps": round(value * setting.steps)}', '{"sigmas": [1, 0.4]}')))
    assert yielded(grid).sigmas == (1.0, 0.4) and yielded(grid).steps == 2
    cache = read(
        arm_file("import contextlib\n" + GOOD.replace("pipe.append(value)", "return contextlib.nullcontext(7)"))
    )
    assert yielded(cache) == Setting(steps=28), "a Cache that is entered changes nothing of the call"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sweep = [1]", "no name, no prepare"),
        ("import nowhere_at_all", "could not be imported: ModuleNotFoundError"),
        ("name = (", "could not be imported: SyntaxError"),
        (GOOD.replace("'mine'", "''"), "a few words on one line"),
        (GOOD.replace("'mine'", "3"), "a few words on one line"),
        (GOOD.replace("[2, 3]", "[]"), "from the mildest on"),
        (GOOD.replace("[2, 3]", "2"), "from the mildest on"),
        (GOOD.replace("[2, 3]", "[2, None]"), "has None"),
        (GOOD.replace("[2, 3]", "[2, float('nan')]"), "has nan"),
        (GOOD.replace("[2, 3]", "[2, 2]"), "a value twice"),
        (GOOD.replace("(pipe, value)", "(pipe)"), "a function of the pipeline and the knob's value"),
        (GOOD + "prepare = 3", "a function of the pipeline and the knob's value"),
    ],
    ids=(
        "parts missing, import fails, no Python, no name, a number for a name, no values, one value, None, nan, twice, "
        "one parameter, no function"
    ).split(", "),
)
def test_a_bad_file_is_one_clear_line(arm_file, text, words):
    path = arm_file(text)
    with pytest.raises(ArmFileError, match=r"my_arm\.py") as error:
        read(path)
    assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(argparse.ArgumentTypeError):
        entrant(str(path))


def test_a_file_that_is_not_there_or_no_python_is_said(tmp_path, arm_file):
    for path in (tmp_path / "nothing.py", arm_file(GOOD, "my_arm.txt"), tmp_path):
        with pytest.raises(ArmFileError, match="is no Python file"):
            read(path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 3", "returned 3. Expected None or"),
        ("return contextlib.nullcontext({'steps': 3})", "yields 'steps'. Expected num_inference_steps or sigmas"),
    ],
    ids=["no context", "an unknown argument"],
)
def test_what_prepare_may_not_do_is_said(arm_file, body, words):
    arm = read(arm_file("import contextlib\n" + GOOD.replace("pipe.append(value)", body)))
    with pytest.raises(ArmFileError, match=re.escape(words)):
        yielded(arm)


def test_a_strangers_arm_runs_beside_the_rest_and_a_bad_one_is_refused(run_main, arm_file, tmp_path):
    """From end to end, on a file of results that holds another arm."""
    text = """
import contextlib
name, sweep, knob = "steps of mine", [0.8, 0.6, 0.2, 0.1], "share"
def prepare(pipe, value, setting):
    return contextlib.nullcontext({"num_inference_steps": max(1, round(value * setting.steps))})
"""
    small = ("pareto", "--steps", 5, "--captions", 1, "--coarse", "--no-peers", "--no-costs", "--out", tmp_path / "out")
    assert run_main(commands.main, *small, "--arms", "order 2$")[0] == 0
    (results,) = (tmp_path / "out").glob("*.json")
    rest = json.loads(results.read_text())["points"]
    mine = ("--arm", arm_file(text), "--arms", "steps of mine")
    code, output, errors = run_main(commands.main, *small, *mine)
    assert code == 0, errors
    points = json.loads(results.read_text())["points"]
    assert [point for point in points if point["arm"] != "steps of mine"] == rest and "steps of mine" in output
    drawn = [point for point in points if point["arm"] == "steps of mine"]
    assert drawn[0]["work"] == pytest.approx(0.8) and drawn[0]["kind"] == "entrant" and drawn[0]["limit"]
    assert len(drawn) < 4, "it ended once the error was past the tables"
    failing = arm_file("name, sweep = 'broken', [1]\ndef prepare(pipe, value):\n    return 3\n", "broken.py")
    code, _, errors = run_main(commands.main, *small, "--arm", failing, "--arms", "broken")
    assert code == 1 and "broken failed at value 1: ArmFileError" in errors
    taken = arm_file(GOOD.replace("mine", "fewer steps"), "taken.py")
    code, _, errors = run_main(commands.main, *small, "--arm", taken, "--arms", "fewer")
    assert code == 1 and "two arms called 'fewer steps'" in errors
    code, _, errors = run_main(commands.main, *small, "--arm", tmp_path / "nothing.py")
    assert code == 2 and "is no Python file" in errors
