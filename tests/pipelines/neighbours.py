"""What a pipeline may have beside dicache (offload, LoRA, quantised weights, casting), and what is seen of it then."""

import warnings
from functools import cache as remember
from typing import Any

import accelerate
import torch
from diffusers.hooks import HookRegistry, apply_group_offloading
from diffusers.hooks.group_offloading import LazyPrefetchGroupOffloadingHook
from peft import LoraConfig, inject_adapter_in_model

import dicache
from pipelines.tiny import PIPELINES, Tiny

STEPS, BUDGET, GENERATIONS = 8, 0.5, (1, 2, 3)
EAGER = {"backend": "eager"}
FLUX, SD3, PIXART, WAN = (
    "two streams and one (flux)",
    "two streams, batched guidance (sd3)",
    "one stream, batched guidance, learned variance (pixart)",
    "one stream, sequential guidance, video (wan)",
)
SHAPES = (FLUX, PIXART, WAN)
ORDERS = ("before dicache", "after dicache")


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe: Any) -> None:
    """As `enable_sequential_cpu_offload` does, but for its device "cpu:0", which accelerate does not take for the CPU
    that the weights are on.
    """
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            accelerate.cpu_offload(module, torch.device("cpu"), offload_buffers=len(module._parameters) > 0)


def group_offload(pipe: Any, blocks: int = 1) -> None:
    options = {"offload_type": "block_level", "num_blocks_per_group": blocks}
    apply_group_offloading(pipe.transformer, onload_device="cpu", offload_device="cpu", **options)


def group_offload_two(pipe: Any) -> None:
    group_offload(pipe, 2)


def group_offload_leaves(pipe: Any) -> None:
    apply_group_offloading(pipe.transformer, onload_device="cpu", offload_device="cpu", offload_type="leaf_level")


def group_offload_that_learns(pipe: Any) -> None:
    """As with streams, which the CPU has not: hooks on the blocks learn their order, and go after the first call."""
    group_offload(pipe)
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    registry.register_hook(LazyPrefetchGroupOffloadingHook(), "lazy_prefetch_group_offloading")


def lora(pipe: Any, *targets: str) -> None:
    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=list(targets or ("to_q", "to_k", "to_v")), init_lora_weights=False)
    inject_adapter_in_model(config, pipe.transformer)


def fused_lora(pipe: Any) -> None:
    lora(pipe)
    for layer in lora_layers(pipe.transformer):
        layer.merge()


def int8_weights(pipe: Any) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    with warnings.catch_warnings(action="ignore"):
        quantize_(pipe.transformer, Int8WeightOnlyConfig())


def layerwise_casting(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


NEIGHBOURS = (
    model_offload,
    sequential_offload,
    group_offload,
    group_offload_two,
    group_offload_leaves,
    group_offload_that_learns,
    lora,
    fused_lora,
    int8_weights,
    layerwise_casting,
)


def lora_layers(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "merged_adapters")]


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(tiny: Tiny, pipe: Any, sample: int) -> torch.Tensor:
    return tiny.draw(quiet(pipe), [sample], STEPS)


@remember
def plainly(name: str, neighbour: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """What a pipeline with this neighbour draws without dicache, and what can then be seen of its modules."""
    tiny = PIPELINES[name]
    pipe = tiny.make()
    neighbour(pipe)
    drawn = [draw(tiny, pipe, sample) for sample in GENERATIONS]
    return drawn, traces(pipe.transformer)


def traces(model: torch.nn.Module) -> dict[str, Any]:
    """The attributes of every module, its hooks, and whose calls still come by something of dicache's. (Diffusers puts
    an empty registry where it names a branch.)
    """
    ours = [path for path, m in model.named_modules() if _reaches_dicache([m.forward, vars(m).get("_old_forward")])]
    registries = {path: vars(module).get("_diffusers_hook") for path, module in model.named_modules()}
    hooks = {path: list(registry.hooks) for path, registry in registries.items() if registry and registry.hooks}
    seen = {path: sorted({*vars(m)} - {"_diffusers_hook"}) for path, m in model.named_modules()}
    return seen | {"hooks": hooks, "ours": ours}


def _reaches_dicache(functions: list[Any]) -> bool:
    """Whether anything of dicache's is called through these: looked for in what they close over and belong to."""
    waiting, seen = list(functions), set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen or one is None or isinstance(one, torch.nn.Module):
            continue
        seen.add(id(one))
        if (getattr(one, "__module__", None) or "").startswith("dicache"):
            return True
        waiting += [getattr(one, name, None) for name in ("func", "__self__", "forward", "original_forward")]
        waiting += [cell.cell_contents for cell in getattr(one, "__closure__", None) or ()]
    return False


def enabled(tiny: Tiny, neighbour: Any, order: str, **how: Any) -> tuple[Any, dicache.Cache]:
    pipe = tiny.make()
    if order == "before dicache":
        neighbour(pipe)
    cache = dicache.enable(pipe, **how)
    if order == "after dicache":
        neighbour(pipe)
    return pipe, cache
