"""The intermediate head: a line, and what a shallow probe saw that it did not foretell, through a fitted map."""

import pytest
import torch

import dicache
from dicache.approximators.base import Histories, Target
from dicache.approximators.fitted.coefficients import Fitted
from dicache.approximators.linear import Extrapolate
from dicache.config import Config
from dicache.controllers.interval import Interval
from dicache.errors import FittedError, ModeError, UnsupportedModelError
from dicache.estimators.closed_loop import ClosedLoop
from dicache.probes.first_blocks import FirstBlocks
from dicache.regressions.moments import BANDS, Innovations, Pair
from dicache.sites import Evaluation
from dicache.tensors import history
from dicache.tensors.token_grid import as_picture
from helpers.fits import EVERY, STEPS, fitted, made, straight
from helpers.toy import SIGMAS, B, N
from helpers.watching import strips

X, OUT = 6, 4


def head(weight):
    return made("innovation", {"weight": weight, "depth": torch.tensor(1.0)}).approximator()


def past(values, features, at):
    """Of values computed at these steps, oldest first."""
    outputs, seen = history.empty(2, B), history.empty(2, B)
    for value, feature, i in zip(values, features, at, strict=True):
        outputs = history.push(outputs, value, SIGMAS[i], EVERY)
        seen = history.push(seen, feature, SIGMAS[i], EVERY)
    return Histories(outputs, seen, history.empty(2, B))


@pytest.mark.parametrize(("before", "newest", "now"), [(0, 1, 2), (2, 5, 6), (3, 4, 8)])
def test_a_head_is_exact_where_the_output_is_linear_in_the_probe_and_the_time(before, newest, now):
    torch.manual_seed(0)
    weight, offset, drift = torch.randn(BANDS, X, OUT), torch.randn(OUT), torch.randn(OUT)
    band = now * BANDS // len(SIGMAS)
    seen = torch.randn(3, B, 5, X)
    values = [seen[k] @ weight[band] + offset + SIGMAS[i] * drift for k, i in enumerate((before, newest, now))]
    guess = head(weight).guess(past(values[:2], seen[:2], (before, newest)), Target(SIGMAS[now], seen[2]))
    torch.testing.assert_close(guess, values[2], rtol=1e-4, atol=1e-3)


def test_a_probe_that_foretells_itself_leaves_the_line():
    torch.manual_seed(1)
    seen, values = torch.randn(B, 5, X), torch.randn(2, B, 5, OUT)
    still = past(values, [seen, seen], (3, 4))
    target = Target(SIGMAS[5], seen)
    torch.testing.assert_close(
        head(torch.randn(BANDS, X, OUT)).guess(still, target), Extrapolate().guess(still, target)
    )


def test_pictures_have_a_token_a_patch():
    torch.manual_seed(2)
    weight, seen = torch.randn(BANDS, X, 4 * OUT), torch.randn(3, B, 4, X)
    pictures = [as_picture(s @ weight[1], (B, OUT, 4, 4)) for s in seen]
    guess = head(weight).guess(past(pictures[:2], seen[:2], (3, 4)), Target(SIGMAS[len(SIGMAS) // 3], seen[2]))
    torch.testing.assert_close(guess, pictures[2], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_model_of_linear_blocks_is_drawn_exactly_from_its_first_blocks(depth, tmp_path):
    """The rest of the network is a matrix, which the fit finds; two thirds of the steps run the probe alone."""
    pipe, options = straight(), {"num_inference_steps": 9, "output_type": "latent"}
    options_of_fit = {"kind": "innovation", "depth": depth, "longest": 2, "ridge": 1e-9, "progress": False}
    dicache.fit(pipe, ["a"] * 4, steps=9, **options_of_fit).save(tmp_path / "head")
    coefficients = Fitted.load(tmp_path / "head")
    assert coefficients.probe == FirstBlocks(depth) and coefficients.sites == Evaluation()
    plain = pipe(["b"], generator=[torch.Generator().manual_seed(77)], **options)
    drawn = {}
    for name, approximator in (("head", coefficients.approximator()), ("line", Extrapolate())):
        config = Config(Interval(3), ClosedLoop(), (approximator,), coefficients.probe)
        with dicache.enable(pipe, config=config) as cache:
            drawn[name] = pipe(["b"], generator=[torch.Generator().manual_seed(77)], **options)
    assert strips(cache)[0].count("#") <= 5
    errors = {name: (x - plain).norm() / plain.norm() for name, x in drawn.items()}
    assert errors["head"] < 1e-4 and errors["head"] < 0.1 * errors["line"]


def test_the_map_is_the_ridge_of_what_lines_missed_on_recorded_runs():
    """Against the normal equations, summed by hand over two lines."""
    torch.manual_seed(3)
    pairs = [Pair(8, gap, *(torch.randn(2, B, 5, OUT)), *(torch.randn(2, B, 5, X))) for gap in (1, 2)]
    sums = Innovations(0.01, 2, len(SIGMAS))
    for pair in pairs:
        sums.add(pair)
    dp = torch.cat([(p.input_after - p.input_before).flatten(0, 1) for p in pairs]).double()
    dv = torch.cat([(p.after - p.before).flatten(0, 1) for p in pairs]).double()
    gram = dp.T @ dp
    expected = torch.linalg.solve(gram + 0.01 * gram.diagonal().mean() * torch.eye(X), dp.T @ dv)
    weight, band = sums.solved()["weight"], 8 * BANDS // len(SIGMAS)
    torch.testing.assert_close(weight[band].double(), expected, rtol=1e-5, atol=1e-6)
    assert not weight[(band + 1) % BANDS].any() and N == len(SIGMAS)


def test_what_has_other_tokens_or_no_probe_is_refused():
    values, seen = torch.randn(2, B, 5, OUT), torch.randn(2, B, 5, X)
    approximator, histories = head(torch.randn(BANDS, X, OUT)), past(values, seen, (3, 4))
    for feature in (None, torch.randn(B, 7, X), torch.randn(B, X)):
        with pytest.raises(UnsupportedModelError, match="FirstBlocks"):
            approximator.guess(histories, Target(SIGMAS[5], feature))
    with pytest.raises(FittedError, match="channels"):
        approximator.guess(histories, Target(SIGMAS[5], torch.randn(B, 5, X + 1)))
    with pytest.raises(ModeError, match="depth"):
        fitted("innovation", depth=0)
    assert fitted("innovation", depth=1).about.sites == {"name": "Evaluation"} and STEPS == 6
