"""DeepCache on tiny UNets of stock pipelines, against a loop that is written by hand, and the laws for its sites."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dicache
from dicache import presets
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.controllers.budgeted import Budgeted
from dicache.controllers.fixed import masks
from dicache.estimators.closed_loop import ClosedLoop
from dicache.promise.metrics import relative_error
from dicache.sites import Skips, Spans, Tail
from dicache.types import Action
from helpers.watching import count_macs, strips
from pipelines.controls import draw_unet, draw_unet_control, make_unet, make_unet_control

STEPS, LAYERS = 12, 2
NUMBERS = [(1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (1, 1), (2, 2)]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return make_unet(LAYERS, (4, 8, 8))


Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def _layers(block: nn.Module) -> list[Layer]:
    """A resnet with its attention each."""

    def layer(i: int) -> Layer:
        def run(h: Tensor, emb: Tensor, text: Tensor) -> Tensor:
            h = block.resnets[i](h, emb)
            attends = getattr(block, "attentions", None)
            return attends[i](h, encoder_hidden_states=text, return_dict=False)[0] if attends else h

        return run

    return [layer(i) for i in range(len(block.resnets))]


def _sampler(module: nn.Module) -> Layer:
    return lambda h, emb, text: module(h)


def _then(layer: Layer, module: nn.Module) -> Layer:
    return lambda h, emb, text: module(layer(h, emb, text))


@contextmanager
def by_hand(unet: nn.Module, fresh: int, full: set[int]) -> Iterator[None]:
    """DeepCache with `fresh` skip connections computed at every step, and all of the UNet at the steps in `full`."""
    makers: list[Layer] = []
    for block in unet.down_blocks:
        makers += [*_layers(block), *(_sampler(m) for m in block.downsamplers or [])]
    readers: list[Layer] = []
    for block in unet.up_blocks:
        *others, last = _layers(block)
        readers += [*others, _then(last, block.upsamplers[0]) if block.upsamplers else last]
    step, held = 0, torch.zeros(0)

    def forward(sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        nonlocal step, held
        text = encoder_hidden_states
        emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), None)
        skips = [unet.conv_in(sample)]
        for maker in makers if step in full else makers[: fresh - 1]:
            skips.append(maker(skips[-1], emb, text))
        if step in full:
            held = unet.mid_block(skips[-1], emb, encoder_hidden_states=text)
            for reader in readers[:-fresh]:
                held = reader(torch.cat([held, skips.pop()], dim=1), emb, text)
        h, step = held, step + 1
        for reader in readers[-fresh:]:
            h = reader(torch.cat([h, skips.pop()], dim=1), emb, text)
        return (unet.conv_out(unet.conv_act(unet.conv_norm_out(h))),)

    unet.forward = forward
    try:
        yield
    finally:
        del unet.forward


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_deepcache_is_bitwise_a_loop_that_is_written_by_hand(pipe, numbers, interval):
    level, layers = numbers
    with dicache.enable(pipe, config=presets.deepcache(interval, level, layers)) as cache:
        drawn = draw_unet(pipe, [1, 2, 3], STEPS)
        computed = [bool((record.action == Action.COMPUTE).all()) for record in cache.trace.records]
    full = {0, *range(1, STEPS, interval)}  # it counts from step 1, at which a guess is first held to the truth
    assert {i for i, each in enumerate(computed) if each} == full
    with by_hand(pipe.unet, level * (LAYERS + 1) + layers, full):
        assert torch.equal(draw_unet(pipe, [1, 2, 3], STEPS), drawn)
    with by_hand(pipe.unet, level * (LAYERS + 1) + layers, set(range(STEPS))):
        everything = draw_unet(pipe, [1, 2, 3], STEPS)
    assert torch.equal(draw_unet(pipe, [1, 2, 3], STEPS), everything) and not torch.equal(drawn, everything)


@pytest.mark.parametrize("numbers", [(1, 0), (0, 1)], ids=str)
def test_with_a_line_it_loses_at_most_half_of_what_reuse_loses(pipe, numbers):
    samples, plain, lost = [1, 2, 3, 4], draw_unet(pipe, [1, 2, 3, 4], 20), {}
    for approximator in (Reuse(), Extrapolate()):
        with dicache.enable(pipe, config=presets.deepcache(2, *numbers, approximator=approximator)) as cache:
            lost[type(approximator)] = float(relative_error(draw_unet(pipe, samples, 20), plain).mean())
            assert cache.report().compute_speedup > 1
    assert 0 < lost[Extrapolate] <= 0.5 * lost[Reuse]


def test_its_first_and_last_steps_compute_where_that_is_asked_for(pipe):
    with dicache.enable(pipe, config=presets.deepcache(3, 0, 1, first=2, last=2)) as cache:
        draw_unet(pipe, [1], 9)
    assert strips(cache) == ["##==#==##"]
    with dicache.enable(pipe, config=presets.deepcache(3, 0, 1)) as cache:
        draw_unet(pipe, [1], 9)
    assert strips(cache) == ["##==#==#="]


SITES = [*(Skips(*numbers) for numbers in NUMBERS), Tail(), Spans(1)]


@pytest.mark.parametrize("sites", SITES, ids=str)
def test_samples_are_decided_alone_and_work_is_what_ran(pipe, sites):
    skips = [{3, 4, 6}, {3, 7}, set()]
    rules = [masks([[i not in skipped for i in range(STEPS)]]) for skipped in skips]
    together = masks([[i not in skipped for i in range(STEPS)] for skipped in skips])

    def config(rule: Any) -> dicache.Config:
        return dicache.Config(rule, ClosedLoop(), (Reuse(),), sites=sites)

    with dicache.enable(pipe, config=config(together)) as cache:
        draw_unet(pipe, [1, 2, 3], STEPS)  # costs are measured
        macs = count_macs(pipe.unet)
        drawn, decided, trace = draw_unet(pipe, [1, 2, 3], STEPS), strips(cache), cache.trace
        del pipe.unet.forward
    assert float(trace.executed.sum()) == pytest.approx(sum(macs), rel=1e-6)
    assert trace.executed[0] < trace.executed[1] < trace.executed[2] == trace.uncached[2]
    assert trace.cache_bytes <= trace.planned_bytes
    for i, rule in enumerate(rules):
        with dicache.enable(pipe, config=config(rule)) as cache:
            alone = draw_unet(pipe, [i + 1], STEPS)
            assert strips(cache) == [decided[i]]
        torch.testing.assert_close(drawn[i : i + 1], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sites", SITES, ids=str)
def test_budget_zero_is_bitwise_the_pipeline(pipe, sites):
    plain = draw_unet(pipe, [1, 2], STEPS)
    with dicache.enable(pipe, config=dicache.Config(Budgeted(0.0), ClosedLoop(), sites=sites)) as cache:
        assert torch.equal(draw_unet(pipe, [1, 2], STEPS), plain)
    assert cache.report().compute_speedup == 1.0
    assert not any("forward" in vars(module) for module in pipe.unet.modules())


def test_control_of_the_outer_blocks_stays_fresh():
    """What a ControlNet adds to the skip connections outside is added at every step, what it adds inside is held."""
    pipe = make_unet_control()
    plain = draw_unet_control(pipe, [1, 2], STEPS)
    with dicache.enable(pipe, config=presets.deepcache(2, 1, 0)):
        held = draw_unet_control(pipe, [1, 2], STEPS)
    assert 0 < float(relative_error(held, plain).max()) < 0.3
