"""A training that can be stopped at any moment: Muon for the blocks' matrices and convolutions, AdamW for the rest, and
a running average of the weights, which is what ships.

The rate rises over 100 updates, stays, and falls over the last 40 % of the samples.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from dicache.bench.models.scenes_unet import NOISE, SMOOTHED
from dicache.bench.models.training.muon import ConvolutionMuon
from dicache.files.atomic import replacing
from dicache.reference.scenes import Scene, scenes

BATCH = 32
SAVE_EVERY = 180.0
GAMMA = 5.0
EXCESS = 0.2


def noised(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures (B, 3, 32, 32) in [0, 1] with noise: x_t, eps, t (B,), and the weights of the loss (B, 1, 1, 1),

    x_t = a_t x_0 + s_t eps,    w_t = min(1, GAMMA s_t^2 / a_t^2)    (Hang et al. 2023, arXiv 2303.09556)

    and eps of a deviation of 1 + EXCESS |n|, n normal: what a small model's own errors add to a latent on its way is
    more noise than t stands for, and one that never saw such takes it for texture and leaves it there.
    """
    x0 = F.pixel_unshuffle(pictures * 2 - 1, 2)
    t, eps = torch.randint(0, NOISE["num_train_timesteps"], (len(x0),)), torch.randn_like(x0)
    eps = eps * (1 + EXCESS * torch.randn(len(x0), 1, 1, 1).abs())
    square = DDIMScheduler(**NOISE).alphas_cumprod[t][:, None, None, None]
    weight = (GAMMA * (1 - square) / square).clamp(max=1.0)
    return square.sqrt() * x0 + (1 - square).sqrt() * eps, eps, t, weight


def loss_of(error: Tensor, weight: Tensor) -> Tensor:
    """Of eps, (B, 12, 16, 16): the mean square at three scales, pixels, squares of 4 by 4, and the picture, each worth
    as much where the error is white,

    mean w (e^2 + 4^2 pooled_4(e)^2 + 16^2 pooled_16(e)^2)

    The best prediction is that of the first term alone. Without the others a background's colour, 1 / 256 of the first,
    wanders: what is predicted at much noise is multiplied by s_t / a_t, up to 64.
    """
    scales = [error, 4 * F.avg_pool2d(error, 4), 16 * F.avg_pool2d(error, 16)]
    return torch.stack([(weight * scale.square()).mean() for scale in scales]).sum()


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes it: what a block multiplies with, and no projection that begins at zero or holds times."""
    return parameter.ndim > 1 and "block" in name and "time_emb_proj" not in name and ".controlnet_" not in name


class Trainer:
    """Of some modules by their names, all float32. Text encoders learn at a third of the rate."""

    seen: int
    batch: int
    clipped: list[nn.Parameter]
    masters: list[nn.Parameter]
    average: list[Tensor]

    def __init__(self, modules: dict[str, nn.Module], *, batch: int = BATCH) -> None:
        named = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
        matrices = [p for n, p in named.items() if is_matrix(n, p)]
        text = [p for n, p in named.items() if n.startswith("text.")]
        rest = [p for n, p in named.items() if not is_matrix(n, p) and not n.startswith("text.")]
        self.seen, self.batch, self.clipped, self.masters = 0, batch, rest + text, list(named.values())
        self.average = [p.detach().clone() for p in self.masters]
        groups = [{"params": rest, "lr": 1.5e-3}, {"params": text, "lr": 5e-4}]
        self.optimizers: list[torch.optim.Optimizer] = [
            ConvolutionMuon(matrices, lr=2e-3),
            torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates: list[Any] = [group["lr"] for o in self.optimizers for group in o.param_groups]
        self.modules = modules
        smooth(modules)

    @torch.no_grad()
    def update(self, scale: float) -> None:
        """With the gradients of a batch, at `scale` of the full rate."""
        nn.utils.clip_grad_norm_(self.clipped, 1.0)
        for rate, group in zip(self.rates, (g for o in self.optimizers for g in o.param_groups), strict=True):
            group["lr"] = rate * scale
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        smooth(self.modules)
        self.seen += self.batch
        share = min(0.998, self.seen / (self.seen + 20 * self.batch))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.masters], 1 - share)

    def save(self, path: Path) -> None:
        state = {
            "seen": self.seen,
            "masters": [p.detach() for p in self.masters],
            "average": self.average,
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        with replacing(path) as part:
            torch.save(state, part)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.seen, self.average = state["seen"], state["average"]
        torch._foreach_copy_([p.detach() for p in self.masters], state["masters"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def averaged(path: Path, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules, filled with the running average of a checkpoint."""
    parameters = [p.detach() for module in modules.values() for p in module.parameters()]
    torch._foreach_copy_(parameters, torch.load(path, weights_only=True)["average"])
    smooth(modules)
    return modules


@torch.no_grad()
def smooth(modules: dict[str, nn.Module]) -> None:
    """Hold the fastest sines of times at zero, wherever a module reads times."""
    for name, parameter in ((n, p) for module in modules.values() for n, p in module.named_parameters()):
        if name == "time_embedding.linear_1.weight":
            parameter[:, SMOOTHED] = 0


def of_scenes(loss: Callable[[Sequence[Scene]], Tensor]) -> Callable[[int], Tensor]:
    """The loss of BATCH scenes, which are drawn as they are needed and never repeat; given how many were seen before,
    where the stream begins.
    """
    streams: list[Iterator[Scene]] = []

    def drawn(seen: int) -> Tensor:
        if not streams:
            streams.append(scenes("train", seed=2 + seen))
        return loss(list(itertools.islice(streams[0], BATCH)))

    return drawn


def train(trainer: Trainer, loss: Callable[[int], Tensor], samples: int, path: Path) -> None:
    """Up to `samples` in all, from the checkpoint at `path` if there is one. `loss` is that of a further batch, given
    how many samples were seen.
    """
    torch.set_flush_denormal(True)  # averages of gradients that fade take ten times as long below 1e-38
    if path.exists():
        trainer.load(path)
    torch.manual_seed(trainer.seen)
    start, first, saved, losses = time.monotonic(), trainer.seen, time.monotonic(), []
    while trainer.seen < samples:
        value = loss(trainer.seen)
        value.backward()
        rising = (trainer.seen + trainer.batch) / (100 * trainer.batch)
        trainer.update(min(1.0, rising, 2.5 * (1 - trainer.seen / samples)))
        losses.append(value.item())
        if len(losses) % 50 == 0:
            rate = (trainer.seen - first) / (time.monotonic() - start)
            print(f"{trainer.seen} samples, loss {sum(losses[-50:]) / 50:.4f}, {rate:.0f} samples/s", flush=True)
        if time.monotonic() - saved > SAVE_EVERY or trainer.seen >= samples:
            trainer.save(path)
            saved = time.monotonic()
