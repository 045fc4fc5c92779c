"""Slots: requests at steps of their own in one call of the denoiser decide, and draw, as each would alone."""

import gc
import random
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dicache
from dicache import presets
from dicache.errors import BudgetError, ModeError, SlotError
from helpers.fuzzing import LONG, examples
from helpers.requesting import Requested, play
from helpers.watching import count_macs
from pipelines.neighbours import quiet
from pipelines.tiny import make_flux

BUDGETS = (0.0, 0.02, 0.1, 0.5, 2.0)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return quiet(make_flux())


def drawn(seed: int) -> list[tuple[int, int, int, float]]:
    """Sample, steps, start and budget of some requests: two dozen short ones; in the long form 64 of 8 to 50 steps that
    come within 50 steps.
    """
    chance = random.Random(seed)
    if LONG == 1:
        return [(i, chance.randint(4, 16), chance.randint(0, 12), chance.choice(BUDGETS)) for i in range(24)]
    return [(i, chance.randint(8, 50), chance.randint(0, 50), chance.uniform(0.0, 0.2)) for i in range(64)]


def asked(pipe: Any, of: tuple[int, int, int, float], *, start: bool = True) -> Requested:
    sample, steps, begin, budget = of
    return Requested(pipe, sample, steps, begin if start else 0, error_budget=budget)


@pytest.mark.long
def test_requests_that_join_at_any_time_decide_and_draw_as_alone(pipe):
    jobs = drawn(0)
    with dicache.enable(pipe, error_budget=0.05) as cache:
        together, alone = [asked(pipe, job) for job in jobs], [asked(pipe, job, start=False) for job in jobs]
        macs = count_macs(pipe.transformer)
        play(cache, together)
        executed = sum(macs)
        for each in alone:
            play(cache, [each])
    for one, solo in zip(together, alone, strict=True):
        assert one.decisions == solo.decisions
        assert torch.allclose(one.latent, solo.latent, rtol=0, atol=1e-5 * float(solo.latent.abs().max()))
    mine, theirs = (sum(each.slot.report().trace.executed.sum() for each in group) for group in (together, alone))
    assert float(mine) == pytest.approx(float(theirs), rel=1e-6)
    # That rows have times of their own is tried once, which is little where there is much to do.
    assert executed == pytest.approx(float(mine), rel=0.05 if LONG == 1 else 0.02)


def test_a_budget_of_nothing_is_the_batch_without_dicache_to_the_bit(pipe):
    jobs = [Requested(pipe, sample, steps) for sample, steps in ((1, 5), (2, 7), (3, 9))]
    for job in jobs:
        job.asked = {"error_budget": 0.0}
    with dicache.enable(pipe, error_budget=0.0) as cache, torch.no_grad():
        slots = [job.join(cache) for job in jobs]
        for step in range(5):
            inputs = [job.inputs for job in jobs]
            batch = {
                name: torch.cat([each[name] for each in inputs])
                for name in ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections", "guidance")
                if inputs[0].get(name) is not None
            }
            outputs = cache.step(slots, inputs)
            if step:  # at the first step times agree, and it is counted
                expected = pipe.transformer.forward(**{**inputs[0], **batch})[0]
                assert torch.equal(torch.cat([output[0] for output in outputs]), expected)
            for job, output in zip(jobs, outputs, strict=True):
                job.advance(output)


def test_skipped_steps_make_no_call(pipe):
    job = Requested(pipe, 1, 12, error_budget=2.0)
    calls = list[int]()
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(0))
    try:
        with dicache.enable(pipe, error_budget=2.0) as cache:
            play(cache, [job])
    finally:
        handle.remove()
    report = job.slot.report()
    (row,) = report.to_dict()["samples"]
    assert len(calls) == str(row["actions"]).count("compute") < 12
    assert report.compute_speedup == pytest.approx(12 / len(calls))


def test_other_sizes_run_in_calls_of_their_own(pipe):
    jobs = [Requested(pipe, sample, 6, error_budget=0.0) for sample in (1, 2, 3)]
    jobs[1].latent = jobs[1].latent[:, :8]
    jobs[1].kwargs["img_ids"] = jobs[1].kwargs["img_ids"][:8]
    with dicache.enable(pipe, error_budget=0.0) as cache:
        play(cache, jobs)
        again = [Requested(pipe, sample, 6, error_budget=0.0) for sample in (1, 3)]
        play(cache, again)
    assert jobs[1].latent.shape[1] == 8
    for job, same in zip((jobs[0], jobs[2]), again, strict=True):
        assert torch.allclose(job.latent, same.latent, atol=1e-5)


