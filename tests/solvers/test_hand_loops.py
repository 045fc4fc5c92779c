"""Loops written by hand around small networks with random weights: what is executed is what is reported, and how a
network takes its inputs, or a loop its guidance, makes no difference.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dicache
from dicache.models.family import Inside

ROWS, STEPS, GUIDANCE = 3, 20, 2.5


class Counted(nn.Module):
    """Knows for how many rows it ran."""

    rows = 0

    def forward(self, hidden_states: Tensor, *args: Tensor) -> Tensor:
        self.rows += len(hidden_states)
        return self.changed(hidden_states, *args)


class Attending(Counted):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def changed(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        h = torch.cat([self.norm(x) + time[:, None], text], dim=1)
        x = x + self.attention(h, h, h, need_weights=False)[0][:, : x.shape[1]]
        return x + self.mlp(x)


class Convolving(Counted):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, width, 3, padding=1)

    def changed(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(x) + (time + text.mean(1))[..., None]))


class Transformer(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter, self.time, self.leave = nn.Linear(4, width), nn.Linear(1, width), nn.Linear(width, 4)
        self.blocks = nn.ModuleList(Attending(width) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        hidden, time = self.enter(x), torch.sin(self.time(t[:, None]))
        for block in self.blocks:
            hidden = block(hidden, time, text)
        return self.leave(hidden)


class UNet(nn.Module):
    """Its way up reads what the way down left."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter, self.time, self.leave = nn.Linear(4, width), nn.Linear(1, width), nn.Linear(width, 4)
        self.down, self.up = (nn.ModuleList(Convolving(width) for _ in range(2)) for _ in range(2))
        self.middle = Convolving(width)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        hidden, time, left = self.enter(x).mT, torch.sin(self.time(t[:, None])), []
        for block in self.down:
            hidden = block(hidden, time, text)
            left.append(hidden)
            hidden = nn.functional.avg_pool1d(hidden, 2)
        hidden = self.middle(hidden, time, text)
        for block in self.up:
            hidden = block(nn.functional.interpolate(hidden, scale_factor=2.0) + left.pop(), time, text)
        return self.leave(hidden.mT)


def in_a_dict(kind: type[nn.Module]) -> type[nn.Module]:
    """The same network, which takes one dict and gives one."""

    class InADict(kind):
        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"sample": super().forward(**batch)}

    return InADict


KINDS = {"transformer": (Transformer, ("blocks",)), "unet": (UNet, ("down", "middle", "up"))}
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


