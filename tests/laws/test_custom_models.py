"""The page on models of one's own is a program that runs, and does what the page says."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import dicache
from dicache.controllers.planned import Planned
from dicache.errors import ModeError, UnsupportedModelError
from dicache.probes.first_blocks import FirstBlocks
from dicache.promise.metrics import relative_error

PAGE = Path(__file__).resolve().parents[2] / "docs" / "custom-models.md"


@pytest.fixture(scope="module")
def page() -> dict:
    names: dict = {"__name__": "page"}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)), names)
    return names


def test_a_module_with_a_list_of_blocks_is_found_by_its_shape(page):
    error = relative_error(page["cached"], page["exact"])
    report = page["cache"].report()
    assert report.to_dict()["branches"] == ["call 0", "call 1"]
    assert report.compute_speedup > 1.2
    assert float(error[0]) <= 0.02 and float(error[1]) <= 0.05
    torch.testing.assert_close(page["cached"][2], page["exact"][2], rtol=1e-4, atol=1e-5)


def test_a_family_of_ones_own_is_wrapped_and_both_its_streams_are_guessed(page):
    report = page["talks"].report()
    assert report.compute_speedup > 1.2
    assert len(report.to_dict()["steps"]) == 28
    for exact, cached in zip(page["spoken"], page["guessed"], strict=True):
        assert not torch.equal(exact, cached)
    flat = [torch.cat([t.flatten(1) for t in pair], dim=1) for pair in (page["guessed"], page["spoken"])]
    assert bool((relative_error(*flat) <= 0.05).all())


def test_budget_zero_on_a_family_of_ones_own_is_bitwise_the_model(page):
    with dicache.enable(page["talking"], error_budget=0.0, family=page["family"]):
        again = page["talk"](page["talking"], page["picture"], page["sound"])
    assert all(torch.equal(one, other) for one, other in zip(again, page["spoken"], strict=True))


def test_without_its_family_the_model_is_refused(page):
    with pytest.raises(UnsupportedModelError, match="TalkingPictures has no stack"):
        dicache.enable(page["talking"], error_budget=0.05)


def test_a_family_that_does_not_fit_is_refused(page):
    with pytest.raises(UnsupportedModelError, match="the family given is that of TalkingPictures"):
        dicache.enable(page["model"], error_budget=0.05, family=page["family"])
    wrong = dicache.Family(model="TalkingPictures", stacks=("trunk.blocks",))
    with pytest.raises(UnsupportedModelError, match=r"has no trunk\.blocks"):
        dicache.enable(page["talking"], error_budget=0.05, family=wrong)
    unknown = dicache.Family(model="TalkingPictures", stacks=("trunk.layers",), streams=("hidden",))
    with pytest.raises(UnsupportedModelError, match=r"no block of TalkingPictures takes 'hidden'.*Layer: tokens, temb"):
        dicache.enable(page["talking"], error_budget=0.05, family=unknown)
    with pytest.raises(ModeError, match=r"Expected a dicache\.Family"):
        dicache.enable(page["talking"], error_budget=0.05, family="TalkingPictures")


@pytest.mark.parametrize("name", ["stacks", "streams", "latents", "time"])
def test_one_name_in_the_place_of_several_is_refused(name):
    facts = {"stacks": ("trunk.layers",), name: "trunk"}
    with pytest.raises(UnsupportedModelError, match=rf"{name}=\('trunk',\)"):
        dicache.Family(model="TalkingPictures", **facts)


def test_one_block_is_enough_for_whole_evaluations(page):
    facts = {"latents": ("picture", "sound"), "time": ("progress",)}
    single = dicache.Family(model="TalkingPictures", stacks=("trunk",), **facts)
    for budget in (0.0, 0.05):
        with dicache.enable(page["talking"], error_budget=budget, family=single) as cache:
            got = page["talk"](page["talking"], page["picture"], page["sound"])
        wanted = page["guessed"] if budget else page["spoken"]
        assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
        assert (cache.report().compute_speedup > 1.2) == (budget > 0)


@pytest.mark.parametrize("depth", [6, 7])
def test_a_probe_that_looks_at_all_blocks_is_refused(page, depth):
    config = dicache.Config(Planned(0.05), probe=FirstBlocks(depth))
    with pytest.raises(UnsupportedModelError, match=f"a probe of {depth} blocks looks at all blocks of Talking"):
        dicache.enable(page["talking"], config=config, family=page["family"])
    with dicache.enable(
        page["talking"], config=dicache.Config(Planned(0.05), probe=FirstBlocks(5)), family=page["family"]
    ) as cache:
        page["talk"](page["talking"], page["picture"], page["sound"])
    assert cache.report().compute_speedup > 1


def test_a_time_that_is_not_there_is_said_once_and_by_its_name(page):
    lost = dataclasses.replace(page["family"], time=("sigma",))
    with dicache.enable(page["talking"], error_budget=0.05, family=lost) as cache:
        got = page["talk"](page["talking"], page["picture"], page["sound"])
    assert all(torch.equal(one, other) for one, other in zip(got, page["spoken"], strict=True))
    notes = " ".join(cache.report().warnings)
    assert "called with picture, sound, progress, and none of sigma is a time among them" in notes
    assert "times of their own" not in notes


def test_a_latent_that_is_not_there_is_an_error_that_lists_what_is(page):
    for latents in (("pictures",), ("image", "noise")):
        lost = dataclasses.replace(page["family"], latents=latents)
        with dicache.enable(page["talking"], error_budget=0.05, family=lost):
            sought = f"with picture, sound, progress. Expected tensors named {', '.join(latents)}"
            with pytest.raises(UnsupportedModelError, match=sought):
                page["talk"](page["talking"], page["picture"], page["sound"])


def test_a_model_that_returns_more_than_it_was_given_is_refused_at_its_first_call(page):
    family = dicache.Family(model="TalkingPictures", stacks=("trunk.layers",), time=("progress",))
    with (
        dicache.enable(page["talking"], error_budget=0.05, family=family),
        pytest.raises(UnsupportedModelError, match="returned 2 tensors"),
    ):
        page["talk"](page["talking"], page["picture"], page["sound"])


class Listed(nn.Module):
    """Takes and gives a list of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Halving() for _ in range(2))

    def forward(self, x, t):
        rows = torch.stack(list(x)) if len({sample.shape for sample in x}) == 1 else x[0][None]
        for block in self.blocks:
            rows = block(rows)
        return [*rows]


