"""Parts that a user wrote: what they are asked with, and what becomes of those that break their contract."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import dicache
from dicache.approximators import Approximator, Reuse
from dicache.controllers import Planned, Threshold
from dicache.errors import PartError
from dicache.estimators import ClosedLoop, Estimator
from dicache.probes import FirstBlocks, Probe
from dicache.sites import Spans
from dicache.types import Action

STEPS, ROWS = 14, 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, time):
        return x + torch.tanh(self.linear(x) + time[:, None, None])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x, t):
        for block in self.blocks:
            x = block(x, t)
        return x


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net()


@torch.no_grad()
def draw(net: nn.Module) -> torch.Tensor:
    x = torch.randn(ROWS, 5, 8, generator=torch.Generator().manual_seed(1))
    for now, after in pairwise(torch.linspace(1, 0, STEPS + 1).tolist()):
        x = x + (after - now) * net(x, torch.full((ROWS,), now))
    return x


def run(net: nn.Module, **parts: Any) -> dicache.Report:
    controller = parts.pop("controller", Threshold(math.inf))
    with dicache.enable(net, config=dicache.Config(controller, **parts)) as cache:
        draw(net)
        return cache.report()


class Newest(Approximator):
    action, needs = Action.REUSE, 1

    def guess(self, histories, target):
        return histories.outputs.values[0].clone()

    def growth(self, sigmas, sigma):
        return (sigma - sigmas[0]).abs()


class Half(Estimator[None]):
    def init(self, samples, n_approximators):
        return None

    def predict(self, evidence, state):
        return evidence.growth * 0.5

    def observe(self, realised, evidence, computed, state):
        return None


class After(Probe):
    depth = 1

    def __call__(self, view):
        return view.after.clone()


def test_values_come_newest_first_with_their_times(net):
    seen: list[torch.Tensor] = []

    class Recalled(Newest):
        needs = 2

        def guess(self, histories, target):
            newest, before = histories.outputs.values
            assert newest.shape == before.shape == (ROWS, 5, 8) and not torch.equal(newest, before)
            sigmas = histories.outputs.sigmas
            assert sigmas.shape == (2, ROWS) and bool((sigmas[0] < sigmas[1]).all()) and target.sigma < sigmas[0].min()
            seen.append(newest)
            return newest.clone()

    assert run(net, approximators=(Recalled(),), controller=Threshold(0.0)).compute_speedup == 1
    assert len(seen) == STEPS - 2 and not torch.equal(seen[0], seen[1])


def test_parts_of_ones_own_do_what_those_that_ship_do(net):
    ours = run(net, approximators=(Newest(),), estimator=Half(), probe=After(), controller=Planned(0.2))
    theirs = run(net, approximators=(Reuse(),), estimator=Half(), probe=FirstBlocks(), controller=Planned(0.2))
    assert [ours.strip(i) for i in range(ROWS)] == [theirs.strip(i) for i in range(ROWS)]


def test_the_report_says_whose_estimate_it_is(net):
    assert (
        "the estimate is as good as your own Half, Newest."
        in run(net, approximators=(Newest(),), estimator=Half()).warnings
    )
    assert not any("your own" in text for text in run(net, approximators=(Reuse(),), probe=After()).warnings)


def changed(base: type, **attributes: Any) -> Any:
    return type("Bad", (base,), attributes)()


def incomplete(base: type, name: str) -> Any:
    """A part that says all but one of its attributes."""
    contract = next(kind for kind in base.__mro__ if kind in (Approximator, Probe))
    said = {key: value for key, value in vars(base).items() if key == "__call__" or (key != name and key[:2] != "__")}
    return type("Bad", (contract,), said)()


@pytest.mark.parametrize("name", ["action", "needs"])
def test_an_approximator_that_leaves_something_unsaid_is_refused(name):
    with pytest.raises(PartError, match=f"Bad does not say its {name}"):
        dicache.Config(Threshold(0.1), approximators=(Reuse(), incomplete(Newest, name)))


def test_a_probe_that_leaves_its_depth_unsaid_is_refused():
    with pytest.raises(PartError, match="Bad does not say its depth"):
        dicache.Config(Threshold(0.1), probe=incomplete(After, "depth"))


@pytest.mark.parametrize("action", [9, "reuse", None, Action.COMPUTE, Action.UNSTORED, Action.DYNAMIC])
def test_an_action_that_fills_in_nothing_is_refused(action):
    with pytest.raises(PartError, match=r"Bad\.action is .*Action\.REUSE"):
        dicache.Config(Threshold(0.1), approximators=(changed(Newest, action=action),))


@pytest.mark.parametrize("count", [-1, 1.0, "1", None, True])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(PartError, match=r"Bad\.needs is .* 1 or more"):
        dicache.Config(Threshold(0.1), approximators=(changed(Newest, needs=count),))
    with pytest.raises(PartError, match=r"Bad\.depth is .* 0 for none"):
        dicache.Config(Threshold(0.1), probe=changed(After, depth=count))


@pytest.mark.parametrize("part", [{"approximators": (Reuse,)}, {"estimator": ClosedLoop}, {"probe": 1}])
def test_what_is_no_part_is_refused_by_its_place(part):
    with pytest.raises(PartError, match=rf"{next(iter(part))} .*Expected"):
        dicache.Config(Threshold(0.1), **part)


WRONG = {
    "a float": lambda right: 1.0,
    "nothing": lambda right: None,
    "one row": lambda right: right[:1],
    "a row more": lambda right: torch.cat([right, right[:1]]),
    "an axis more": lambda right: right[None],
}


@pytest.mark.parametrize("sites", [{}, {"sites": Spans(1)}], ids=["evaluation", "spans"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_an_approximator_gives_is_held_against_its_contract(net, wrong, sites):
    for method, right in (("guess", Newest.guess), ("growth", Newest.growth)):

        def give(self, *args, right=right):
            return WRONG[wrong](right(self, *args))

        with pytest.raises(PartError, match=rf"Bad\.{method} gave .* Expected a tensor"):
            run(net, approximators=(changed(Newest, **{method: give}),), **sites)


@pytest.mark.parametrize("wrong", WRONG)
def test_what_an_estimator_predicts_is_held_against_its_contract(net, wrong):
    def predict(self, evidence, state):
        return WRONG[wrong](Half.predict(self, evidence, state))

    with pytest.raises(PartError, match=r"Bad\.predict gave .* Expected a tensor \(3, 1\)"):
        run(net, approximators=(Reuse(),), estimator=changed(Half, predict=predict))


@pytest.mark.parametrize("wrong", ["a float", "one row", "a row more", "an axis more"])
def test_what_a_probe_sees_is_held_against_its_contract(net, wrong):
    def look(self, view):
        return WRONG[wrong](view.after.clone())

    with pytest.raises(PartError, match=r"Bad\.__call__ gave .* Expected a tensor \(3, \.\.\.\)"):
        run(net, probe=changed(After, __call__=look))


def test_tensors_that_are_not_a_parts_own_are_refused(net):
    def newest(self, histories, target):
        return histories.outputs.values[0]

    with pytest.raises(PartError, match=r"Bad\.guess gave a tensor that it was shown"):
        run(net, approximators=(changed(Newest, guess=newest),))
    for name in ("latent", "before", "after"):

        def look(self, view, name=name):
            return view._asdict()[name]

        with pytest.raises(PartError, match=r"Bad\.__call__ gave a tensor that it was shown"):
            run(net, probe=changed(After, __call__=look))


def test_after_a_bad_part_the_model_is_as_it_was(net):
    exact = draw(net)
    with pytest.raises(PartError):
        run(net, approximators=(changed(Newest, growth=lambda self, sigmas, sigma: 1.0),))
    assert torch.equal(draw(net), exact) and not net._forward_hooks
