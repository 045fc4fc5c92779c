"""What is said and looked at before a calibration begins, and what is as it was after it."""

from contextlib import suppress

import pytest

import dicache
from dicache.errors import CaptionError, DicacheError, ProfileError
from dicache.measuring.calibrate import calibrate
from dicache.measuring.prompt_runs import Drawer
from dicache.promise.learn_then_test import LISTED, prompts_needed
from helpers.calibrating import GUIDED, LEVELS, PROMPTS, STEPS, Captioned
from helpers.watching import count_macs

CAPTION = "center large red circle on white background"
QUIET = {"steps": STEPS, "batch": 4, "levels": LEVELS, "call": GUIDED, "progress": False}


@pytest.mark.parametrize("bad", [3, None, "", "  \n", ["prompt 1"], b"prompt 1"])
@pytest.mark.parametrize("place", [0, 11])
def test_a_prompt_that_is_no_text_is_refused_before_anything_is_drawn_and_told_by_its_place(bad, place):
    pipe, prompts = Captioned(), [*PROMPTS]
    prompts[place] = bad
    with pytest.raises(ProfileError, match=rf"prompt {place} .*of 12 is .* Expected a text"):
        calibrate(pipe, prompts, **QUIET)
    assert pipe.runs == 0


def test_a_caption_that_the_reference_model_cannot_draw_is_found_before_the_first_step(reference):
    macs = count_macs(reference.transformer)
    try:
        with pytest.raises(
            CaptionError, match=r"prompt 12 .*of 13, 'a cat on the moon', cannot be drawn: .*does not know"
        ):
            dicache.calibrate(reference, [CAPTION] * 12 + ["a cat on the moon"], steps=8, progress=False)
    finally:
        del reference.transformer.forward
    assert not macs


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError, ProfileError])
def test_whatever_a_stock_tokenizer_raises_is_an_error_of_ours_that_names_the_prompt(error):
    def tokenizer(prompt):
        if prompt == PROMPTS[5]:
            raise error("no such thing")

    pipe = Captioned()
    pipe.components = {"tokenizer": None, "tokenizer_2": tokenizer, "vae": tokenizer}
    with pytest.raises(DicacheError, match=r"prompt 5 .*of 12, 'prompt 5', cannot be .*no such thing"):
        calibrate(pipe, PROMPTS, **QUIET)
    assert pipe.runs == 0


def test_how_much_is_drawn_is_said_before_and_how_long_it_takes_after_two_runs(capsys, tmp_path):
    calibrate(Captioned(), PROMPTS, **QUIET | {"progress": True}, checkpoint=tmp_path)
    output, told = capsys.readouterr()
    assert not output
    assert "4 runs a prompt, one uncached and one within each of 3 internal budgets: 48 samples, in 12 batches" in told
    assert told.count("samples to go, about") == 1 and "40 samples to go, about" in told
    calibrate(Captioned(), PROMPTS, **QUIET | {"progress": True}, checkpoint=tmp_path)
    assert "to go, about" not in capsys.readouterr().err, "all of it is there"
    calibrate(Captioned(), PROMPTS, **QUIET)
    assert capsys.readouterr() == ("", "")


def test_prompts_that_are_too_few_for_any_listed_confidence_are_warned_of():
    fewest = min(map(prompts_needed, LISTED))
    with pytest.warns(UserWarning, match=f"{fewest - 1} prompts are too few .* takes {fewest}"):
        calibrate(Captioned(), PROMPTS[: fewest - 1], **QUIET)
    assert calibrate(Captioned(), PROMPTS[:fewest], **QUIET).prompts == fewest  # a warning is an error here


@pytest.mark.parametrize("before", [None, {}, {"desc": "mine", "leave": False}, {"disable": True}])
@pytest.mark.parametrize("ends", ["well", "interrupted"])
def test_the_pipelines_own_progress_bar_is_off_meanwhile_and_as_it_was_afterwards(before, ends, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    pipe = dicache.reference.pipeline()
    if before is not None:
        pipe.set_progress_bar_config(**before)
    drawer = Drawer(pipe, [CAPTION], 2, 0, {}, images=False)
    if ends == "interrupted":
        pipe.transformer.register_forward_pre_hook(stop)
    with suppress(KeyboardInterrupt):
        drawer.draw([0])
    assert vars(pipe).get("_progress_bar_config") == before
    assert capsys.readouterr().err == ""
