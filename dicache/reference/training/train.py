"""Trains the reference model: rectified flow on captioned scenes, resumable at any moment.

    x_s = (1 - s) x_0 + s n,    v = n - x_0,    loss = |v_theta(x_s, s, caption) - v|^2,    logit(s) ~ N(0.3, 1.2^2)

x_0 is the picture in [-1, 1], packed as FluxPipeline packs latents, (B, 64, 48); scenes are drawn as they are needed
and never repeat. One caption in ten is left empty, for guidance. Masters and the running average are float32, the
working copy is bfloat16 (the CPU's matrix units want it). Muon for the blocks' matrices, AdamW for the rest and the
text encoders. The learning rate rises over 100 steps, stays, and falls over the last third of `--samples`.

    python -m dicache.reference.training.train build/reference --samples 600000

starts or resumes; the weights go to `build/reference/last.pt` every few minutes.
"""

import argparse
import copy
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from dicache.files.atomic import replacing
from dicache.reference.denoiser import SMOOTHED, denoiser, positions
from dicache.reference.render import render
from dicache.reference.scenes import caption, scenes
from dicache.reference.text import sentence_encoder, tokenizer, word_encoder
from dicache.reference.training.fast import FastDenoiser
from dicache.reference.training.reading import teach

BATCH = 64
SAVE_EVERY = 240.0


@dataclass
class Model:
    """Float32 masters of everything that is trained."""

    transformer: FluxTransformer2DModel
    words: nn.Module
    sentence: nn.Module

    def modules(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, "words": self.words, "sentence": self.sentence}

    def parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules().values() for p in module.parameters()]


def fresh(warm_start: Path | None) -> Model:
    """An initialised model; its text encoders can already read."""
    torch.manual_seed(0)
    model = Model(denoiser(), word_encoder(), sentence_encoder())
    _initialise(model.transformer)
    if warm_start:
        state = {k.removeprefix("tr."): v.float() for k, v in load_file(warm_start).items() if k.startswith("tr.")}
        state = {k: v for k, v in state.items() if not k.startswith(("context_embedder", "time_text_embed.text"))}
        print("warm start; kept untrained:", model.transformer.load_state_dict(state, strict=False).missing_keys)
    rates = teach(model.words, model.sentence, tokenizer())
    print(f"reading: {rates[0]:.3f} of what the words say, {rates[1]:.3f} of the sentence", flush=True)
    return model


