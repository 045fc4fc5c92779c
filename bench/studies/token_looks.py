"""What does a look at some tokens of a feed-forward tell? `python -m dicache.bench.studies.token_looks [--captions N]`

Every feed-forward of the reference model along uncached runs, its value of the step before held: the squared error that
`dicache.measuring.token_looks` estimates from k tokens, against the true one. Beside it what an estimator knows without
looking: that the error is what it was a step before.
"""

import argparse

import torch
from rich.console import Console
from torch import Tensor, nn

from dicache.bench.models.reference import Setting, draw, fresh
from dicache.measuring.token_looks import look, squares
from dicache.reference import prompts

COUNTS = (4, 8, 16, 32)


class Watched:
    """The feed-forward of one block: what it was called with, and gave, at the step before."""

    def __init__(self, feed_forward: nn.Module) -> None:
        self.feed_forward, self.before = feed_forward, dict[str, tuple[Tensor, Tensor, Tensor]]()
        self.rows: list[Tensor] = []
        """True S, S of the step before, and the looks, over the size of the value, (R, 2 + len(COUNTS))."""
        self.calls = 0

    def __call__(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        (x,), branch = args, ("positive", "negative")[self.calls % 2]
        self.calls += 1
        size, truth = squares(output, torch.zeros_like(output)).sum(1), torch.zeros(0)
        if branch in self.before:
            x_0, v, last = self.before[branch]
            truth = squares(output, v).sum(1)
            looks = [look(self.feed_forward.forward, x, x_0, v, k) for k in COUNTS]
            if len(last):
                self.rows.append(torch.stack([truth, last, *looks], dim=1) / size[:, None])
        self.before[branch] = x.clone(), output.clone(), truth


def main() -> None:
    parser = argparse.ArgumentParser(description="What does a look at some tokens of a feed-forward tell?")
    parser.add_argument("--captions", type=int, default=4)
    args = parser.parse_args()
    setting, console = Setting(batch=args.captions), Console(width=160)
    pipe = fresh(setting)
    torch.manual_seed(0)
    watched = [Watched(block.ff) for block in pipe.transformer.transformer_blocks]
    handles = [each.feed_forward.register_forward_hook(each) for each in watched]
    draw(pipe, prompts("calibration", args.captions, seed=77), setting)
    for handle in handles:
        handle.remove()
    truth, last, *looks = torch.cat([row for each in watched for row in each.rows]).unbind(1)
    console.print(f"{len(truth)} feed-forwards, relative error {truth.sqrt().median():.3f} in the middle")
    for name, estimate in [("as a step before", last), *zip([f"{k} tokens" for k in COUNTS], looks, strict=True)]:
        off = (estimate / truth).log().abs() / 2
        bias = float(estimate.sum() / truth.sum())
        console.print(f"{name}: off by {off.median():.3f} in the middle, sum {bias:.3f} of the true one")


if __name__ == "__main__":
    main()
