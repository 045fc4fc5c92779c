"""Four defects of caches, shown on the peers and looked for in dicache. `python -m dicache.bench.studies.peer_defects`

    shared batches   a sample drawn beside others is not the sample drawn alone
    leaked state     a second request is not the request made on a fresh model
    parity           guidance is off, but branches are told apart by whether a call's number is even or odd
    blocks in place  the cache looks at a tensor that was overwritten; in cache-dit 0 / 0 is NaN, and it never skips

Every experiment runs on a peer and on dicache alike: tiny denoisers with random weights, a loop of Euler steps written
out by hand, and a record of the steps at which the last block ran. What is printed was measured in this call.
"""

import argparse
import json
import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from io import StringIO
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig, WanTransformer3DModel
from diffusers.models.cache_utils import CacheMixin
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from dicache.api import enable
from dicache.bench.studies.hook_cost import Stack
from dicache.files.atomic import write_text
from dicache.promise.metrics import relative_error

STEPS, BATCH, BUDGET = 20, [0, 1, 2, 3], 0.1
ROUNDING = 1e-4  # relative L2 by which one model may differ between two batch sizes


@dataclass(frozen=True)
class Finding:
    defect: str
    peer: str
    peer_did: str
    dicache_did: str
    peer_has_it: bool
    dicache_has_it: bool


def numbers(samples: list[int], salt: int, *shape: int) -> Tensor:
    """(B, *shape), every row fixed by its sample."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(100 * salt + s)) for s in samples])


def lively(model: nn.Module) -> nn.Module:
    """Weights so large that outputs differ between samples and steps, the same every time."""
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, float(p.ndim == 1), std=0.02 if p.ndim == 1 else 0.6 / p[0].numel() ** 0.5)
    return model.eval()


def wan() -> nn.Module:
    widths = {"attention_head_dim": 12, "text_dim": 32, "freq_dim": 32, "ffn_dim": 64}
    return lively(WanTransformer3DModel(num_attention_heads=2, num_layers=4, in_channels=4, out_channels=4, **widths))


class Plain(Stack, CacheMixin):
    """Called like the other. It reads no text."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool, **_: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (super().forward(hidden_states, timestep / 1000),)


@dataclass
class System:
    """A cache on one model; this one is diffusers' own. What a cache cannot tell stays as it is here."""

    name: str
    config: Any = None

    def attach(self, model: Any) -> None:  # noqa: ANN401
        model.enable_cache(self.config)

    def strips(self, watched: str, samples: int) -> list[str]:
        """The steps of every sample, # where it was computed; `watched` is when the last block ran."""
        return [watched] * samples

    def remark(self) -> str:
        """What the cache itself counted."""
        return "it keeps no count"

    def warned(self) -> int:
        """How often it said that something keeps it from engaging."""
        return 0


class Dicache(System):
    def attach(self, model: nn.Module) -> None:
        self.cache = enable(model, error_budget=BUDGET)

    def strips(self, watched: str, samples: int) -> list[str]:
        return [self.cache.report().strip(i) for i in range(samples)]

    def remark(self) -> str:
        return f"its own count is {len(self.cache.report().to_dict()['steps'])} steps of the last request"

    def warned(self) -> int:
        return sum("never engaged" in warning for warning in self.cache.report().warnings)


class CacheDit(System):
    """`config` is what it is told beside the number of blocks that decide; its warnings are kept, not printed."""

    summary: Callable[[], Any]
    heard: BufferingHandler

    def attach(self, model: nn.Module) -> None:
        with redirect_stdout(StringIO()):
            cache_dit = import_module("cache_dit")
        config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=3, **self.config)
        pattern = cache_dit.ForwardPattern.Pattern_3
        adapter = partial(cache_dit.BlockAdapter, None, model, forward_pattern=pattern)
        cache_dit.enable_cache(adapter(model.blocks) if isinstance(model, Plain) else model, cache_config=config)
        self.summary = lambda: cache_dit.summary(model, logging=False)[-1]
        self.heard = BufferingHandler(10_000)
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("cache_dit")]:
            logging.getLogger(name).addHandler(self.heard)

    def remark(self) -> str:
        stats = self.summary()
        diffs = torch.tensor([float(diff) for diff in stats.residual_diffs.values()])
        nans, counted = int(diffs.isnan().sum()), stats.accumulated_executed_steps
        return f"its own count is {counted} steps, and {nans} of its {len(diffs)} differences are NaN"

    def warned(self) -> int:
        return sum(record.levelno >= logging.WARNING for record in self.heard.buffer)


