"""Where a denoiser's blocks are: named by a family, or found by shape."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from dicache.errors import ModeError, UnsupportedModelError
from dicache.hosts.denoiser_call import timestep_of
from dicache.models.family import Batch, Family, Inside
from dicache.models.find_blocks import check_streams, family_of, find


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden_states):
        return hidden_states + self.linear(hidden_states)


class Skipping(Block):
    def forward(self, hidden_states, skip=None):
        return super().forward(hidden_states)


class Caching(Block):
    def forward(self, hidden_states, kv_cache=None):
        return super().forward(hidden_states)


class TakesNoStream(Block):
    def forward(self, tokens):
        return super().forward(tokens)


def denoiser(**children: nn.Module) -> nn.Module:
    """A module of a class of its own, with these children."""
    module = type("Mine", (nn.Module,), {})()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def stack(block: type[nn.Module] = Block, size: int = 3) -> nn.ModuleList:
    return nn.ModuleList(block() for _ in range(size))


def test_a_list_of_blocks_that_take_a_stream_is_a_stack():
    model = denoiser(embed=nn.Linear(4, 4), blocks=stack(), out=nn.Linear(4, 4))
    family = family_of(model)
    assert (family.model, tuple(family.stacks), family.inside) == ("Mine", ("blocks",), Inside.SPANS)
    modules = find(model, family)
    assert list(modules.blocks) == ["blocks.0", "blocks.1", "blocks.2"]
    assert modules.around == {"embed": model.embed, "out": model.out}


def test_several_stacks_are_taken_in_the_order_of_the_model():
    model = denoiser(double_blocks=stack(size=2), norm=nn.LayerNorm(4), single_blocks=stack(size=1))
    modules = find(model, family_of(model))
    assert list(modules.blocks) == ["double_blocks.0", "double_blocks.1", "single_blocks.0"]


@pytest.mark.parametrize("name", ["context_refiner", "control_blocks", "vace_blocks", "caption_projection"])
def test_what_only_looks_like_a_stack_runs_around_the_blocks(name):
    model = denoiser(blocks=stack(), **{name: stack()})
    modules = find(model, family_of(model))
    assert all(path.startswith("blocks.") for path in modules.blocks)
    assert list(modules.around) == [f"{name}.{i}" for i in range(3)], "a list is never called, what it holds is"


@pytest.mark.parametrize("children", [{"blocks": nn.ModuleList()}, {"blocks": stack(TakesNoStream)}, {}])
def test_a_model_that_shows_no_stack_is_refused_by_name_and_told_what_to_give(children):
    with pytest.raises(UnsupportedModelError, match=r"Mine has no stack .* give enable a dicache\.Family"):
        family_of(denoiser(**children))


def test_blocks_that_take_a_cache_are_refused_and_a_family_overrules_that():
    model = denoiser(blocks=stack(Caching))
    with pytest.raises(UnsupportedModelError, match="its blocks take kv_cache"):
        family_of(model)
    mine = Family(model="Mine", stacks=("blocks",))
    assert family_of(model, mine) is mine and len(find(model, mine).blocks) == 3


def test_blocks_that_take_what_earlier_ones_skipped_ahead_are_skipped_one_by_one():
    family = family_of(denoiser(blocks=stack(Skipping)))
    assert family.inside is Inside.BLOCKS and "skip" in family.between


def test_blocks_within_torch_compile_are_looked_at_through_it():
    model = denoiser(blocks=stack(Skipping))
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    assert family_of(model).inside is Inside.BLOCKS


def test_a_family_names_one_block_by_its_path_and_deeper_ones_open_what_holds_them():
    body = denoiser(layers=stack(size=2), head=nn.Linear(4, 4))
    model = denoiser(body=body, first=Block(), last=nn.Linear(4, 4))
    modules = find(model, Family(model="Mine", stacks=("first", "body.layers")))
    assert list(modules.blocks) == ["first", "body.layers.0", "body.layers.1"]
    assert list(modules.around) == ["body.head", "last"]


def test_a_module_of_two_names_runs_around_the_blocks_once_and_what_has_no_weights_not_at_all():
    shared = nn.Linear(4, 4)
    model = denoiser(blocks=stack(), one=shared, other=shared, act=nn.SiLU())
    assert list(find(model, family_of(model)).around) == ["one"]


def test_a_part_that_a_configuration_left_out_is_no_block():
    model = denoiser(down_blocks=stack(), up_blocks=stack(size=2))
    model.mid_block = None
    modules = find(model, Family(model="Mine", stacks=("down_blocks", "mid_block", "up_blocks")))
    assert len(modules.blocks) == 5


@pytest.mark.parametrize(
    ("family", "error", "message"),
    [
        ("blocks", ModeError, r"family is 'blocks'\. Expected a dicache\.Family"),
        (Family(model="Other", stacks=("blocks",)), UnsupportedModelError, "is that of Other, but this .* a Mine"),
        (Family(model="Mine", refused="it is no denoiser"), UnsupportedModelError, "cannot be cached: it is no deno"),
    ],
)
def test_a_family_that_is_not_of_this_model_is_refused(family, error, message):
    with pytest.raises(error, match=message):
        family_of(denoiser(blocks=stack()), family)


@pytest.mark.parametrize(
    ("stacks", "message"),
    [(("layers",), "has no layers. Expected the path"), (("empty",), "has no block in empty. Expected at least one")],
)
def test_stacks_that_are_not_there_or_empty_are_refused(stacks, message):
    with pytest.raises(UnsupportedModelError, match=message):
        find(denoiser(blocks=stack(), empty=nn.ModuleList()), Family(model="Mine", stacks=stacks))


@pytest.mark.parametrize("streams", [("tokens",), ("hidden_states", "text"), ("self",)])
def test_streams_that_no_block_takes_are_refused_with_what_they_take(streams):
    family = Family(model="Mine", stacks=("blocks",), streams=streams)
    with pytest.raises(UnsupportedModelError, match=r"takes '(tokens|text|self)'.*Skipping: hidden_states, skip"):
        check_streams(find(denoiser(blocks=stack(Skipping)), family).blocks, family)


@pytest.mark.parametrize("streams", [("hidden_states",), ("tokens",), ("tokens", "hidden_states")])
def test_streams_that_some_block_takes_are_right(streams):
    family = Family(model="Mine", stacks=("first", "then"), streams=streams)
    check_streams(find(denoiser(first=stack(), then=stack(TakesNoStream)), family).blocks, family)


def test_of_blocks_that_take_anything_no_stream_is_missed():
    class Open(Block):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    family = Family(model="Mine", stacks=("blocks",), streams=("anything",))
    check_streams(find(denoiser(blocks=stack(Open)), family).blocks, family)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "has no stacks"),
        ({"stacks": ("blocks",), "refused": "no"}, "has stacks and a refusal"),
        ({"stacks": "blocks"}, r"stacks=\('blocks',\)"),
        ({"stacks": ("blocks",), "streams": "x"}, r"streams=\('x',\)"),
    ],
)
def test_a_family_that_says_too_little_or_too_much_is_refused(facts, message):
    with pytest.raises(UnsupportedModelError, match=message):
        Family(model="Mine", **facts)


TIMES = [1.0, 0.5, 0.25]


def declared(**facts):
    """Of a hand-written flow."""
    given = {"noise_schedule": lambda t: (1 - t, t), "prediction": "flow_prediction", "times": TIMES, **facts}
    return Family(model="Mine", stacks=("blocks",), **given)


@pytest.mark.parametrize(
    "times",
    [
        TIMES,
        torch.tensor(TIMES),
        np.array(TIMES),
        np.array(TIMES, np.float32),
        [np.float32(t) for t in TIMES],
        list(torch.tensor(TIMES)),
        (t for t in TIMES),
        torch.tensor(TIMES, dtype=torch.bfloat16),
    ],
)
def test_times_are_numbers_in_whatever_holds_them(times):
    family = declared(times=times)
    assert family.times == tuple(TIMES) and all(type(time) is float for time in family.times)
    assert family == dataclasses.replace(family, model="Mine")


@pytest.mark.parametrize(
    "times", [0.5, torch.tensor(0.5), torch.ones(2, 2), np.ones((2, 2)), ["a"], [None], [0.5, math.nan], [math.inf]]
)
def test_times_that_are_no_numbers_are_refused(times):
    with pytest.raises(UnsupportedModelError, match=r"(?s)times.* Expected numbers"):
        declared(times=times)


@pytest.mark.parametrize("times", [(), [], torch.tensor([]), np.array([])])
def test_a_noise_schedule_needs_times(times):
    with pytest.raises(UnsupportedModelError, match="a noise_schedule and no times"):
        declared(times=times)


@pytest.mark.parametrize(
    "level",
    [
        lambda t: t,
        lambda t: None,
        lambda t: (t,),
        lambda t: (1 - t, t, 0.0),
        lambda t: ("a", "b"),
        lambda t: (math.nan, t),
        lambda t: (1 - t, math.inf),
        lambda t: (0.0, 0.0),
        lambda t: torch.ones(2, 2),
        lambda t: 1 - t if t == 0.25 else (1 - t, t),
    ],
)
def test_a_noise_schedule_that_says_no_level_is_refused_with_the_time(level):
    with pytest.raises(
        UnsupportedModelError, match=r"(?s)a noise_schedule that gives .* at the time (1|0\.25)\..* two fin"
    ):
        declared(noise_schedule=level)


@pytest.mark.parametrize(
    "level",
    [
        lambda t: (1 - t, t),
        lambda t: [torch.tensor(1 - t), np.float32(t)],
        lambda t: torch.tensor([1 - t, t]),
        lambda t: (-1e-9, 1.0),
    ],
)
def test_a_noise_schedule_may_say_its_level_as_it_likes(level):
    assert all(type(number) is float for number in declared(noise_schedule=level).level(0.5))


def test_a_prediction_that_is_none_is_refused_and_all_are_told_apart():
    with pytest.raises(UnsupportedModelError, match=r"'eps'\. Expected one of 'epsilon', .*'edm, reversed'\."):
        declared(prediction="eps")


def test_the_timestep_is_the_first_of_its_names_that_is_there():
    family = Family(model="Mine", stacks=("blocks",), time=("t", "sigma"))
    assert timestep_of(family, {"sigma": 0.5, "x": 1}) == 0.5
    assert timestep_of(family, {"t": None, "sigma": 0.0}) == 0.0, "zero is a time"
    assert timestep_of(family, {"t": 3, "sigma": 0.5}) == 3 and timestep_of(family, {"x": 1}) is None
    assert timestep_of(family, {"t": {"sigma": 0.5}}) is None, "what holds times is none"
    assert family.batch is Batch.SAMPLE
