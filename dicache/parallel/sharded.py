"""Weights that lie on several ranks (FSDP2, `torch.distributed.fsdp.fully_shard`): a block that is skipped is not
gathered.

FSDP gathers a module's weights in a hook before its call, and dicache decides within the call. So while it is on, the
two hooks of a block do nothing where they are, and what they would do is done around the block's own forward, which a
skipped block never reaches:

    gather, [forward or guess], free        becomes        [gather, forward, free or guess]

Ranks must skip the same blocks, or one waits for the others in a gather: so this is done only where the weights lie on
ranks that compute the same samples (`dicache.parallel.ranks`). Where each has samples of its own, blocks are gathered
for every call as before.
"""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from dicache.ranks.group import Group

Forward = Callable[..., Any]


class Sharded:
    """One block's hooks, out of their place until `undo`."""

    module: Any
    gather: Any
    free: Any

    def __init__(self, module: Any) -> None:  # noqa: ANN401  # FSDPModule is typed as no module
        state = module._get_fsdp_state()
        self.positions: tuple[tuple[Any, Any], tuple[Any, Any]] = (
            (module._forward_pre_hooks, state._pre_forward_hook_handle.id),
            (module._forward_hooks, state._post_forward_hook_handle.id),
        )
        self.module, (self.gather, self.free) = module, [hooks[number] for hooks, number in self.positions]
        for hooks, number in self.positions:
            hooks[number] = _nothing

    def around(self, forward: Forward) -> Forward:
        """`forward`, with the weights that it needs."""

        def with_weights(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            args, kwargs = self.gather(self.module, args, kwargs)
            return self.free(self.module, args, forward(*args, **kwargs))

        return with_weights

    def undo(self) -> None:
        for (hooks, number), hook in zip(self.positions, (self.gather, self.free), strict=True):
            if number in hooks:
                hooks[number] = hook


def is_sharded(module: nn.Module, group: Group) -> bool:
    """Whether its weights are gathered for its call, from ranks of the group alone, and not those of several modules
    together.
    """
    if not isinstance(module, FSDPModule) or len(module._get_fsdp_state()._modules) > 1:
        return False
    ranks = set(dist.get_process_group_ranks(group.process_group))
    meshes = [parameter.device_mesh for parameter in module.parameters() if isinstance(parameter, DTensor)]
    return bool(meshes) and all(ranks.issuperset(mesh.mesh.flatten().tolist()) for mesh in meshes)


def _nothing(*_: Any) -> None:  # noqa: ANN401
    """In a hook's place: changes nothing."""