class Rig:
    """A model with a cache on it."""

    model: Any
    system: System

    def __init__(self, model: Any, system: System) -> None:  # noqa: ANN401
        self.model, self.system = model, system
        system.attach(model)
        self.ran: list[int] = []
        first = next(module for module in model.blocks[-1].modules() if isinstance(module, nn.Linear))
        first.register_forward_hook(lambda *_: self.ran.append(1))

    @torch.no_grad()
    def draw(self, samples: list[int]) -> tuple[Tensor, list[str]]:
        """One request, a loop of Euler steps with nothing reset before or after: latents and strips."""
        x, texts, watched = numbers(samples, 0, 4, 1, 8, 8), numbers(samples, 1, 8, 32), ""
        for i in range(STEPS):
            conditions = {
                "timestep": torch.full((len(samples),), 1000 * (1 - i / STEPS)),
                "encoder_hidden_states": texts,
            }
            self.ran.clear()
            with self.model.cache_context("cond"):
                x = x - self.model(hidden_states=x, return_dict=False, **conditions)[0] / STEPS
            watched += "#" if self.ran else "="
        return x, self.system.strips(watched, len(samples))


Make = Callable[[], System]


def compared(defect: str, peer: System, experiment: Callable[[Make], tuple[str, bool]]) -> Finding:
    ours, ours_has_it = experiment(lambda: Dicache("dicache"))
    try:
        theirs, has_it = experiment(lambda: replace(peer))
    except ModuleNotFoundError as missing:
        theirs, has_it = f"not measured: {missing}", False
    return Finding(defect, peer.name, theirs, ours, has_it, ours_has_it)


def shared_batches(peer: System) -> Finding:
    """Every sample alone, and all in one batch."""

    def experiment(make: Make) -> tuple[str, bool]:
        together, strips = Rig(wan(), make()).draw(BATCH)
        alone = [Rig(wan(), make()).draw([sample]) for sample in BATCH]
        error = relative_error(together, torch.cat([latents for latents, _ in alone])).max().item()
        pairs = zip([strip for _, (strip,) in alone], strips, strict=True)
        changed = [f"; for example {one} alone, {other} beside others" for one, other in pairs if one != other]
        did = f"{len(changed)} of {len(BATCH)} samples changed their steps; outputs moved by up to {error:.1e}"
        return did + "".join(changed[:1]), bool(changed) or error > ROUNDING

    return compared("shared batches", peer, experiment)


def leaked_state(peer: System, defect: str = "leaked state") -> Finding:
    """A request after another one, and the same request on a fresh model."""

    def experiment(make: Make) -> tuple[str, bool]:
        used = Rig(wan(), make())
        used.draw([0])
        (second, (strip,)), (fresh, (other,)) = used.draw([1]), Rig(wan(), make()).draw([1])
        did = f"second request {strip}, fresh {other}, off by {relative_error(second, fresh).item():.1e}"
        return f"{did}; {used.system.remark()}", not torch.equal(second, fresh)

    return compared(defect, peer, experiment)


def parity_of_branches(peer: System) -> Finding:
    return leaked_state(peer, "parity, guidance off")


def blocks_in_place(peer: System) -> Finding:
    """The same function, with blocks that work in place and with blocks that do not: the steps should be the same."""

    def experiment(make: Make) -> tuple[str, bool]:
        rig = Rig(lively(Plain(8, 5, in_place=True)), make())
        (_, (strip,)), warned = rig.draw([0]), rig.system.warned()
        _, (other,) = Rig(lively(Plain(8, 5, in_place=False)), make()).draw([0])
        return (
            f"in place {strip}, else {other}, {warned} warnings; {rig.system.remark()}",
            strip != other and not warned,
        )

    return compared("blocks in place, NaN", peer, experiment)


def findings() -> list[Callable[[], Finding]]:
    usual = {"residual_diff_threshold": 0.1, "num_inference_steps": STEPS}
    one_branch = usual | {"enable_separate_cfg": False}
    taylor = TaylorSeerCacheConfig(4, 4, cache_identifiers=[r"blocks\.\d+\.attn\d"])
    dit = "cache-dit DBCache"
    return [
        lambda: shared_batches(CacheDit(dit, one_branch)),
        lambda: shared_batches(System("diffusers FirstBlockCache", FirstBlockCacheConfig(threshold=0.1))),
        lambda: leaked_state(CacheDit(dit, one_branch | {"num_inference_steps": None})),
        lambda: leaked_state(System("diffusers TaylorSeer", taylor)),
        lambda: parity_of_branches(CacheDit(dit, usual)),
        lambda: blocks_in_place(CacheDit(dit, usual)),
    ]


def table(results: list[Finding]) -> Table:
    columns = ("defect", "peer", "what the peer did", "what dicache did")
    drawn = Table(*columns, title=f"Is the defect there? {STEPS} steps; # is a computed step", show_lines=True)
    for one in results:
        cells = ((one.peer_has_it, one.peer_did), (one.dicache_has_it, one.dicache_did))
        drawn.add_row(one.defect, one.peer, *[f"{'yes' if has else 'no'}: {did}" for has, did in cells])
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description="Four defects of caches, on the peers and on dicache.")
    parser.add_argument("--json", type=Path, help="write the findings here too")
    args = parser.parse_args()
    results = [find() for find in track(findings(), "measuring", console=Console(stderr=True))]
    Console().print(table(results))
    if args.json:
        write_text(args.json, json.dumps([asdict(one) for one in results], indent=1))
    raise SystemExit(any(one.dicache_has_it for one in results))


if __name__ == "__main__":
    main()
