"""Running one module for all rows, for some or for none, each counted; and what a probe sees of it."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from dicache.probes.base import Probe
from dicache.probes.first_blocks import FirstBlocks
from dicache.runtime.evidence import Probing
from dicache.runtime.module_call import ModuleCall, RowsToRun, stream
from dicache.runtime.run_state import Call
from dicache.tensors.mac_meter import Meter
from dicache.tensors.tree import shapes_of
from helpers.stepping import Work, a_config, a_run, rows

CPU = torch.device("cpu")
MARKS = st.text("#=", min_size=4, max_size=4)
COST = 16.0
"""MACs of one row of a block of width four."""


def called(work: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> ModuleCall:
    return ModuleCall("block", work, work.forward, args, kwargs)


def counted(work: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> tuple[ModuleCall, Meter]:
    """A module whose cost is known: it ran for all rows once."""
    module_call, meter = called(work, *args, **kwargs), Meter()
    meter.begin_call("key", len(args[0]))
    module_call.run_for(RowsToRun(len(args[0])), meter, None)
    return module_call, meter


@given(marks=MARKS)
def test_the_rows_of_a_call_are_all_some_or_none(marks):
    some = RowsToRun(4).of(rows(marks), CPU)
    assert some.rows == 4 and some.none == (marks == "====")
    if "=" not in marks:
        assert some == RowsToRun(4)
    else:
        assert some.computed.tolist() == [mark == "#" for mark in marks]
        assert some.none or some.some.tolist() == [i for i, mark in enumerate(marks) if mark == "#"]
    assert RowsToRun(4, gathered=False).of(rows(marks), CPU).gathered is False
    assert some.of(None, CPU) == RowsToRun(4)


@given(marks=MARKS, by_name=st.booleans())
def test_rows_that_run_give_what_they_would_in_the_whole_batch_and_the_others_nothing(marks, by_name):
    hidden, shift = torch.randn(4, 3, 4), torch.randn(4, 1, 4)
    work = Work()
    module_call, meter = counted(work, hidden, shift) if not by_name else counted(work, hidden, shift=shift)
    exact, chosen = module_call.run(), RowsToRun(4).of(rows(marks), CPU)
    work.ran.clear()
    output = module_call.run_for(chosen, meter, shapes_of(exact))
    assert work.ran == ([] if chosen.none else [marks.count("#")])
    if not chosen.none:
        torch.testing.assert_close(output[rows(marks)], exact[rows(marks)])
        assert not output[~rows(marks)].any()
    else:
        assert output is hidden, "anything of the right shape"


@given(calls=st.lists(MARKS, min_size=1, max_size=4))
def test_what_is_executed_is_what_ran_and_what_would_have_been_is_all(calls):
    module_call, meter = counted(Work(), torch.randn(4, 4))
    for marks in calls:
        meter.begin_call("key", 4)
        module_call.run_for(RowsToRun(4).of(rows(marks), CPU), meter, shapes_of(torch.zeros(4, 4)))
    expected = [COST * (1 + sum(marks[row] == "#" for marks in calls)) for row in range(4)]
    assert meter.executed.tolist() == expected
    assert meter.uncached.tolist() == [COST * (1 + len(calls))] * 4


def test_a_part_inside_another_takes_its_cost_off_where_it_is_skipped_and_adds_none():
    module_call, meter = counted(Work(), torch.randn(4, 4))
    meter.begin_call("key", 4)
    meter.costs["around"] = 40.0
    meter.ran("around")
    module_call.run_for(RowsToRun(4).of(rows("##=="), CPU), meter, None, inside=True)
    assert meter.executed.tolist() == [COST + 40, COST + 40, COST + 24, COST + 24]
    assert meter.uncached.tolist() == [COST + 40] * 4


def test_what_was_never_counted_runs_for_all_rows_whatever_was_decided():
    work, meter = Work(), Meter()
    meter.begin_call("key", 4)
    called(work, torch.randn(4, 4)).run_for(RowsToRun(4).of(rows("===="), CPU), meter, None)
    assert work.ran == [4] and meter.executed.tolist() == [COST] * 4 and meter.costs == {"block": COST}
    meter.begin_call("another key", 4)
    called(work, torch.randn(4, 4)).run_for(RowsToRun(4).of(rows("#==="), CPU), meter, None)
    assert work.ran == [4, 4], "inputs of another shape may cost something else"


@pytest.mark.parametrize("folded", [True, False])
def test_where_rows_cannot_be_taken_out_all_of_them_run_and_count(folded):
    """A batch that frames are folded into, and parts that must not run for some of the rows."""
    work, hidden = Work(), torch.randn(8 if folded else 4, 4)
    module_call, meter = counted(work, hidden)
    meter.begin_call("key", 4)
    chosen = RowsToRun(4, gathered=folded).of(rows("#=##"), CPU)
    output = module_call.run_for(chosen, meter, None)
    torch.testing.assert_close(output, module_call.run())
    assert work.ran[1] == len(hidden) and meter.executed[:4].tolist() == [2 * meter.costs["block"]] * 4


def test_arguments_that_all_rows_share_are_known_by_their_names_also_by_position():
    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, hidden_states, rotary_emb, scale=1.0):
            self.seen.append((len(hidden_states), len(rotary_emb), scale))
            return hidden_states

    work = Rotated()
    module_call, meter = counted(work, torch.randn(4, 3, 2), torch.randn(4, 2))
    module_call.run_for(RowsToRun(4).of(rows("#=#="), CPU), meter, None)
    assert work.seen == [(4, 4, 1.0), (2, 4, 1.0)]


def test_the_stream_is_the_largest_of_what_a_block_is_called_with():
    small, large = torch.zeros(2, 3), torch.zeros(2, 5)
    assert stream(((small,), {"x": [large, "text", None]})) is large


# Probes.


class Seeing(Probe):
    """Multiplies what it sees, so that looking costs something."""

    def __init__(self, depth):
        self.depth, self.views = depth, []

    def __call__(self, view):
        self.views.append(view)
        return view.after @ torch.eye(view.after.shape[-1])


def a_call(run) -> Call:
    return Call(run, "main", run.latent, ("key",), RowsToRun(len(run.latent)), first=True)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_probe_looks_once_after_so_many_blocks_and_sees_what_went_in_and_came_out(depth):
    probe, meter, hidden = Seeing(depth), Meter(), torch.randn(2, 4)
    run = a_run(a_config("##", probe=probe))
    probing, call, given_to = Probing(a_config("##", probe=probe), meter), a_call(run), []
    meter.begin_call(("key",), 2)
    assert probing.looks
    for i in range(3):
        given_to.append(hidden)
        module_call = called(Work(seed=i), hidden)
        probing.before(call, module_call)
        assert (call.feature is not None) == (i + 1 > depth), "also a probe of depth 0 waits for the first block"
        call.position += 1
        hidden = module_call.run()
        probing.after(call, hidden)
    (view,) = probe.views
    assert view.before is given_to[0] and view.after is [*given_to, hidden][depth] and view.latent is call.latent
    assert view.step is run.step and isinstance(view.block, Work)
    torch.testing.assert_close(call.feature, view.after)
    assert meter.executed.tolist() == [COST] * 2 and meter.uncached.tolist() == [0.0] * 2, "looking is work on top"


def test_a_probe_of_no_block_costs_nothing_and_is_never_asked():
    assert not Probing(a_config("##"), Meter()).looks
    assert Probing(a_config("##", probe=FirstBlocks(1)), Meter()).looks
