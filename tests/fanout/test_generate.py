"""Many prompts, each within its budget: in their order, in batches of one size, the same whatever draws them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import dicache
from dicache.errors import BudgetError, PipelineError
from helpers.calibrating import GUIDED, PROMPTS, Captioned

BUDGETS = (0.0, 0.5, 0.1, 0.5, 0.0)
OPTIONS = {"steps": 6, "batch": 2, "call": GUIDED, "output_type": "latent", "progress": False}


def test_prompts_come_in_their_order_within_their_budgets_alone_and_on_workers():
    pipe = Captioned()
    alone = dicache.generate(pipe, PROMPTS[:5], BUDGETS, **OPTIONS)
    assert [report.budget.tolist() for report in alone.reports] == [[budget] for budget in BUDGETS]
    assert [report.compute_speedup == 1 for report in alone.reports] == [True, False, False, False, True]
    assert pipe.runs == 3 and len({str(report) for report in alone.reports}) > 1
    with ThreadPoolExecutor(2) as executor:
        handed_out = dicache.generate(pipe, PROMPTS[:5], BUDGETS, executor=executor, **OPTIONS)
    assert all(map(torch.equal, alone.images, handed_out.images)) and pipe.runs == 3
    assert list(map(str, alone.reports)) == list(map(str, handed_out.reports))


def test_budget_zero_draws_what_the_pipeline_draws():
    exact = Captioned().draw([0, 1], steps=6)
    drawn = dicache.generate(Captioned(), PROMPTS[:2], 0.0, **OPTIONS)
    assert torch.equal(torch.stack(drawn.images), exact)


class Sized(Captioned):
    """Takes its prompts by name."""

    def __call__(self, mood=None, prompt=(), **kwargs):
        self.sizes.append((len(prompt), kwargs.get("height", 32)))
        return super().__call__(prompt, **kwargs)

    sizes: list = []  # noqa: RUF012 - one list is looked at by one test


def test_only_prompts_of_one_size_are_drawn_together():
    prompts = [{"prompt": PROMPTS[k], "height": height} for k, height in enumerate((32, 64, 32, 64, 32))]
    pipe = Sized()
    drawn = dicache.generate(pipe, prompts, BUDGETS, **OPTIONS)
    assert pipe.sizes == [(2, 32), (1, 32), (2, 64)]
    assert [image.shape[0] for image in drawn.images] == [256, 512, 256, 512, 256]


def test_what_cannot_be_drawn_is_one_error_before_anything_runs():
    pipe = Captioned()
    for wrong, error, words in (
        ((PROMPTS[:2], [0.1]), BudgetError, "budgets has 1 entries"),
        ((PROMPTS[:2], -1), BudgetError, "budgets is -1"),
        (("prompts.txt", 0.1), PipelineError, "Expected a list"),
    ):
        with pytest.raises(error, match=words):
            dicache.generate(pipe, *wrong, **OPTIONS)
    with pytest.raises(PipelineError, match="expected 1 or more"):
        dicache.generate(pipe, PROMPTS, 0.1, **OPTIONS | {"steps": 0})
    with pytest.raises(PipelineError, match="bare denoiser"):
        dicache.generate(pipe.transformer, PROMPTS, 0.1, **OPTIONS)
    assert pipe.runs == 0
