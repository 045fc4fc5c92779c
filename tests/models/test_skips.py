"""The skip connections of a UNet: which spans are closed under them, and what lies inside of them."""

import pytest
import torch
from torch import nn

from dicache.errors import ModeError, UnsupportedModelError
from dicache.models.families import FAMILIES
from dicache.models.find_blocks import find
from dicache.models.skips import closed
from dicache.sites import Skips, Spans, Tail
from pipelines.controls import make_unet
from pipelines.tiny import make_flux

BLOCKS = [f"down_blocks.{i}" for i in range(3)] + ["mid_block"] + [f"up_blocks.{i}" for i in range(3)]


def blocks_of(unet: nn.Module) -> dict[str, nn.Module]:
    return find(unet, FAMILIES[type(unet).__name__]).blocks


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return make_unet(2, (4, 8, 8)).unet


def test_a_span_is_closed_where_no_later_block_reads_what_lies_in_it(unet):
    """Held against a UNet that runs: what the blocks of a span hand ahead is replaced by nan."""
    for first in range(7):
        for last in range(first, 7):
            modules = BLOCKS[first : last + 1]
            assert closed(modules, BLOCKS) == survives(unet, modules), modules


@torch.no_grad()
def survives(unet: nn.Module, modules: list[str]) -> bool:
    """Whether an output is finite though nothing that the span's modules give is, but for what its last one gives."""

    def broken(module, args, output):
        return (output[0], tuple(t * torch.nan for t in output[1])) if isinstance(output, tuple) else output * torch.nan

    def last(module, args, output):
        if isinstance(output, tuple):
            return torch.zeros_like(output[0]), tuple(t * torch.nan for t in output[1])
        return torch.zeros_like(output)

    handles = [unet.get_submodule(path).register_forward_hook(broken) for path in modules[:-1]]
    handles.append(unet.get_submodule(modules[-1]).register_forward_hook(last))
    output = unet(torch.ones(1, 4, 8, 8), 500, torch.ones(1, 3, 32)).sample
    for handle in handles:
        handle.remove()
    return bool(output.isfinite().all())


def test_what_lies_inside_is_named_in_order_of_execution(unet):
    def inside(*numbers: int) -> list[str]:
        (site,) = Skips(*numbers).select(blocks_of(unet), 0)
        assert not site.added and closed(site.modules, BLOCKS)
        return list(site.modules)

    assert inside(1) == BLOCKS[1:-1] and inside(2) == BLOCKS[2:-2] and inside(3) == ["mid_block"]
    cheapest = ["resnets.0", "resnets.1", "downsamplers.0"]
    assert inside(0, 1) == [
        *(f"down_blocks.0.{name}" for name in cheapest),
        *BLOCKS[1:-1],
        "up_blocks.2.resnets.0",
        "up_blocks.2.resnets.1",
    ]
    assert inside(1, 2) == [
        *(f"down_blocks.1.{name}" for name in ("resnets.1", "attentions.1", "downsamplers.0")),
        *BLOCKS[2:-2],
        *(f"up_blocks.1.{name}" for name in ("resnets.0", "attentions.0")),
    ]


@pytest.mark.parametrize("numbers", [(0, 0), (-1, 2), (1, -1)])
def test_numbers_that_leave_nothing_outside_are_refused(numbers):
    with pytest.raises(ModeError, match="one of them above 0"):
        Skips(*numbers)


@pytest.mark.parametrize(
    ("numbers", "depth", "message"),
    [
        ((4,), 0, "has 3 levels"),
        ((3, 1), 0, "has 3 levels"),
        ((1, 3), 0, r"has 3 skip connections. Use fewer, or Skips\(2\)"),
        ((0, 1), 1, "Use a probe of 0"),
        ((1,), 2, "Use a probe of 1"),
    ],
)
def test_what_a_unet_cannot_do_is_refused_with_the_way_out(unet, numbers, depth, message):
    with pytest.raises(UnsupportedModelError, match=message):
        Skips(*numbers).select(blocks_of(unet), depth)


def test_other_denoisers_and_blocks_are_refused(unet):
    with pytest.raises(UnsupportedModelError, match="needs a UNet"):
        Skips().select(blocks_of(make_flux().transformer), 0)
    blocks = blocks_of(unet) | {"down_blocks.0": nn.Identity()}
    with pytest.raises(UnsupportedModelError, match="without layers"):
        Skips(0, 1).select(blocks, 0)


def test_of_other_spans_those_that_are_closed_may_be_skipped_as_one(unet):
    family, blocks = FAMILIES["UNet2DConditionModel"], blocks_of(unet)
    for sites in (Spans(1), Tail(), Skips(1), Skips(0, 1)):
        family.check(sites.select(blocks, 0), 0, tuple(blocks))
    family.check(Tail(back=1).select(blocks, 1), 1, tuple(blocks))
    for sites in (Spans(2), Tail(back=1)):
        with pytest.raises(UnsupportedModelError, match=r"as one.*Use sites=Spans\(1\), Skips\(\) or Evaluation\(\)"):
            family.check(sites.select(blocks, 0), 0, tuple(blocks))
