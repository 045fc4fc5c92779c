"""What is seen of a cache and of a model from outside: decisions, work that was executed, histories, attributes."""

from typing import Any

import torch

import dicache
from dicache.tensors.mac_meter import MacCounter


def strips(cache: dicache.Cache) -> list[str]:
    report = cache.report()
    return [report.strip(i) for i in range(len(report.to_dict()["samples"]))]


def snapshot(module: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """What can be seen of every module: its attributes, with containers copied."""
    frozen = {}
    for path, part in module.named_modules():
        frozen[path] = {name: dict(value) if isinstance(value, dict) else value for name, value in vars(part).items()}
    return frozen


def untouched(pipe) -> bool:
    """No hook of anyone, and no wrapped forward. (Diffusers itself puts an empty registry on the denoiser when it names
    a branch.)
    """
    registries = [vars(m).get("_diffusers_hook") for m in pipe.transformer.modules()]
    return not any(r and r.hooks for r in registries) and all(
        "forward" not in vars(m) and not m._forward_hooks for m in pipe.transformer.modules()
    )


def count_macs(transformer: torch.nn.Module) -> list[float]:
    """What every call executes from now on, appended call by call."""
    inner, macs = transformer.forward, list[float]()

    def counting(*args: Any, **kwargs: Any) -> Any:
        with MacCounter() as counter:
            output = inner(*args, **kwargs)
        macs.append(counter.total)
        return output

    transformer.forward = counting
    return macs


def watch_histories(transformer: torch.nn.Module, session: Any) -> list[dict[str, Any]]:
    """What every site remembers after the latest call, by branch, in the order of sites: a run that is over keeps
    nothing.
    """
    latest: list[dict[str, Any]] = []

    def after(*_: Any) -> None:
        latest[:] = [dict(state.histories) for state in session.run.states]

    transformer.register_forward_hook(after)
    return latest
