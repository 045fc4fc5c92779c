"""What becomes of an input from call to call: the same, moving, or changed, without a wait for any device."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicache.models import watched_inputs
from dicache.models.watched_inputs import Conditions


def numbers(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))


def changes(values) -> list[int]:
    """At which calls an input that takes these values has changed."""
    conditions = Conditions()
    return [i for i, value in enumerate(values) if conditions.changed("main", {"prompt": value})]


def anew(seed: int) -> torch.Tensor:
    """The same content in another place."""
    return torch.cat([numbers(seed)[:1], numbers(seed)[1:]])


@pytest.mark.parametrize(
    "make",
    [numbers, anew, float, str, lambda k: [numbers(k)] * 2, lambda k: {"embeds": anew(k)}],
    ids=["kept", "anew", "number", "name", "list", "mapping"],
)
@given(before=st.integers(2, 6), after=st.integers(1, 6))
def test_what_stayed_and_is_another_changed_once_wherever_it_lies(make, before, after):
    assert changes([make(1) for _ in range(before)] + [make(2) for _ in range(after)]) == [before]


@given(calls=st.integers(3, 8))
def test_what_is_another_at_every_call_moves_until_its_size_jumps(calls):
    moving = [numbers(k) for k in range(calls)]
    assert changes(moving) == []
    assert changes([*moving, *[0 * each for each in moving]]) == [calls], "it ended"
    assert changes([*moving, None, None]) == [calls]
    assert changes([*moving, *[5 * numbers(100 + k) for k in range(calls)]]) == [calls]
    assert changes([*[0 * each for each in moving], *moving]) == [calls], "it began"
    growing = [3.0**k * each for k, each in enumerate(moving)]
    assert changes(growing) == [] and changes([*growing, 3.0**calls * 5 * numbers(99)]) == [calls]
    assert changes([torch.full((2,), float(k)) for k in range(calls)]) == [], "a time"
    assert changes([torch.full((2, 3, 4), torch.nan)] * calls) == []


def test_another_one_at_the_second_call_that_then_stays_has_changed():
    assert changes([numbers(1), numbers(2), numbers(2), numbers(2)]) == [2]


def test_what_is_written_in_place_changed_whatever_mode_it_was_made_in():
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            value, conditions = numbers(1), Conditions()
            seen = []
            for call in range(5):
                if call == 3:
                    value.mul_(2)
                seen.append(bool(conditions.changed("main", {"prompt": value})))
        assert seen == [False, False, False, True, False]


def test_branches_are_held_against_themselves_and_inputs_that_come_later_against_nothing():
    conditions = Conditions()
    for _ in range(3):
        assert not conditions.changed("cond", {"prompt": numbers(1)})
        assert not conditions.changed("uncond", {"prompt": numbers(2)})
    assert conditions.changed("cond", {"prompt": numbers(1), "residuals": [numbers(3)] * 2}) == ["residuals"]
    assert conditions.changed("uncond", {}) == ["prompt"]


@given(
    lists=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=9),
    order=st.sampled_from([("a",), ("a", "b")]),
)
def test_calls_with_the_very_same_objects_may_be_passed_over_once_it_has_settled(lists, order):
    """The session does so; what is told of the others is the same."""
    asked, passing, last = Conditions(), Conditions(), {}
    values = [numbers(seed) for seed in range(4)]
    for chosen, copied in lists:
        for branch in order:
            value = values[chosen].clone() if copied else values[chosen]
            told = asked.changed(branch, {"prompt": value})
            if last.get(branch) is value:
                assert told == []
                continue
            assert passing.changed(branch, {"prompt": value}) == told
            last[branch] = value if passing.settled(branch) else None


def test_what_has_no_address_is_not_looked_at():
    values = [torch.empty(2, 3, device="meta"), torch.ones(2, 3).to_sparse(), object()]
    assert changes(values) == [] and Conditions().changed("main", {}) == []


class Late(watched_inputs.Answer):
    """An answer that comes when it is told to."""

    came = False


def test_answers_that_have_not_come_are_waited_for_by_nobody(monkeypatch):
    monkeypatch.setattr(watched_inputs, "Answer", Late)
    moving = [numbers(k) for k in range(9)]
    sized = watched_inputs.Input(None, state=watched_inputs.State.MOVING)
    monkeypatch.setattr(Late, "came", False)
    assert not any(sized.changed(value) for value in (*moving, 9 * moving[0])) and sized.size is None
    Late.came = True
    assert not sized.changed(moving[0]) and sized.size == pytest.approx(float(moving[0].norm()))
