"""What a memory of how hard prompts are is worth: `python -m dicache.bench.studies.prompt_memory [--captions N]`

Test captions of the reference model, 28 steps, guidance 3.5, `speedup=2`, batches of 16. Every caption is drawn once
with an audit, which the memory learns from; then with other noise uncached, without a memory, and with it. With
`--unseen` the memory learns from as many other captions, and has seen none of those that are drawn.

Printed and written are mean, median and 90th percentile of the errors over those without, and the work of both. A batch
at a time is written; the same command goes on where it was.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from rich.console import Console
from torch import Tensor

from dicache.api import enable
from dicache.bench.harness.store import RESULTS
from dicache.bench.models.reference import Setting, fresh
from dicache.files.atomic import write_text
from dicache.memory.store import Memory
from dicache.promise.metrics import relative_error
from dicache.reference.scenes import prompts

RESULT = RESULTS / "prompt-memory.json"
SPEEDUP, BATCH, CAPTION_SEED = 2.0, 16, 50
LEARNING, DRAWN = 20_000, 70_000
"""Seeds of the noise."""
Numbers = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description="What is a memory of prompts worth?")
    parser.add_argument("--captions", type=int, default=256)
    parser.add_argument("--unseen", action="store_true", help="the memory learns from other captions")
    parser.add_argument("--json", type=Path, default=RESULT)
    args = parser.parse_args()
    kind = "unseen" if args.unseen else "seen"
    lines: dict[str, Numbers] = json.loads(args.json.read_text()) if args.json.exists() else {}
    captions = prompts("test", 2 * args.captions, seed=CAPTION_SEED)
    drawn = captions[: args.captions]
    teaching = captions[args.captions :] if args.unseen else drawn
    with TemporaryDirectory() as folder:
        draw_due(lines, kind, teaching, drawn, Memory(Path(folder) / "prompts.sqlite"), args.json)
    Console(width=120).print(ratios_of(kind, lines[kind]), highlight=False)


def draw_due(
    lines: dict[str, Numbers], kind: str, teaching: Sequence[str], drawn: Sequence[str], memory: Memory, path: Path
) -> None:
    """Adds what is missing to `lines`, and writes them after every batch. What the memory learns it learns anew."""
    setting = Setting(batch=BATCH)
    pipe = fresh(setting)
    numbers = lines.setdefault(kind, {key: [] for key in ("without", "with", "work without", "work with")})
    due = [some for some in _batches(len(drawn)) if some[-1] >= len(numbers["with"])]
    if not due:
        return
    for some in _batches(len(teaching)):
        with enable(pipe, speedup=SPEEDUP, memory=memory, audit=1.0):
            _draw(pipe, setting, [teaching[i] for i in some], [LEARNING + i for i in some])
    for some in due:
        captions, seeds = [drawn[i] for i in some], [DRAWN + i for i in some]
        exact = _draw(pipe, setting, captions, seeds)
        for name, store in {"without": None, "with": memory}.items():
            with enable(pipe, speedup=SPEEDUP, memory=store) as cache:
                latents = _draw(pipe, setting, captions, seeds)
            samples = cache.report().to_dict()["samples"]
            numbers[name][some[0] :] = [round(error, 5) for error in relative_error(latents, exact).tolist()]
            numbers[f"work {name}"][some[0] :] = [round(sample["computed_fraction"], 4) for sample in samples]
        write_text(path, json.dumps(lines, indent=1) + "\n")


def ratios_of(kind: str, numbers: Numbers) -> str:
    """One sentence."""
    alone, helped = (np.array(numbers[name]) for name in ("without", "with"))
    ratios: dict[str, Any] = {
        "mean": helped.mean() / alone.mean(),
        "median": np.median(helped) / np.median(alone),
        "90th percentile": np.quantile(helped, 0.9) / np.quantile(alone, 0.9),
    }
    shares = ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
    work = [float(np.mean(numbers[f"work {name}"])) for name in ("without", "with")]
    return (
        f"{len(alone)} captions, {kind} by the memory: errors with it over those without: {shares}; "
        f"work {work[1]:.4f}, without {work[0]:.4f}."
    )


def _batches(n: int) -> list[range]:
    return [range(k, min(k + BATCH, n)) for k in range(0, n, BATCH)]


def _draw(pipe: FluxPipeline, setting: Setting, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """The final latents."""
    with torch.no_grad():
        latents: Tensor = pipe(
            list(captions),
            negative_prompt=[""] * len(captions),
            true_cfg_scale=setting.guidance,
            num_inference_steps=setting.steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        ).images
    return latents


if __name__ == "__main__":
    main()
