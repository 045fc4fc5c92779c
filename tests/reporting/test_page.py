"""The page, the picture and the fragment of a report, from facts written by hand."""

import base64
import html
import io
import re
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given
from PIL import Image

from dicache.errors import FileError
from dicache.reporting.front_plot import figure as front_figure
from dicache.reporting.page import COLOURS, PARTLY, PARTLY_WORDS, WORDS, figure, fragment, page
from dicache.reporting.shown import SIDE
from dicache.reporting.shown import shown as cards_of
from dicache.schedules.pareto import ParetoSet
from dicache.types import MARKS, REASONS, Action, Reason

ACTIONS = {action.name.lower(): action for action in COLOURS}
STEPS = st.lists(st.lists(st.sampled_from(sorted(ACTIONS)), min_size=1, max_size=3), min_size=1, max_size=5)


def sample(steps, budget=0.05, error=0.04, work=0.5, reason="within_budget"):
    reasons = [[reason] * len(actions) for actions in steps]
    numbers = {"budget": budget, "estimated_error": error, "true_error": None, "computed_fraction": work}
    return {**numbers, "steps": len(steps), "actions": steps, "reasons": reasons}


def facts(*samples, warnings=(), spent=()):
    rows = [{"estimated_error": [error] * len(samples)} for error in spent or [0.0] * samples[0]["steps"]]
    run = {"headline": "dicache: 1.50x less computed", "model": "Net", "scheduler": "Euler", "enabled": True}
    counts = {
        "compute_speedup": 1.5,
        "executed_macs": 2e9,
        "uncached_macs": 3e9,
        "side_networks": [],
        "cache_bytes": 8,
        "audit": None,
        "profile": None,
    }
    return {**run, **counts, "samples": [*samples], "steps": rows, "warnings": [*warnings]}


def shown(text: str) -> list[tuple[str, str]]:
    """Colour and words of every step of the table."""
    table, _ = text.split("</table>")
    spans = re.findall(r'<span class="step" style="background:(#\w+)" title="([^"]*)">', table)
    return [(colour, html.unescape(words)) for colour, words in spans]


def colour_of(actions: list[str]) -> str:
    computed = [action in ("compute", "unstored") for action in actions]
    return PARTLY if any(computed) and not all(computed) else COLOURS[ACTIONS[actions[0]]]


@given(steps=STEPS)
def test_every_step_has_the_colour_of_what_was_done_and_one_of_its_own_where_sites_part(steps):
    colours = [colour for colour, _ in shown(fragment(facts(sample(steps))))]
    assert colours == [colour_of(actions) for actions in steps]


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.name)
def test_every_step_says_why(reason):
    text = fragment(facts(sample([["reuse"], ["compute", "reuse", "reuse"]], reason=reason.name.lower())))
    assert shown(text)[0][1] == f"step 0: {WORDS[Action.REUSE]}; {REASONS[reason]}"
    assert shown(text)[1][1] == "step 1: 1 of 3 sites computed"


def test_all_that_can_be_done_has_a_colour_and_stands_in_the_legend():
    assert set(COLOURS) | {Action.DYNAMIC} == set(MARKS), "what is decided in the run is only in schedules"
    assert len({*COLOURS.values(), PARTLY}) == len(COLOURS) + 1, "no two alike"
    _, legend = fragment(facts(sample([["compute"]]))).split("</table>")
    assert all(WORDS[action] in legend and colour in legend for action, colour in COLOURS.items())
    assert PARTLY_WORDS in legend and PARTLY in legend


def test_numbers_stand_in_the_table_and_a_dash_where_there_is_none():
    text = fragment(facts(sample([["compute"]]), sample([["reuse"]], budget=None, error=None, work=0.123)))
    rows = re.findall(r"<tr><td>(\d)<td>([^<]*)<td>([^<]*)<td>([^<]*)<td>", text)
    assert rows == [("0", "0.0500", "0.0400", "50%"), ("1", "-", "-", "12%")]
    assert "1.50x less computed" in text


