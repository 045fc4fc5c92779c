"""Fitting TokenCache's predictor (`dicache.token_choice.by_score`): which tokens a guess will be furthest off at.

Every second step of some runs computes, and shows for every token n what went in, x_n, and what the guess was off by,
e_n. Within each sample and step, both as differences from their means over the tokens,

    w = argmin sum (log e_n - w . x_n)^2 + r |w|^2
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dicache.api import enable
from dicache.config import Config
from dicache.controllers.interval import Interval
from dicache.errors import ModeError
from dicache.estimators.closed_loop import ClosedLoop
from dicache.measuring.prompt_runs import Drawer, Prompt
from dicache.sites import Tokens
from dicache.token_choice.base import SeenTokens, TokenChoice
from dicache.token_choice.by_score import TokenScore

RIDGE = 1e-3
"""r, of the mean variance of a channel."""


class ErrorMoments(TokenChoice):
    """Runs no token, and adds up what the regression needs."""

    reads_entering = True

    def __init__(self) -> None:
        self.squares: Tensor | None = None
        """sum x x^T, (C, C)."""
        self.products: Tensor | None = None
        """sum x log e, (C,)."""

    def choose(self, seen: SeenTokens, state: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        tokens = seen.entering_before
        fresh = ((seen.waited == 1) & (seen.errors > 0)).all(1)
        if tokens is not None and bool(fresh.any()):
            x, y = tokens[fresh].double(), seen.errors[fresh].double().log()
            x, y = (x - x.mean(1, keepdim=True)).flatten(0, 1), (y - y.mean(1, keepdim=True)).flatten()
            squares, products = x.T @ x, x.T @ y
            self.squares = squares if self.squares is None else self.squares + squares
            self.products = products if self.products is None else self.products + products
        return torch.zeros_like(seen.errors, dtype=torch.bool), state


def fit_token_score(
    pipe: Any,  # noqa: ANN401
    prompts: Sequence[Prompt],
    *,
    steps: int,
    share: float = 0.25,
    seed: int = 0,
    batch: int = 8,
    **call: Any,  # noqa: ANN401
) -> TokenScore:
    """The score of a pipeline's model, fitted on `prompts`, with any further arguments of the pipeline's call. Raises
    ModeError where the runs show no error of a token.
    """
    moments, drawer = ErrorMoments(), Drawer(pipe, prompts, steps, seed, call, images=False)
    with enable(pipe, config=Config(Interval(2), ClosedLoop(), sites=Tokens(moments))):
        for begin in range(0, len(prompts), batch):
            drawer.draw(range(begin, min(begin + batch, len(prompts))))
    if moments.squares is None or moments.products is None:
        raise ModeError(f"no run of {steps} steps showed what a guess is off by. Expected more steps, or a prompt.")
    ridge = RIDGE * moments.squares.diagonal().mean() * torch.eye(len(moments.products), device=moments.squares.device)
    weights = torch.linalg.solve(moments.squares + ridge, moments.products)
    return TokenScore(weights.float().cpu(), share)
