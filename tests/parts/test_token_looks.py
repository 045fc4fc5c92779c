"""Looks at k tokens of a feed-forward are right in the mean, exactly, and steadier than drawing all by chance."""

import itertools

import pytest
import torch

from dicache.measuring.token_looks import look, odds, sample, squares, winners

P = torch.tensor([0.55, 0.05, 0.2, 0.15, 0.05], dtype=torch.float64)
E = torch.tensor([9.0, 0.5, 2.0, 3.0, 0.1], dtype=torch.float64)


def outcomes(k):
    """Every sample that there is, with its probability and its estimate: the definition, written out."""
    order = P.argsort(descending=True)
    certain = min(range(k), key=lambda c: float((1 - P[order[:c]].sum()) / (k - c)))
    rest, share = order[certain:], float(1 - P[order[:certain]].sum())
    for drawn in itertools.product(rest.tolist(), repeat=k - certain):
        chance = torch.tensor([P[j] / share for j in drawn]).prod()
        estimate = E[order[:certain]].sum() + share / (k - certain) * sum(E[j] / P[j] for j in drawn)
        yield float(chance), float(estimate)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_mean_over_all_that_can_be_drawn_is_the_sum(k):
    chances, estimates = zip(*outcomes(k), strict=True)
    assert sum(chances) == pytest.approx(1)
    assert sum(c * e for c, e in zip(chances, estimates, strict=True)) == pytest.approx(float(E.sum()))


@pytest.mark.parametrize("k", [2, 3])
def test_what_is_drawn_comes_as_often_as_it_should(k):
    generator, expected = torch.Generator().manual_seed(k), sorted({round(e, 6) for _, e in outcomes(k)})
    drawn = []
    for _ in range(2000):
        indices, weights = sample(P, k, generator)
        drawn.append(float((weights * E[indices]).sum()))
    assert {round(e, 6) for e in drawn} <= set(expected)
    mean, deviation = torch.tensor(drawn).mean(), torch.tensor(drawn).std() / 2000**0.5
    assert abs(mean - E.sum()) <= 3 * deviation + 1e-9


def test_winners_are_as_many_as_leave_least_to_chance_and_none_where_all_are_alike():
    assert winners(torch.full((8,), 1 / 8, dtype=torch.float64), 4) == 0
    assert winners(P.sort(descending=True).values, 3) == 1
    for k in range(1, 5):
        p = P.sort(descending=True).values
        assert winners(p, k) == min(range(k), key=lambda c: float((1 - p[:c].sum()) / (k - c)))


def variance(pairs):
    chances, estimates = zip(*pairs, strict=True)
    return sum(c * (e - float(E.sum())) ** 2 for c, e in zip(chances, estimates, strict=True))


def test_it_varies_less_than_drawing_all_of_them():
    k = 3
    plain = [
        (float(P[list(js)].prod()), float(sum(E[j] / P[j] for j in js) / k))
        for js in itertools.product(range(5), repeat=k)
    ]
    assert sum(c * e for c, e in plain) == pytest.approx(float(E.sum()))
    assert variance(outcomes(k)) < variance(plain)


def test_looking_at_all_tokens_is_exact_and_still_ones_may_be_drawn():
    torch.manual_seed(0)
    ff = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
    now, before = torch.randn(2, 2, 6, 4)
    before[:, 2] = now[:, 2]
    with torch.no_grad():
        held = ff(before)
        truth = squares(ff(now), held).sum(1)
        torch.testing.assert_close(look(ff, now, before, held, 6), truth)
        generator = torch.Generator().manual_seed(1)
        looks = torch.stack([look(ff, now, before, held, 3, generator) for _ in range(1500)])
    assert ((looks.mean(0) - truth).abs() <= 3 * looks.std(0) / 1500**0.5).all()
    assert (odds(now, before) > 0).all() and torch.allclose(odds(now, before).sum(1), torch.ones(2).double())
