"""Which run a call belongs to, what begins anew and is said, and what stays once a run is over."""

import pytest
import torch

from dicache.errors import UnsupportedModelError
from dicache.runtime.run_state import Inputs
from dicache.sites import Branches
from dicache.solvers.loop_clock import LoopClock
from dicache.types import Action
from helpers.driving import Driven, latents
from helpers.stepping import a_config, inside

HELD = (0.1, 0.2)
STEPS = latents(10)


def driven(marks="==", **parts) -> Driven:
    return Driven(a_config(marks, *[HELD] * len(marks), **parts))


def play(one: Driven, *indices: int) -> list[torch.Tensor]:
    return [one.call(i, STEPS[i]) for i in indices]


def notes(one: Driven) -> str:
    return " ".join(one.session.notes)


# One run, or another.


def test_calls_go_on_step_by_step_and_a_leap_or_a_step_back_begins_anew():
    one = driven()
    play(one, 0, 1, 2)
    run = one.session.run
    assert len(run.records) == 2 and one.ran[0] == [2]
    play(one, 4)
    assert one.session.run is not run, "a step was left out"
    run = one.session.run
    play(one, 3)
    assert one.session.run is not run and one.ran[0] == [2, 2, 2] and one.session.run.records == []


def test_a_run_of_the_scheduler_is_a_run_of_its_own_even_at_the_next_step():
    one = driven()
    play(one, 0)
    one.clock.run = object()
    outputs = play(one, 1)
    torch.testing.assert_close(outputs[0], one.exact(STEPS[1]))
    assert not one.session.notes


@pytest.mark.parametrize("change", [lambda x: x.repeat(2, 1), lambda x: x.double(), lambda x: x[:1]])
def test_where_the_batch_changes_half_way_the_cache_begins_anew_and_says_so(change):
    one = driven()
    play(one, 0, 1)
    for block in one.blocks.values():
        block.weight = block.weight.to(change(STEPS[2]).dtype)
    latent = change(STEPS[2])
    torch.testing.assert_close(one.call(2, latent), one.exact(latent))
    assert "the batch changed from (2, 4)" in notes(one) and "half-way" in notes(one)
    if latent.shape != STEPS[2].shape:
        assert str(tuple(latent.shape)) in notes(one)


def test_a_branch_that_comes_twice_in_one_step_begins_another_run():
    one = driven()
    one.call(0, STEPS[0], branch="cond")
    one.call(0, STEPS[0], branch="uncond")
    run = one.session.run
    one.call(0, STEPS[1], branch="cond")
    assert one.session.run is not run and list(one.session.run.guided.outputs) == ["cond"]


def test_calls_of_one_step_that_hold_other_samples_are_computed_and_said():
    one = driven("==")
    play(one, 0)
    one.call(0, STEPS[5])  # another tile
    for i in (1, 2):
        for latent in (STEPS[i], STEPS[5 + i]):
            torch.testing.assert_close(one.call(i, latent), one.exact(latent))
    assert one.session.run.apart and "as tiles and windows do" in notes(one)


def test_other_weights_begin_anew_are_counted_anew_and_are_said():
    one = driven()
    play(one, 0, 1)
    assert one.session.meter.costs_by_key
    one.blocks["b0"].weight = one.blocks["b0"].weight * 2
    torch.testing.assert_close(one.call(2, STEPS[2], other_weights="the LoRA was changed"), one.exact(STEPS[2]))
    assert "the LoRA was changed half-way" in notes(one)
    fresh = driven()
    fresh.call(0, STEPS[0], other_weights="the LoRA was changed")
    assert not fresh.session.notes, "nothing had been remembered yet"


def test_with_gradients_on_nothing_is_remembered_and_that_is_said_once():
    one = driven()
    play(one, 0, 1)
    with torch.enable_grad():
        for _ in range(2):
            one.session.begin(Inputs(STEPS[2], None, None, ("key",)))
            assert one.session.call is None and one.session.run is None
            assert one.session.end(STEPS[2]) is STEPS[2]
    assert len(one.session.notes) == 1 and "torch.no_grad()" in notes(one)


def test_a_loop_that_begins_anew_before_it_was_through_says_that_only_the_rest_is_reported():
    one = driven()
    play(one, 0, 1, 0)
    assert "began anew before it was through" in notes(one)
    finished = driven()
    play(finished, 0, 1)
    finished.session.finish()
    play(finished, 0)
    assert not finished.session.notes


def test_the_second_run_is_the_first_one_again():
    one = driven("=#")
    first = play(one, 0, 1, 2)
    trace = one.session.trace()
    one.clock.run = object()
    second = play(one, 0, 1, 2)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    again = one.session.trace()
    assert torch.equal(again.executed, trace.executed) and len(again.records) == len(trace.records)
    assert [r.action.tolist() for r in again.records] == [r.action.tolist() for r in trace.records]


def test_a_price_that_is_not_known_is_said_with_its_reason():
    one = driven()
    one.clock.reason = "the scheduler is a mystery"
    play(one, 0, 1)
    assert [*one.session.notes] == ["the scheduler is a mystery, so no error can be priced."]