def test_what_a_note_says_is_text_and_no_markup():
    text = fragment(facts(sample([["compute"]]), warnings=["a <b> & c"]))
    assert "note: a &lt;b&gt; &amp; c" in text and "<b>" not in text


def test_a_page_has_all_of_the_fragment_and_its_picture_in_it():
    one = facts(sample([["compute"], ["reuse"]]))
    whole = page(one)
    assert fragment(one).strip() in whole and whole.startswith("<!doctype html>")
    (image,) = re.findall(r'src="data:image/png;base64,([^"]+)"', whole)
    assert image.startswith("iVBORw0KGgo"), "a PNG"
    assert "http" not in whole, "one file is all of it"


def test_the_picture_shows_decisions_above_and_what_was_spent_with_the_budgets_below():
    samples = sample([["compute"], ["reuse"], ["compute"]]), sample([["reuse"]] * 3, budget=None)
    above, below = figure(facts(*samples, spent=[0.0, 0.02, 0.03])).axes
    assert len(above.patches) == 6 and above.get_ylim() == (1.5, -0.5), "the first sample stands on top"
    solid = [line for line in below.lines if line.get_linestyle() == "-"]
    dashed = [line for line in below.lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in solid] == [[0.0, 0.02, 0.03]] * 2
    (budget,) = dashed
    assert set(budget.get_ydata()) == {0.05} and budget.get_color() == solid[0].get_color()


def test_a_front_is_a_line_of_error_over_work_without_what_has_no_error():
    members = [SimpleNamespace(work=work, error=error) for work, error in ((0.4, 0.05), (1.0, 0.0), (0.6, 0.01))]
    front = ParetoSet(tuple(members))
    (axes,) = front_figure({"a finder": front}).axes
    (line,) = axes.lines
    assert list(line.get_xdata()) == [0.6, 0.4] and list(line.get_ydata()) == [0.01, 0.05]
    assert axes.get_yscale() == "log" and line.get_label() == "a finder"


def opened(url):
    kind, _, data = url.partition(";base64,")
    return kind, Image.open(io.BytesIO(base64.b64decode(data)))


def test_pictures_are_in_the_page_no_larger_than_a_screen_needs_and_videos_move():
    small, large = Image.new("RGBA", (32, 32), "red"), Image.new("RGB", (2048, 1024), "blue")
    video = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    cards = cards_of(3, ["<one>", "two", "three"], [small, large, video], None)
    (_, first, tiny), (_, second, fine), (_, third, _) = (card.pictures[0] for card in cards)
    assert (tiny, fine) == (True, False)
    assert opened(first)[0] == "data:image/png" and opened(first)[1].getpixel((0, 0)) == (255, 0, 0)
    assert opened(second)[0] == "data:image/jpeg" and opened(second)[1].size == (SIDE, SIDE // 2)
    assert opened(third)[0] == "data:image/webp" and opened(third)[1].n_frames == 3
    text = page(facts(*[sample([["compute"]])] * 3), cards)
    assert "0: &lt;one&gt;</figcaption>" in text and text.count('class="small"') == 2 and first in text


def test_there_is_one_of_each_per_sample_or_an_error():
    one = Image.new("RGB", (8, 8))
    assert cards_of(2, None, None, None) == []
    for lists, message in (
        ((["a"], None, None), "1 prompts were given for 2 samples"),
        ((None, [one] * 3, None), "3 pictures were given for 2 samples"),
        ((None, [one] * 2, [one]), "1 uncached were given for 2 samples"),
        ((None, [one, "b"], None), "a picture is a str. Expected what a pipeline gives with output_type='pil'"),
        ((None, [one, []], None), "a picture is a list"),
    ):
        with pytest.raises(FileError, match=re.escape(message)):
            cards_of(2, *lists)