class FirstTime(nn.Module):
    """Blocks, and a time that is read off the batch's first row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states + timestep.flatten()[0].float().sin())
        return hidden_states


def test_where_rows_take_no_times_of_their_own_calls_are_made_one_by_one():
    model = FirstTime()
    family = dicache.Family(model="FirstTime", stacks=("blocks",))
    with dicache.enable(model, error_budget=0.0, family=family) as cache, torch.no_grad():
        slots = [cache.join() for _ in range(3)]
        inputs = [{"hidden_states": torch.randn(1, 4, 8), "timestep": torch.tensor([t])} for t in (900.0, 500.0, 100.0)]
        for _ in range(2):
            outputs = cache.step(slots, inputs)
            for output, given_ in zip(outputs, inputs, strict=True):
                assert torch.allclose(output, model.forward(**given_), atol=1e-6)


def test_one_that_fails_harms_no_other(pipe):
    jobs = [Requested(pipe, sample, 4, error_budget=0.05) for sample in (1, 2, 3, 4)]
    with dicache.enable(pipe, error_budget=0.05) as cache, torch.no_grad():
        slots = [job.join(cache) for job in jobs]
        inputs = [job.inputs for job in jobs]
        inputs[1] = {**inputs[1], "hidden_states": inputs[1]["hidden_states"][..., :3]}  # a wrong size
        inputs[2] = {**inputs[2], "no_such_word": 1}
        outputs = cache.step(slots, inputs, return_exceptions=True)
        assert isinstance(outputs[1], RuntimeError) and isinstance(outputs[2], SlotError)
        assert "no_such_word" in str(outputs[2])
        with pytest.raises(SlotError, match="no_such_word"):
            cache.step([slots[2]], [inputs[2]])
        outputs[1], outputs[2] = cache.step(slots[1:3], [job.inputs for job in jobs[1:3]])  # they may repeat
        for job, output in zip(jobs, outputs, strict=True):
            job.advance(output)
        while not jobs[0].over:
            outputs = cache.step(slots, [job.inputs for job in jobs])
            for job, output in zip(jobs, outputs, strict=True):
                job.advance(output)
        solo = Requested(pipe, 2, 4, error_budget=0.05)
        play(cache, [solo])
        assert jobs[1].decisions == solo.decisions and torch.allclose(jobs[1].latent, solo.latent, atol=1e-5)


def test_a_row_that_is_not_finite_stays_its_own(pipe):
    jobs = [Requested(pipe, sample, 6, error_budget=0.1) for sample in (1, 2)]
    jobs[0].latent[:] = torch.nan
    with dicache.enable(pipe, error_budget=0.1) as cache:
        play(cache, jobs)
        solo = Requested(pipe, 2, 6, error_budget=0.1)
        play(cache, [solo])
    assert any("not finite" in note for note in jobs[0].slot.report().warnings)
    assert jobs[1].decisions == solo.decisions and torch.allclose(jobs[1].latent, solo.latent, atol=1e-5)


def test_weights_that_change_end_what_every_slot_remembers(pipe):
    job = Requested(pipe, 1, 8, error_budget=2.0)
    with dicache.enable(pipe, error_budget=2.0) as cache, torch.no_grad():
        slot = job.join(cache)
        while not job.over:
            if job.call == 4:
                next(pipe.transformer.parameters()).add_(0.0)
            job.advance(cache.step([slot], [job.inputs])[0])
    assert any("weights were changed half-way" in note for note in slot.report().warnings)


def test_what_cannot_be_is_one_error(pipe):
    job = Requested(pipe, 1, 4)
    with dicache.enable(pipe, error_budget=0.05) as cache, torch.no_grad():
        slot = job.join(cache)
        with pytest.raises(SlotError, match="2 slots, 1 inputs"):
            cache.step([slot, slot], [job.inputs])
        with pytest.raises(SlotError, match="there twice"):
            cache.step([slot, slot], [job.inputs] * 2)
        slot.leave()
        with pytest.raises(SlotError, match="has left"):
            cache.step([slot], [job.inputs])
        with pytest.raises(BudgetError):
            cache.join(error_budget=-1)
        with pytest.raises(ModeError, match="exactly one"):
            cache.join(error_budget=0.1, speedup=2)
    with pytest.raises(ModeError, match="disabled"):
        cache.join()
    with pytest.raises(ModeError, match="disabled"):
        cache.step([], [])
    with dicache.enable(pipe, config=presets.first_block_cache()) as cache, pytest.raises(ModeError, match="whole"):
        cache.join()


def test_of_a_hand_written_loop_without_a_scheduler_as_of_enable():
    model = FirstTime()
    family = dicache.Family(model="FirstTime", stacks=("blocks",))

    def loop(call: Any) -> torch.Tensor:
        latent = torch.ones(1, 4, 8)
        for t in torch.linspace(1.0, 0.1, 10):
            latent = latent - 0.1 * call(latent, t.expand(1))
        return latent

    with dicache.enable(model, error_budget=0.2, family=family) as cache, torch.no_grad():
        usual = loop(lambda x, t: model(x, t))
        decisions = cache.report().to_dict()["samples"][0]["actions"]
        slot = cache.join()
        mine = loop(lambda x, t: cache.step([slot], [{"hidden_states": x, "timestep": t}])[0])
        assert torch.allclose(usual, mine, atol=1e-5)
        assert slot.report().to_dict()["samples"][0]["actions"][: len(decisions)] == decisions


def test_a_group_is_filled_and_holds_the_same_bits_whoever_is_in_it(pipe):
    with dicache.enable(pipe, error_budget=0.0) as cache, torch.no_grad():
        runs, drawn = cache._slots.runs, list[list[torch.Tensor]]()
        for company in ((1,), (1, 2), (3, 1, 2), (2, 3, 4, 1)):
            jobs = [Requested(pipe, sample, 4, error_budget=0.0) for sample in company]
            slots = [job.join(cache) for job in jobs]
            before = runs.padding
            while not jobs[0].over:
                outputs = cache.step(slots, [job.inputs for job in jobs], group=3)
                for job, output in zip(jobs, outputs, strict=True):
                    job.advance(output)
            assert runs.padding - before == 4 * (-len(company) % 3)
            drawn.append([job.latent for job, sample in zip(jobs, company, strict=True) if sample == 1])
        assert all(torch.equal(latent, drawn[0][0]) for (latent,) in drawn)
        for odd in (0, -1, 2.5, True):
            with pytest.raises(ModeError, match="group is"):
                cache.step(slots, [job.kwargs for job in jobs], group=odd)


class Traffic:
    """Requests of one cache that join, step in any company, leave, and fail, as `chance` has it."""

    def __init__(self, cache: dicache.Cache, pipe: Any, chance: random.Random) -> None:
        self.cache, self.pipe, self.chance = cache, pipe, chance
        self.joined, self.failed, self.left = 0, 0, 0
        self.active, self.ended = list[Requested](), list[Requested]()
        self.latents = list[weakref.ref[torch.Tensor]]()

    def move(self) -> None:
        what = self.chance.choice(["join", "step", "step", "step", "leave", "fail"])
        if what == "join" and len(self.active) < 6:
            sample, steps, budget = self.chance.randrange(3), self.chance.randint(2, 6), self.chance.choice(BUDGETS)
            self.active.append(Requested(self.pipe, sample, steps, error_budget=budget))
            self.active[-1].job = sample, steps, budget
            self.active[-1].join(self.cache)
            self.joined += 1
        elif what == "leave" and self.active:
            self.active.pop(self.chance.randrange(len(self.active))).slot.leave()
            self.left += 1
        elif self.active:
            self.step(fails=what == "fail")

    def step(self, *, fails: bool) -> None:
        some = [each for each in self.active if self.chance.random() < 0.5] or self.active[:1]
        inputs = [each.inputs for each in some]
        if fails:
            wrong = {"hidden_states": inputs[0]["hidden_states"][:, :, :3]}
            inputs[0] |= self.chance.choice([wrong, {"no_such_word": 1}, {"encoder_hidden_states": None}])
        outputs = self.cache.step([each.slot for each in some], inputs, return_exceptions=True)
        for request, output in zip(some, outputs, strict=True):
            if isinstance(output, Exception):
                assert fails and request is some[0]
                self.active.remove(request)
                request.slot.leave()
                self.failed += 1
                continue
            self.latents.append(weakref.ref(output[0]))
            request.advance(output)
            if request.over:
                self.active.remove(request)
                self.ended.append(request)

    def check(self, alone: dict[Any, tuple[str, torch.Tensor]]) -> None:
        """No mixture: who ended is as alone. `alone` remembers what that is."""
        for request in self.ended:
            sample, steps, budget = request.job
            if request.job not in alone:
                solo = Requested(self.pipe, sample, steps, error_budget=budget)
                play(self.cache, [solo])
                alone[request.job] = solo.decisions, solo.latent
                solo.slot.leave()
            decisions, latent = alone[request.job]
            assert request.decisions == decisions and torch.allclose(request.latent, latent, atol=1e-4)
            request.slot.leave()
        self.ended.clear()

    def over(self) -> None:
        """No leak: who left is let go."""
        for request in self.active:
            request.slot.leave()
        self.active.clear()
        gc.collect()
        assert not any(each() is not None for each in self.latents)
        assert not any(slot.on for slot in self.cache._slots.all)


@examples(8)
@given(st.randoms(use_true_random=False), st.integers(5, 25))
def test_joins_leaves_cancellations_and_failures_in_any_order(chance, moves):
    pipe = quiet(make_flux())
    with dicache.enable(pipe, error_budget=0.05) as cache, torch.no_grad():
        traffic = Traffic(cache, pipe, chance)
        for _ in range(moves):
            traffic.move()
        traffic.check({})
        traffic.over()


@pytest.mark.long
def test_one_cache_holds_no_more_after_many_requests_than_before(pipe):
    """In the long form a thousand that join."""
    alone, held = dict[Any, tuple[str, torch.Tensor]](), list[int]()
    with dicache.enable(pipe, error_budget=0.05) as cache, torch.no_grad():
        traffic = Traffic(cache, pipe, random.Random(4))
        for joined in range(10, 25 * max(LONG, 2) + 1, 10):
            while traffic.joined < joined:
                traffic.move()
            traffic.check(alone)
            traffic.over()
            # What a run alone gives is remembered here: a tensor a job.
            held.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()) - len(alone))
    print(f"{traffic.joined} joined, {traffic.failed} failed, {traffic.left} left, {len(alone)} kinds of jobs, {held}")
    assert traffic.left and traffic.failed
    assert max(held[-2:]) <= max(held[:3]) + traffic.joined // 10