def alone(net: Denoiser, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    return net(x, t, text)


def in_one_call(net: Denoiser, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    plain, with_text = net(*(torch.cat(pair) for pair in ((x, x), (t, t), (0 * text, text)))).chunk(2)
    return plain + GUIDANCE * (with_text - plain)


def in_two_calls(net: Denoiser, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    plain, with_text = net(x, t, 0 * text), net(x, t, text)
    return plain + GUIDANCE * (with_text - plain)


GUIDED = {"alone": (alone, 1), "in one call": (in_one_call, 2), "in two calls": (in_two_calls, 2)}


def flow(predict: Denoiser, x: Tensor, text: Tensor) -> Tensor:
    for now, after in pairwise(torch.linspace(1, 0, STEPS + 1).tolist()):
        x = x + (after - now) * predict(x, torch.full((len(x),), now), text)
    return x


def on_a_circle(predict: Denoiser, x: Tensor, text: Tensor) -> Tensor:
    """Noise is predicted; times are angles, falling from 86 to 0."""
    for now, after in pairwise(torch.linspace(86, 0, STEPS + 1).tolist()):
        (a, s), (b, r) = ((math.cos(math.radians(t)), math.sin(math.radians(t))) for t in (now, after))
        noise = predict(x, torch.full((len(x),), now), text)
        x = b * (x - s * noise) / a + r * noise
    return x


LOOPS = {"flow": flow, "circle": on_a_circle}


def made(kind: str, dicts: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return (in_a_dict(KINDS[kind][0]) if dicts else KINDS[kind][0])()


@torch.no_grad()
def draw(net: nn.Module, loop: str, guided: str, dicts: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x, text = (torch.randn(ROWS, *shape, generator=generator) for shape in ((8, 4), (5, 16)))

    def called(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return net({"x": x, "t": t, "text": text})["sample"] if dicts else net(x, t, text)

    return LOOPS[loop](lambda *inputs: GUIDED[guided][0](called, *inputs), x, text)


def cached(net: nn.Module, loop: str, guided: str, budget: float, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    dicts = options.pop("dicts", False)
    with dicache.enable(net, error_budget=budget, **options) as cache:
        drawn = draw(net, loop, guided, dicts)
        return drawn, cache.report().to_dict()


def rows_of(net: nn.Module) -> list[int]:
    """For how many each block ran since this was asked last."""
    blocks = [module for module in net.modules() if isinstance(module, Counted)]
    rows = [block.rows for block in blocks]
    for block in blocks:
        block.rows = 0
    return rows


CASES = pytest.mark.parametrize(
    ("kind", "loop", "guided"), [(kind, loop, guided) for kind in KINDS for loop in LOOPS for guided in GUIDED]
)


@CASES
def test_what_is_reported_is_what_was_executed(kind, loop, guided):
    net, branches = made(kind), GUIDED[guided][1]
    family = dicache.Family(
        model=type(net).__name__, stacks=KINDS[kind][1], latents=("x",), time=("t",), inside=Inside.BLOCKS
    )
    exact = draw(net, loop, guided)
    assert set(rows_of(net)) == {ROWS * STEPS * branches}
    drawn, facts = cached(net, loop, guided, 0.3, family=family)
    computed = sum(step == ["compute"] for sample in facts["samples"] for step in sample["actions"])
    assert set(rows_of(net)) == {computed * branches}, "every block ran where it is said to have run, and nowhere else"
    assert computed < ROWS * STEPS and not torch.equal(drawn, exact)
    macs = facts["sites"][0]["macs"]
    around = facts["uncached_macs"] - ROWS * STEPS * branches * macs
    left_out = sum(["compute"] not in step for step in zip(*(s["actions"] for s in facts["samples"]), strict=True))
    saved = (ROWS * STEPS - computed) * branches * macs + around * left_out / STEPS
    assert facts["uncached_macs"] - facts["executed_macs"] == pytest.approx(saved, rel=1e-6)
    assert facts["complete"] and len(facts["steps"]) == STEPS and len(facts["samples"]) == ROWS
    assert torch.equal(draw(net, loop, guided), exact)


@CASES
def test_budget_zero_is_bitwise_the_loop_without_a_cache(kind, loop, guided):
    net = made(kind)
    drawn, facts = cached(net, loop, guided, 0.0)
    assert torch.equal(drawn, draw(net, loop, guided)) and facts["compute_speedup"] == 1


@CASES
def test_latents_in_a_dict_are_those_of_its_keys(kind, loop, guided):
    expected, facts = cached(made(kind), loop, guided, 0.3)
    family = dicache.Family(
        model="InADict", stacks=[n for n in KINDS[kind][1] if n != "middle"], latents=("x",), time=("t",)
    )
    for options in ({}, {"family": family}):
        drawn, told = cached(made(kind, dicts=True), loop, guided, 0.3, dicts=True, **options)
        assert torch.equal(drawn, expected) and told["samples"] == facts["samples"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", KINDS)
def test_guidance_in_one_call_is_decided_as_in_two(kind, loop):
    one, of_one = cached(made(kind), loop, "in one call", 0.3)
    two, of_two = cached(made(kind), loop, "in two calls", 0.3)
    assert [sample["actions"] for sample in of_one["samples"]] == [sample["actions"] for sample in of_two["samples"]]
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