def _initialise(transformer: FluxTransformer2DModel) -> None:
    """Xavier everywhere; modulation and output start at zero, so that every block starts as the identity."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            zero = name == "proj_out" or name.endswith(
                ("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear")
            )
            nn.init.zeros_(module.weight) if zero else nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Trainer:
    model: Model
    seen: int
    average: list[Tensor]

    def __init__(self, model: Model, *, compiled: bool) -> None:
        self.model, self.seen = model, 0
        self.masters: list[nn.Parameter] = model.parameters()
        self.average = [p.detach().clone() for p in self.masters]
        self.work: FluxTransformer2DModel = copy.deepcopy(model.transformer).bfloat16()
        self.fast: FastDenoiser = FastDenoiser(self.work, positions(), compiled=compiled)
        self.tokenizer = tokenizer()
        named = dict(model.transformer.named_parameters())
        self.matrices: list[nn.Parameter] = [
            p for n, p in named.items() if p.ndim == 2 and "blocks" in n and ".norm" not in n
        ]
        rest = [p for p in named.values() if all(p is not m for m in self.matrices)]
        text = [p for module in (model.words, model.sentence) for p in module.parameters()]
        self.clipped: list[nn.Parameter] = rest + text
        groups = [{"params": rest, "lr": 1.5e-3}, {"params": text, "lr": 5e-4}]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(self.matrices, lr=2e-3, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates: list[Any] = [group["lr"] for o in self.optimizers for group in o.param_groups]

    def step(self, pictures: Tensor, captions: list[str], scale: float) -> float:
        """One update on (B, 3, 32, 32) pictures in [0, 1]; the loss."""
        ids = self.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        latents = F.pixel_unshuffle(pictures * 2 - 1, 2)
        x0 = FluxPipeline._pack_latents(latents, *latents.shape)
        sigma = torch.sigmoid(torch.randn(len(x0)) * 1.2 + 0.3)
        noise = torch.randn_like(x0)
        xs = torch.lerp(x0, noise, sigma[:, None, None])
        words, sentence = self.model.words(ids)[0], self.model.sentence(ids).pooler_output
        velocity = self.fast(xs.bfloat16(), words.bfloat16(), sentence.bfloat16(), sigma)
        loss = (velocity.float() - (noise - x0)).square().mean()
        loss.backward()
        self._update(scale)
        self.seen += len(x0)
        return loss.item()

    @torch.no_grad()
    def _update(self, scale: float) -> None:
        for master, work in zip(self.model.transformer.parameters(), self.work.parameters(), strict=True):
            master.grad, work.grad = work.grad.float(), None
        nn.utils.clip_grad_norm_(self.clipped, 1.0)
        for rate, group in zip(self.rates, (g for o in self.optimizers for g in o.param_groups), strict=True):
            group["lr"] = rate * scale
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.synchronise()
        torch._foreach_lerp_(
            self.average, [p.detach() for p in self.masters], 1 - min(0.999, (self.seen + 1) / (self.seen + 20 * BATCH))
        )

    @torch.no_grad()
    def synchronise(self) -> None:
        """Smooth the masters' time embedding and copy them into the working copy."""
        self.model.transformer.time_text_embed.timestep_embedder.linear_1.weight[:, SMOOTHED] = 0
        torch._foreach_copy_(list(self.work.parameters()), list(self.model.transformer.parameters()))

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
        self.synchronise()


def averaged(path: Path) -> Model:
    """The running average in a checkpoint, as a model: what is shipped."""
    model = Model(denoiser(), word_encoder(), sentence_encoder())
    with torch.no_grad():
        torch._foreach_copy_([p.detach() for p in model.parameters()], torch.load(path, weights_only=True)["average"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the reference model; resumes where it stopped.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=600_000)
    parser.add_argument(
        "--warm-start", type=Path, help="safetensors with a denoiser of the same shape under the prefix 'tr.'"
    )
    parser.add_argument("--eager", action="store_true", help="do not compile")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "last.pt"
    model = Model(denoiser(), word_encoder(), sentence_encoder()) if path.exists() else fresh(args.warm_start)
    trainer = Trainer(model, compiled=not args.eager)
    trainer.synchronise()
    if path.exists():
        trainer.load(path)
    torch.manual_seed(trainer.seen)
    _run(trainer, args.samples, path)


def _run(trainer: Trainer, samples: int, path: Path) -> None:
    stream = scenes("train", seed=2 + trainer.seen)
    start, first, saved, losses = time.monotonic(), trainer.seen, time.monotonic(), []
    while trainer.seen < samples:
        drawn = list(itertools.islice(stream, BATCH))
        captions = ["" if torch.rand(()) < 0.1 else caption(scene) for scene in drawn]
        scale = min(1.0, (trainer.seen + BATCH) / (100 * BATCH), 3 * (1 - trainer.seen / samples))
        losses.append(trainer.step(render(drawn), captions, scale))
        if len(losses) % 50 == 0:
            rate = (trainer.seen - first) / (time.monotonic() - start)
            print(f"{trainer.seen} samples, loss {sum(losses[-50:]) / 50:.4f}, {rate:.0f} samples/s", flush=True)
        if time.monotonic() - saved > SAVE_EVERY or trainer.seen >= samples:
            trainer.save(path)
            saved = time.monotonic()


if __name__ == "__main__":
    main()
