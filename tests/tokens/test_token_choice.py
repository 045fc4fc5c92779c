"""Choices of tokens, from the equations that they stand for."""

import math

import pytest
import torch
from scipy.stats import chi2

import dicache
from dicache import presets
from dicache.errors import ModeError, UnsupportedModelError
from dicache.regressions.token_scores import ErrorMoments, fit_token_score
from dicache.tensors.token_grid import as_picture, as_tokens
from dicache.token_choice import Clusters, InputChange, LastError, Random, Refresh, TokenScore
from dicache.token_choice.base import SeenTokens
from dicache.token_choice.by_change import chi_square
from dicache.token_choice.by_cluster import far_apart, k_means
from pipelines.tiny import PIPELINES

B, N, C = 2, 16, 5
GUIDED = PIPELINES["sequential guidance with named branches (flux)"]


def seen(**facts) -> SeenTokens:
    torch.manual_seed(1)
    drawn = {"entering": torch.randn(B, N, C), "entering_before": torch.randn(B, N, C), "leaving": torch.randn(B, N, C)}
    plain = {"index": 4, "seeds": [11, 12], "computed": [2, 2], **drawn}
    return SeenTokens(**{**plain, "errors": torch.rand(B, N), "waited": torch.randint(1, 5, (B, N)).float(), **facts})


def test_the_last_error_runs_the_tokens_that_were_furthest_off():
    errors = torch.tensor([[0.1, 0.9, 0.3, 0.4], [0.5, 0.0, 0.5, 0.2]])
    mask, _ = LastError(0.5).choose(seen(errors=errors), None)
    assert mask.tolist() == [[False, True, False, True], [True, False, True, False]]
    assert not LastError(0.0).choose(seen(), None)[0].any() and LastError(1.0).choose(seen(), None)[0].all()
    assert LastError(0.001).choose(seen(), None)[0].sum(1).tolist() == [1, 1], "any share is at least a token"


def test_a_refresh_weighs_error_wait_and_cell():
    facts, rule = seen(), Refresh(0.25, staleness=0.3, interval=4, bonus=0.5)
    for b in range(B):
        norm = math.sqrt(sum(float(e) ** 2 for e in facts.errors[b]))
        scores = [float(facts.errors[b, n]) / norm + 0.3 * float(facts.waited[b, n]) / 4 for n in range(N)]
        for i in (0, 2):
            for j in (0, 2):
                cell = [4 * y + x for y in (i, i + 1) for x in (j, j + 1)]
                scores[max(cell, key=scores.__getitem__)] *= 1.5
        best = sorted(range(N), key=scores.__getitem__)[-4:]
        assert rule.choose(facts, None)[0][b].nonzero().flatten().tolist() == sorted(best)


def test_chance_differs_by_step_and_by_sample_and_not_by_batch():
    first, _ = Random(0.25).choose(seen(), None)
    alone, _ = Random(0.25).choose(seen(seeds=[12], errors=torch.rand(1, N)), None)
    later, _ = Random(0.25).choose(seen(index=5), None)
    assert torch.equal(first[1:], alone) and first.sum(1).tolist() == [4, 4]
    assert not torch.equal(first, later) and not torch.equal(first[0], first[1])


def test_k_means_is_settled_and_finds_groups():
    groups = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    tokens = groups.repeat_interleave(6, 0) + 0.1 * torch.randn(18, 2)
    labels, centroids = k_means(tokens, far_apart(tokens, 3))
    assert [len(set(own.tolist())) for own in labels.split(6)] == [1, 1, 1] and len(labels.unique()) == 3
    for k in range(3):
        torch.testing.assert_close(centroids[k], tokens[labels == k].mean(0))
    assert torch.equal(labels, (tokens[:, None] - centroids).abs().sum(2).argmin(1)), "nearest in L1"


@pytest.mark.parametrize("updates", [False, True], ids=["values, as published", "updates"])
def test_clusters_run_one_token_each_and_the_rest_follows(updates):
    rule, facts = Clusters(4, weight=0.3, updates=updates), seen()
    mask, state = rule.choose(facts, None)
    for b in range(B):
        assert sorted(state.labels[b][mask[b]].tolist()) == sorted(state.labels[b].unique().tolist())
    tokens, guess = torch.randn(2 * B, N, C), torch.randn(2 * B, N, C)
    followed = rule.spread(tokens, guess, mask.repeat(2, 1), state)
    for r in range(2 * B):
        labels, ran = state.labels[r % B], mask[r % B]
        for n in range(N):
            of = int((ran & (labels == labels[n])).nonzero())
            moved = tokens[r, of] - guess[r, of] if updates else tokens[r, of] - guess[r, n]
            expected = tokens[r, n] if ran[n] else guess[r, n] + 0.3 * moved
            torch.testing.assert_close(followed[r, n], expected)


