"""What a session hands to the pipeline at whole evaluations, at guidance branches and at sites inside the denoiser."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dicache.config import Config
from dicache.controllers.threshold import Threshold
from dicache.errors import UnsupportedModelError
from dicache.probes.first_blocks import FirstBlocks
from dicache.runtime.module_call import ModuleCall
from dicache.runtime.run_state import Inputs
from dicache.sites import Branches, Drafted, Spans, Tail
from dicache.types import Action, Reason
from helpers.driving import Driven, latents
from helpers.fuzzing import examples
from helpers.stepping import LINE, a_config, inside

HELD, LINED = (0.1, 0.2), (0.2, 0.1)
"""What is predicted where the newest value is to fill in, and where the line is."""
MARKS = st.text("#=", min_size=2, max_size=2)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# Whole evaluations.


@given(marks=MARKS)
def test_rows_that_skip_get_the_newest_exact_output_and_the_others_are_exact(marks):
    driven, steps = Driven(a_config(marks, HELD, HELD)), latents(4)
    first = driven.call(0, steps[0])
    close(first, driven.exact(steps[0]))
    for i in (1, 2, 3):
        given_out, exact = driven.call(i, steps[i]), driven.exact(steps[i])
        for row, mark in enumerate(marks):
            close(given_out[row], (exact if mark == "#" else first)[row])
    rows = [[2, *[marks.count("#")] * 3] if "#" in marks else [2]] * 3
    assert driven.ran == rows, "a row that skips does not run"


def test_a_guess_is_never_remembered_and_a_value_that_is_handed_out_may_be_changed():
    driven, steps = Driven(a_config("==", HELD, HELD)), latents(4)
    exact = driven.call(0, steps[0]).clone()
    for i in (1, 2, 3):
        given_out = driven.call(i, steps[i])
        close(given_out, exact)
        given_out.zero_()
    (history,) = driven.session.run.states[0].histories.values()
    assert history.outputs.sigmas[0].tolist() == [1.0, 1.0] and history.outputs.sigmas[1].isnan().all()


def test_a_line_is_drawn_once_there_are_two_values_and_until_then_the_row_computes():
    driven, steps = Driven(a_config("==", LINED, LINED)), latents(3)
    outputs = [driven.call(i, steps[i]) for i in range(3)]
    close(outputs[1], driven.exact(steps[1]))
    close(outputs[2], 2 * outputs[1] - outputs[0])
    assert driven.ran[0] == [2, 2]


def test_each_row_is_filled_in_by_its_own_best():
    driven, steps = Driven(a_config("==", HELD, LINED)), latents(4)
    outputs = [driven.call(i, steps[i]) for i in range(3)]
    close(outputs[1][0], outputs[0][0])
    close(outputs[1][1], driven.exact(steps[1])[1])
    close(outputs[2][0], outputs[0][0])
    close(outputs[2][1], 2 * outputs[1][1] - outputs[0][1])


@pytest.mark.parametrize("depth", [1, 2])
def test_the_probes_blocks_run_for_all_rows_and_the_rest_for_those_that_compute(depth):
    driven, steps = Driven(a_config("=#", HELD, HELD, probe=FirstBlocks(depth))), latents(3)
    for i in range(3):
        driven.call(i, steps[i])
    assert driven.ran == [[2, 2, 2]] * depth + [[2, 1, 1]] * (3 - depth)
    trace = driven.session.trace()
    assert trace.executed.tolist() == [16 * (3 + 2 * depth), 16 * 9.0] and trace.uncached.tolist() == [16 * 9.0] * 2


def test_what_must_not_be_taken_apart_runs_for_all_rows_where_one_computes():
    driven, steps = Driven(a_config("=#", HELD, HELD)), latents(2)
    first = driven.call(0, steps[0], gathered=False)
    second = driven.call(1, steps[1], gathered=False)
    close(second[0], first[0])
    close(second[1], driven.exact(steps[1])[1])
    assert driven.ran[0] == [2, 2]


def test_inputs_of_another_kind_run_whole_until_their_shapes_are_known():
    driven, steps = Driven(a_config("==", HELD, HELD)), latents(4)
    for i, key in enumerate(("a", "b", "b", "a")):
        driven.call(i, steps[i], key=(key,))
    assert driven.ran[0] == [2, 2]


# Guidance branches.


def guided(config, order, scale=3.0, steps=4):
    """A driven session, its latents, and what every branch gave: (step, branch) to (B, 4)."""
    driven, latent = Driven(config), latents(1)[0]
    shifts = {"cond": torch.ones(2, 4), "uncond": -torch.ones(2, 4)}
    made, exact = {}, {}
    for i in range(steps):
        for name in order:
            made[i, name] = driven.call(i, latent, shifts[name], branch=name)
            exact[i, name] = driven.exact(latent, shifts[name])
        mixed = made[i, "uncond"] + scale * (made[i, "cond"] - made[i, "uncond"])
        latent = latent - 0.05 * mixed
    return driven, made, exact


@examples(8)
@given(scale=st.floats(2, 7))
def test_the_strongest_branch_computes_and_the_others_follow_it_by_what_they_differed_by(scale):
    config = a_config("==", HELD, HELD, sites=Branches(), approximators=LINE)
    driven, made, exact = guided(config, ("cond", "uncond"), scale)
    for i in range(4):
        close(made[i, "cond"], exact[i, "cond"])
    close(made[0, "uncond"], exact[0, "uncond"])  # the mixture is not known
    close(made[1, "uncond"], exact[1, "uncond"])  # nothing is remembered of the difference
    for i in (2, 3):
        close(made[i, "uncond"] - made[i, "cond"], exact[1, "uncond"] - exact[1, "cond"])
    assert driven.ran[0] == [2] * 6
    assert driven.session.run.guided.strongest == ("cond", 0)


def test_where_the_strongest_branch_comes_last_the_others_are_remembered_as_they_are():
    config = a_config("==", HELD, HELD, sites=Branches(), approximators=LINE)
    _, made, exact = guided(config, ("uncond", "cond"))
    for i in (2, 3):
        close(made[i, "cond"], exact[i, "cond"])
        close(made[i, "uncond"], exact[1, "uncond"])


def test_branches_in_one_batch_are_held_against_the_chunk_that_is_strongest():
    config = a_config("==", HELD, HELD, sites=Branches(), approximators=LINE)
    driven, latent = Driven(config), latents(1)[0]
    shift, made = torch.cat([-torch.ones(2, 4), torch.ones(2, 4)]), []
    for i in range(4):
        made.append(driven.call(i, latent.repeat(2, 1), shift))
        exact = driven.exact(latent.repeat(2, 1), shift)
        close(made[i][2:], exact[2:])
        if i < 2:
            close(made[i], exact)
        else:
            close(made[i][:2] - made[i][2:], made[1][:2] - made[1][2:])
        latent = latent - 0.05 * (made[i][:2] + 4 * (made[i][2:] - made[i][:2]))
    assert driven.ran[0] == [4, 4, 2, 2]


# Sites inside the denoiser.


@examples(12)
@given(marks=MARKS, size=st.sampled_from([1, 2, None]))
def test_a_span_that_is_skipped_adds_to_what_comes_in_what_it_added_last(marks, size):
    driven, steps = Driven(inside(marks, HELD, HELD, sites=Spans(size))), latents(3)
    first = driven.call(0, steps[0])
    for i in (1, 2):
        given_out, exact = driven.call(i, steps[i]), driven.exact(steps[i])
        for row, mark in enumerate(marks):
            expected = exact[row] if mark == "#" else steps[i][row] + first[row] - steps[0][row]
            close(given_out[row], expected)
    (record, _) = driven.session.trace().records
    assert record.action.shape == (2, len(driven.session.sites))


def test_blocks_at_the_end_stay_fresh():
    driven, steps = Driven(inside("==", HELD, HELD, sites=Tail(back=1))), latents(2)
    driven.call(0, steps[0])
    driven.call(1, steps[1])
    assert driven.ran == [[2], [2], [2, 2]]


def test_sites_that_are_decided_together_are_asked_once():
    config = inside("=#", HELD, HELD, together=True)
    driven, steps = Driven(config), latents(3)
    for i in range(3):
        driven.call(i, steps[i])
    asked = [sum(kind == "asked" for kind, *_ in state.controller) for state in driven.session.run.states]
    assert asked == [3, 1, 1], "the others only where nobody had to decide, at the first step"
    assert driven.ran == [[2, 1, 1]] * 3


def test_blocks_that_run_out_of_the_order_they_are_listed_in_are_refused():
    driven, steps = Driven(inside("==", HELD, HELD, sites=Spans(2))), latents(1)
    driven.clock.index = 0
    with torch.no_grad():
        driven.session.begin(Inputs(steps[0], None, None, ("key",)))
        block = driven.blocks["b1"]
        with pytest.raises(UnsupportedModelError, match=r"b1 ran outside its site b0\.\.b1"):
            driven.session.strategy.block(driven.session.call, ModuleCall("b1", block, block.forward, (steps[0],), {}))


# Drafts.


def drafted(threshold, steps=3, floor=0.0):
    config = inside("==", HELD, HELD, sites=Drafted(threshold=threshold, decay=1.0, floor=floor))
    driven, inputs = Driven(config), latents(steps)
    return driven, inputs, [driven.call(i, inputs[i]) for i in range(steps)]


def test_a_draft_that_fails_is_computed_in_the_same_step_and_says_that_it_was_rejected():
    driven, inputs, outputs = drafted(1e-6)
    for latent, output in zip(inputs, outputs, strict=True):
        close(output, driven.exact(latent))
    trace = driven.session.trace()
    assert trace.records[1].reason[:, 0].tolist() == [Reason.REJECTED] * 2
    assert driven.ran == [[2, 2, 2], [2, 2, 2], [2, 2, 2, 2, 2]], "the last block ran on the draft as well"
    assert (trace.executed > trace.uncached).all()


def test_a_draft_that_stands_is_handed_on_and_the_last_block_runs_on_it():
    driven, inputs, outputs = drafted(1e6)
    assert driven.ran == [[2], [2], [2, 2, 2]]
    head = driven.blocks["b2"]
    added = driven.blocks["b1"].forward(driven.blocks["b0"].forward(inputs[0])) - inputs[0]
    for latent, output in zip(inputs[1:], outputs[1:], strict=True):
        close(output, head.forward(latent + added))
    assert driven.session.trace().records[1].action[:, 0].tolist() == [Action.REUSE] * 2


@given(seed=st.integers(0, 99), stride=st.sampled_from([0.05, 0.2]))
def test_sites_that_are_decided_at_once_decide_as_each_does_when_it_opens(seed, stride):
    """By a threshold between the errors that are seen: rows of a site part, and sites part."""
    walk = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(seed))
    steps = torch.cat([walk[:1], walk[1:] * stride]).cumsum(0)
    outputs, records = [], []
    for looks in (False, True):
        driven = Driven(Config(Threshold(0.6), sites=Spans()))
        driven.session.strategy.looks = looks
        outputs.append([driven.call(i, latent) for i, latent in enumerate(steps)])
        records.append(driven.session.trace().records)
    assert any(bool((record.action != 0).any()) for record in records[0])
    for ahead, alone in zip(*outputs, strict=True):
        assert torch.equal(ahead, alone)
    for ahead, alone in zip(*records, strict=True):
        for mine, its in zip(ahead[3:], alone[3:], strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=0, equal_nan=True)
