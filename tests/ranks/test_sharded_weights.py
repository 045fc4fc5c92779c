"""FSDP2: blocks that are skipped are not gathered, and what is drawn is what one process draws."""

import torch
import torch.distributed as dist
from ranks.processes import SAMPLES, run
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_param_group

import dicache
from pipelines import tiny

STEPS = 10


def draw(pipe):
    with torch.no_grad():
        return tiny.draw_flux(pipe, SAMPLES, STEPS)


def shard(pipe):
    mesh = init_device_mesh("cpu", (2,))
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    for module in (*blocks, pipe.transformer):
        fully_shard(module, mesh=mesh)
    return blocks


def count_gathers(rank):
    gathers, real = [0], _fsdp_param_group.foreach_all_gather

    def counting(*args, **kwargs):
        gathers[0] += 1
        return real(*args, **kwargs)

    def counted(act, pipe):
        before = gathers[0]
        return act(pipe), gathers[0] - before

    _fsdp_param_group.foreach_all_gather = counting
    pipe = tiny.make_flux()
    pipe.set_progress_bar_config(disable=True)
    blocks = shard(pipe)
    report = {"uncached": counted(draw, pipe), "blocks": len(blocks)}
    hooks = [(dict(block._forward_pre_hooks), dict(block._forward_hooks)) for block in blocks]
    for order in ("dicache after", "dicache before"):
        if order == "dicache before":
            pipe = tiny.make_flux()
            pipe.set_progress_bar_config(disable=True)
        with dicache.enable(pipe, error_budget=0.1, ranks=dist.group.WORLD) as cache:
            if order == "dicache before":
                shard(pipe)
            report[order] = counted(draw, pipe)
            actions = [sample["actions"] for sample in cache.report().to_dict()["samples"]]
        report[f"actions, {order}"] = actions
        if order == "dicache after":
            report["restored"] = hooks == [(dict(b._forward_pre_hooks), dict(b._forward_hooks)) for b in blocks]
    report["again"] = counted(draw, pipe)
    return report


def test_skipped_blocks_are_not_gathered(tmp_path):
    ranks = run(count_gathers, tmp_path)
    one = tiny.make_flux()
    with dicache.enable(one, error_budget=0.1) as cache:
        latents = draw(one)
        actions = [sample["actions"] for sample in cache.report().to_dict()["samples"]]
    computed = sum(any(sample[step] == ["compute"] for sample in actions) for step in range(STEPS))
    for rank in ranks:
        assert rank["uncached"][1] >= rank["blocks"] * STEPS and rank["restored"]
        for order in ("dicache after", "dicache before"):
            assert rank[f"actions, {order}"] == actions
            assert torch.equal(rank[order][0], latents)
            assert rank[order][1] <= 1.05 * rank["blocks"] * computed + 1  # the root, once
        assert torch.equal(rank["again"][0], draw(tiny.make_flux()))