def test_clusters_are_made_anew_where_a_sample_was_computed():
    rule = Clusters(4)
    _, state = rule.choose(seen(), None)
    other = seen(leaving=torch.randn(B, N, C) * 3, computed=[2, 5])
    _, after = rule.choose(other, state)
    assert torch.equal(after.centroids[0], state.centroids[0])
    warm = k_means(other.leaving[1], state.centroids[1])
    assert torch.equal(after.labels[1], warm[0]) and torch.equal(after.centroids[1], warm[1])


def test_tokens_run_whose_input_moved():
    facts = seen()
    moved = (facts.entering - facts.entering_before).double().pow(2).sum(2)
    mask, _ = InputChange(0.4).choose(facts, None)
    assert torch.equal(mask, moved > 0.4 * moved.amax(1, keepdim=True)) and 0 < mask.sum() < mask.numel()
    tested, _ = InputChange(level=0.2).choose(facts, None)
    variance = moved.median(1, keepdim=True).values / C
    assert torch.equal(tested, moved > variance * chi_square(0.8, C)) and 0 < tested.sum() < tested.numel()
    assert InputChange().choose(seen(entering_before=None), None)[0].all(), "what is not known runs"


@pytest.mark.parametrize(("probability", "freedom"), [(0.95, 10), (0.95, 128), (0.5, 64), (0.99, 3072)])
def test_the_quantile_is_that_of_chi_square(probability, freedom):
    assert chi_square(probability, freedom) == pytest.approx(chi2.ppf(probability, freedom), rel=2e-3)


def test_a_score_is_a_product_and_its_fit_finds_what_errors_follow():
    weights, facts = torch.randn(C), seen()
    mask, _ = TokenScore(weights, 0.25).choose(facts, None)
    order = (facts.entering @ weights).argsort(1, descending=True)[:, :4]
    assert torch.equal(mask, torch.zeros(B, N, dtype=torch.bool).scatter(1, order, True))
    moments = ErrorMoments()
    for seed in range(20):
        x = torch.randn(B, N, C, generator=torch.Generator().manual_seed(seed))
        errors = (x @ weights + torch.tensor([[3.0], [-2.0]])).exp()  # what differs by sample is not learned from
        moments.choose(seen(entering_before=x, errors=errors, waited=torch.ones(B, N)), None)
    torch.testing.assert_close(torch.linalg.solve(moments.squares, moments.products).float(), weights)
    with pytest.raises(UnsupportedModelError, match="5 channels"):
        TokenScore(weights).choose(seen(entering=torch.randn(B, N, C + 1)), None)


@pytest.mark.parametrize("shape", [(2, 16, 3), (2, 3, 8, 8), (2, 3, 4, 8, 2), (2, 3, 2, 8, 16)])
def test_tokens_are_patches_of_the_picture_and_back(shape):
    picture = torch.randn(shape)
    tokens = as_tokens(picture, 16)
    assert tokens.shape[:2] == (2, 16) and torch.equal(as_picture(tokens, picture.shape), picture)
    if shape == (2, 3, 8, 8):
        assert torch.equal(tokens[:, 5], picture[:, :, 2:4, 2:4].flatten(1))
    assert as_tokens(picture, 7) is None


CONFIGS = {
    "toca": lambda pipe: presets.toca(),
    "clusca": lambda pipe: presets.clusca(clusters=8),
    "tokencache": lambda pipe: presets.tokencache(score(pipe)),
    "fastcache_tokens": lambda pipe: presets.fastcache_tokens(2.0, 0.3),
}


def score(pipe) -> TokenScore:
    width = pipe.transformer.inner_dim
    return TokenScore(torch.randn(width, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("make", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_preset_saves_work_and_is_the_same_twice(make):
    pipe = GUIDED.make()
    with dicache.enable(pipe, config=make(pipe)) as cache:
        first = GUIDED.draw(pipe, [1, 2], 10)
        assert 0.2 < cache.trace.executed.sum() / cache.trace.uncached.sum() < 0.95
        assert torch.equal(GUIDED.draw(pipe, [1, 2], 10), first)


def test_a_score_is_fitted_on_runs_of_the_pipeline():
    from dicache.reference import pipeline, prompts

    pipe = pipeline()
    fitted = fit_token_score(pipe, prompts("calibration", 1), steps=8, share=0.5)
    assert fitted.share == 0.5 and fitted.weights.shape == (128,) and bool(fitted.weights.isfinite().all())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LastError(1.5),
        lambda: Random(-0.1),
        lambda: Clusters(0),
        lambda: Clusters(4, weight=2.0),
        lambda: InputChange(level=0.0),
        lambda: TokenScore(torch.zeros(2, 2)),
    ],
    ids=["share", "negative share", "no cluster", "weight", "level", "weights"],
)
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ModeError, match="xpected"):
        wrong()
