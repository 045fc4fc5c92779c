"""Prompts as those who measure take them: texts, what stands for texts, and what is neither."""

import numpy as np
import pytest
import torch

from dicache.errors import DicacheError, ProfileError, ScheduleError
from dicache.measuring.calibrate import calibrate
from dicache.measuring.prompt_runs import Drawer
from dicache.measuring.schedule_measurements import Calibration
from dicache.sites import Evaluation
from helpers.calibrating import GUIDED, LEVELS, PROMPTS, STEPS, Captioned, calibrated
from pipelines.tiny import GUIDANCE, draw_pixart, embeds, make_pixart


@pytest.fixture(scope="module")
def profile():
    return calibrated(Captioned())


def test_what_cannot_read_prompts_is_told_what_it_can_be_given():
    pipe = Captioned()
    with pytest.raises(ProfileError, match="bare denoiser"):
        calibrate(pipe.transformer, PROMPTS, steps=STEPS)
    pipe.text_encoder = pipe.text_encoder_2 = None
    for asked in (
        lambda: calibrate(pipe, PROMPTS, steps=STEPS),
        lambda: Calibration(PROMPTS, 8).on(pipe, Evaluation()),
    ):
        with pytest.raises(DicacheError, match=r"has no text encoder.*prompts=\[\{'prompt_embeds'"):
            asked()
    assert pipe.runs == 0


ROW = torch.zeros(1, 2)
MISUSED = {
    "a text": ("prompts.txt", {}, "is the text 'prompts.txt'. Expected a list"),
    "bytes": (b"prompts", {}, "is a bytes"),
    "one mapping": ({"prompt_embeds": ROW}, {}, "is a dict"),
    "a batch of embeddings": (torch.zeros(9, 2), {}, "is a Tensor"),
    "what can be read once": (iter(PROMPTS), {}, "Expected a list"),
    "nothing": (None, {}, "is a NoneType"),
    "steps": (PROMPTS, {"num_inference_steps": 3}, "Leave it out: it is steps="),
    "noise": (PROMPTS, {"generator": None}, "Leave it out: .* seed="),
    "prompts": (PROMPTS, {"prompt": "a"}, "Leave it out: it is prompts="),
    "output": (PROMPTS, {"output_type": "pil"}, "Leave it out"),
    "texts and mappings": (["a", {"prompt": "b"}] * 4, {}, "not alike"),
    "other arguments": ([{"prompt": "b"}, {"prompt_embeds": ROW}] * 4, {}, "not alike"),
    "an argument twice": ([{"prompt_embeds": ROW}] * 8, {"prompt_embeds": ROW}, "prompt_embeds, which call"),
    "steps in a prompt": ([{"num_inference_steps": 8}] * 8, {}, "num_inference_steps, which"),
    "no row": ([{"prompt_embeds": ROW[0]}] * 8, {}, r"shape \(2,\). Expected one row"),
}


@pytest.mark.parametrize("case", MISUSED)
def test_prompts_and_further_arguments_that_cannot_be_drawn_are_one_error_for_all_who_measure(case):
    prompts, call, words = MISUSED[case]
    with pytest.raises(ProfileError, match=words):
        calibrate(Captioned(), prompts, steps=STEPS, call=call)
    with pytest.raises(ScheduleError, match=words):
        Calibration(prompts, STEPS, call=call)


def test_a_pipeline_without_an_encoder_is_calibrated_on_what_stands_for_prompts(profile, tmp_path):
    class Embedded(Captioned):
        def __init__(self):
            super().__init__()
            self.text_encoder = None

        def __call__(self, *, names, **kwargs):
            return super().__call__([f"prompt {int(k)}" for k in names.flatten()], **kwargs)

    def embedded(order):
        prompts = [{"names": torch.tensor([[k]])} for k in order]
        options = {"batch": 4, "levels": LEVELS, "call": GUIDED, "checkpoint": tmp_path, "progress": False}
        return calibrate(Embedded(), prompts, steps=STEPS, **options)

    one = embedded(range(12))
    for key, value in profile.arrays.items():
        np.testing.assert_array_equal(one.arrays[key], value)
    assert embedded(range(12)).about["cost"]["samples"] == 0
    assert embedded([*range(8), *range(4)]).about["cost"]["samples"] == 4 * (1 + len(LEVELS))
    digests = {Calibration([{"names": torch.tensor([[k]])}], STEPS).digest for k in range(3)}
    assert len(digests) == 3


def test_a_pipeline_that_calls_back_in_the_old_way_gives_its_final_latents():
    pipe, call = make_pixart(), {"negative_prompt": None, "height": 16, "width": 16, "use_resolution_binning": False}
    names = ("prompt_embeds", "negative_prompt_embeds")
    masks = {name.replace("embeds", "attention_mask"): torch.ones(1, 8) for name in names}
    prompts = [{name: embeds([k], 8, 32, salt=1 + 2 * i) for i, name in enumerate(names)} | masks for k in range(2)]
    drawn = Drawer(pipe, prompts, STEPS, 0, call | {"prompt": None, "guidance_scale": GUIDANCE}, images=False).draw(
        [0, 1]
    )
    assert torch.equal(drawn.latents, draw_pixart(pipe, [0, 1], STEPS))