class Halving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.scale * x


class Tied(nn.Module):
    """Of three blocks; the module around them has two names, and so has the last block."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Halving() for _ in range(3)) if own else nn.ModuleList([Halving()] * 3)
        self.enter = nn.Linear(3, 3)
        self.every, self.last = nn.ModuleList([self.enter]), self.blocks[-1]

    def forward(self, x, t):
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_a_module_of_two_names_is_counted_once_and_disabling_restores_it():
    model, t = Tied(own=True), torch.tensor([1.0])
    before = {path: set(vars(module)) for path, module in model.named_modules()}
    with torch.no_grad(), dicache.enable(model, error_budget=0.05) as cache:
        model(torch.ones(1, 3), t)
        assert float(cache.trace.executed) == 9
    assert {path: set(vars(module)) for path, module in model.named_modules()} == before


def test_one_block_in_several_places_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1 is the module that blocks\.0 is"):
        dicache.enable(Tied(own=False), error_budget=0.05)


def test_a_list_of_samples_of_several_sizes_is_refused_at_its_first_call():
    model = Listed()
    with torch.no_grad(), dicache.enable(model, error_budget=0.05):
        assert len(model([torch.ones(2, 3), torch.ones(2, 3)], torch.tensor([1.0]))) == 2
        with pytest.raises(UnsupportedModelError, match="samples of 2 sizes"):
            model([torch.ones(2, 3), torch.ones(4, 3)], torch.tensor([1.0]))