def test_a_run_that_begins_half_way_counts_its_progress_from_there():
    one = driven()
    play(one, 4, 5)
    assert one.session.run.before == pytest.approx(0.4) and one.session.run.step.progress == pytest.approx(0.2)


# The end of it.


def test_after_its_last_step_a_run_is_over_whoever_says_so_or_not():
    said, silent = driven(), driven()
    play(said, *range(10))
    said.session.finish()
    play(silent, *range(9))
    assert not silent.session.trace().complete and len(silent.session.trace().records) == 8
    play(silent, 9)
    for trace in (said.session.trace(), silent.session.trace()):
        assert trace.complete and len(trace.records) == 10 and trace.records[-1].index == 9
    for one in (said, silent):
        assert one.session.run.states[0].histories == {}, "nothing is held on to"
        assert one.session.trace().executed.tolist() == [48, 48] and one.session.trace().uncached.tolist() == [480, 480]


def test_what_a_run_raises_at_its_end_leaves_the_denoiser_free_for_another_thread(monkeypatch):
    one = driven()
    one.session.owner.claim()
    play(one, *range(9))
    freed = []
    monkeypatch.setattr(one.session.owner, "free", lambda: freed.append(one.session.run.complete))

    def failing(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(one.session, "_end_step", failing)
        with pytest.raises(KeyboardInterrupt):
            one.session.finish()
    assert freed == [False]
    one.session.on_over.append(lambda: freed.append("told"))
    one.session.finish()
    assert freed == [False, True, "told"], "over, then free, then told"


def test_what_was_noted_down_stays_when_the_model_is_let_go_and_nothing_of_the_model_does():
    one = driven("=#")
    play(one, 0, 1, 2)
    one.session.release()
    run = one.session.run
    assert run.gone and run.guided.outputs == {} and run.states[0].histories == {} and run.strongest is None
    assert isinstance(one.session.clock, LoopClock)
    trace = one.session.trace()
    assert not trace.complete and [r.action.tolist() for r in trace.records[1:]] == [[[Action.REUSE], [Action.COMPUTE]]]
    before = len(run.records)
    one.session.finish()
    assert len(run.records) == before, "nothing more is learned"


def test_a_run_that_cannot_be_understood_is_let_go_with_its_error():
    one = driven()
    one.call(0, STEPS[0], branch="cond")
    one.call(0, torch.cat([STEPS[0], STEPS[0][:1]]), branch="uncond")
    with pytest.raises(UnsupportedModelError, match="2, 3 rows"):
        one.call(1, STEPS[1], branch="cond")
    assert one.session.run.gone
    one.session.finish()
    assert one.session.trace().records == ()


def test_nothing_is_told_before_the_first_run_and_of_a_reset_one():
    one = driven()
    assert one.session.trace() is None
    play(one, 0, 1)
    one.session.reset()
    assert one.session.trace() is None and one.session.call is None
    outputs = play(one, 2)
    torch.testing.assert_close(outputs[0], one.exact(STEPS[2]))


def test_two_experts_share_a_run_of_the_scheduler_and_two_pipelines_do_not():
    first, second = driven(), driven()
    assert first.session.shares_its_run_with(second.session), "neither has run"
    play(first, 0)
    assert not first.session.shares_its_run_with(second.session)
    second.clock.run = first.clock.run
    play(second, 1)
    assert first.session.shares_its_run_with(second.session)
    second.clock.run = object()
    play(second, 1)
    assert not first.session.shares_its_run_with(second.session)


def test_what_is_remembered_is_what_was_planned():
    one = Driven(inside("##", HELD, HELD))
    play(one, 0, 1, 2, 3)
    trace = one.session.trace()
    assert trace.planned_bytes == trace.cache_bytes == 3 * 2 * 2 * 4 * 4, "three sites, two values of (2, 4) floats"
    assert trace.site_macs == (16.0, 16.0, 16.0)


@pytest.mark.parametrize("limit", [64, 150])
def test_a_limit_of_memory_is_kept_from_the_first_step_on(limit):
    one = Driven(inside("##", HELD, HELD, memory_limit=limit))
    play(one, 0, 1, 2, 3)
    trace = one.session.trace()
    assert 0 < trace.cache_bytes <= trace.planned_bytes <= limit
    assert any("memory_limit" in note for note in one.session.notes)


def test_conditions_are_asked_for_in_the_first_step_alone():
    asked = []

    def conditions():
        asked.append(len(asked))
        return {"text": torch.full((2, 32), float(len(asked)))}

    one = Driven(a_config("==", HELD, HELD, sites=Branches()))
    for i in range(3):
        for name in ("cond", "uncond"):
            shift = torch.full((2, 4), 1.0 if name == "cond" else -1.0)
            one.call(i, STEPS[i], shift, branch=name, conditions=conditions)
    assert asked == [0, 1] and set(one.session.run.prints) == {"cond", "uncond"}
