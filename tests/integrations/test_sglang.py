"""SGLang-diffusion's cache hook: a stand-in of its forward context, of a model that asks its cache, of a sampler."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache.errors import ModeError
from dicache.integrations import StackCache

STEPS = 20


class Model(nn.Module):
    """What SGLang's models do with `cache`; the stack moves slowly along the run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.cache: Any = None
        self.ran = 0

    def forward(self, hidden_states: Tensor, text: Tensor, timestep: float) -> Tensor:
        embedded = hidden_states + 0.1 * timestep / 1000 + text
        if self.cache is not None:
            self.cache.maybe_reset()
            if self.cache.should_skip(temb=None, timestep_proj=None):
                return self.cache.read(embedded) - embedded
        original = embedded.clone()
        self.ran += 1
        for block in self.blocks:
            embedded = embedded + 0.3 * block(embedded).tanh()
        if self.cache is not None:
            self.cache.write(embedded, original)
        return embedded - original


class Engine:
    """Denoises requests, step by step in turn; its forward context says which."""

    def __init__(self, **asked: Any) -> None:
        self.model, self.context = Model(), SimpleNamespace(current_timestep=0, forward_batch=None)
        if asked:
            self.model.cache = StackCache(lambda: self.context, **asked)

    def request(self, seed: int, rows: int = 2, steps: int = STEPS) -> Any:
        noise = torch.Generator().manual_seed(seed)
        latents = torch.randn(rows, 4, 16, generator=noise)
        texts = torch.randn(2, rows, 1, 16, generator=noise)
        times = torch.linspace(1000, 1000 / steps, steps)
        return SimpleNamespace(timesteps=times, is_cfg_negative=False, extra={}, latents=latents, texts=texts)

    @torch.no_grad()
    def step(self, batch: Any, index: int, *, guided: bool = True) -> None:
        outputs = []
        for negative in (False, True) if guided else (False,):
            batch.is_cfg_negative = negative
            self.context.current_timestep, self.context.forward_batch = index, batch
            outputs.append(self.model(batch.latents, batch.texts[int(negative)], float(batch.timesteps[index])))
        mixed = outputs[-1] + 3.0 * (outputs[0] - outputs[-1])
        ends = [*batch.timesteps.tolist(), 0.0]
        batch.latents = batch.latents + (ends[index + 1] - ends[index]) / 1000 * mixed

    def run(self, batch: Any, **how: Any) -> Tensor:
        for index in range(len(batch.timesteps)):
            self.step(batch, index, **how)
        return batch.latents


def test_a_speedup_skips_the_stack_of_all_branches_and_stays_near():
    plain, cached = Engine(), Engine(speedup=2.0)
    expected = plain.run(plain.request(1))
    batch = cached.request(1)
    drawn = cached.run(batch)
    decisions = cached.model.cache.decisions(batch)
    assert len(decisions) == STEPS and decisions.count("#") == STEPS // 2 and decisions[0] == decisions[-1] == "#"
    assert cached.model.ran == 2 * decisions.count("#") < plain.model.ran
    error = (drawn - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert 0 < float(error.max()) < 0.02


def test_so_many_evaluations_and_a_speedup_of_one_is_the_run_without():
    plain, one, seven = Engine(), Engine(speedup=1.0), Engine(evaluations=7)
    expected = plain.run(plain.request(2))
    assert torch.equal(one.run(one.request(2)), expected)
    seven.run(batch := seven.request(2))
    assert seven.model.cache.decisions(batch).count("#") == 7


def test_requests_in_turn_and_again_keep_what_is_theirs():
    engine, alone = Engine(speedup=2.5), Engine(speedup=2.5)
    one, other = engine.request(1), engine.request(2, rows=1, steps=12)
    for index in range(STEPS):
        engine.step(one, index)
        if index < 12:
            engine.step(other, index)
    assert torch.equal(one.latents, alone.run(alone.request(1)))
    assert torch.equal(other.latents, alone.run(alone.request(2, rows=1, steps=12)))
    again = engine.request(1)
    again.extra = one.extra  # the same request from its first step on
    assert torch.equal(engine.run(again), one.latents)


def test_a_branch_of_which_nothing_is_known_computes():
    engine = Engine(speedup=2.0)
    batch = engine.request(1)
    engine.step(batch, 0, guided=False)
    engine.step(batch, 1, guided=False)
    ran = engine.model.ran
    for index in range(2, STEPS):
        engine.step(batch, index, guided=index > 2)
    decisions = engine.model.cache.decisions(batch)
    negative_alone = decisions[3] == "/"  # its first step
    assert engine.model.ran - ran == decisions[2:].count("#") + decisions[3:].count("#") + negative_alone


def test_one_of_both_is_asked_for():
    for asked in ({}, {"speedup": 2.0, "evaluations": 4}, {"speedup": 0.5}, {"evaluations": 0}):
        with pytest.raises(ModeError, match="sees no latents"):
            StackCache(lambda: SimpleNamespace(), **asked)
