"""Sublayers and probes inside UNets: T-GATE against a loop that is written by hand, and the laws for the presets that
skip parts of a UNet or look at one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor, nn

import dicache
from dicache import presets
from dicache.controllers.budgeted import Budgeted
from dicache.controllers.gate import Gate
from dicache.controllers.interval import Interval
from dicache.errors import ModeError, UnsupportedModelError
from dicache.estimators.closed_loop import ClosedLoop
from dicache.models.families import FAMILIES
from dicache.models.find_blocks import find
from dicache.probes.base import View
from dicache.probes.first_blocks import FirstBlocks
from dicache.promise.metrics import relative_error
from dicache.sites import Skips, Sublayers
from dicache.types import Kind
from helpers.watching import count_macs, strips
from pipelines.controls import draw_unet, make_unet
from pipelines.tiny import lively

STEPS = 12


@pytest.fixture(scope="module")
def pipe() -> Any:
    return make_unet(1, (4, 8))


# T-GATE.


@contextmanager
def by_hand(unet: nn.Module, due: dict[str, set[int]]) -> Iterator[None]:
    """Modules of these names compute at these steps, and hold in between what they gave last."""
    step, wrapped = [-1], []

    def count(*_: Any) -> None:
        step[0] += 1

    def held(module: nn.Module, steps: set[int]) -> None:
        forward, kept = module.forward, {}

        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            if step[0] in steps:
                kept["output"] = forward(*args, **kwargs)
            return kept["output"].clone()

        module.forward = wrapper
        wrapped.append(module)

    handle = unet.register_forward_pre_hook(count)
    for path, module in unet.named_modules():
        if (name := path.rpartition(".")[2]) in due:
            held(module, due[name])
    try:
        yield
    finally:
        handle.remove()
        for module in wrapped:
            del module.forward


@pytest.mark.parametrize(("gate", "at"), [(0.5, 6), (0.4, 5), (1.0, 12)])
def test_tgate_is_bitwise_a_loop_that_is_written_by_hand(pipe, gate, at):
    with dicache.enable(pipe, config=presets.tgate(gate, 3)) as cache:
        drawn = draw_unet(pipe, [1, 2, 3], STEPS)
        assert {site.kind for site in cache.trace.sites} == {Kind.ATTENTION, Kind.CROSS_ATTENTION}
    attention = {0, 1, 2, *(i for i in range(5, at, 3)), *range(at, STEPS)}
    with by_hand(pipe.unet, {"attn1": attention, "attn2": set(range(at))}):
        assert torch.equal(draw_unet(pipe, [1, 2, 3], STEPS), drawn)
    assert not torch.equal(draw_unet(pipe, [1, 2, 3], STEPS), drawn)


def test_a_gate_counts_from_the_first_step_of_the_run_and_must_be_a_share():
    for gate in (0.0, 1.1):
        with pytest.raises(ModeError, match="a share of the steps"):
            Gate(Interval(1), gate)


# Sublayers by their nested path.


def test_sublayers_of_a_unet_are_where_their_names_say():
    blocks = find((unet := make_unet(2, (4, 8, 8)).unet), FAMILIES["UNet2DConditionModel"]).blocks
    layers = [path for path, module in unet.named_modules() if type(module).__name__ == "BasicTransformerBlock"]
    for kind, name in {Kind.ATTENTION: "attn1", Kind.CROSS_ATTENTION: "attn2", Kind.FEED_FORWARD: "ff"}.items():
        sites = Sublayers((kind,)).select(blocks, 0)
        assert {site.path for site in sites} == {f"{layer}.{name}" for layer in layers}
        assert all(site.kind == kind and site.modules == (site.path,) and not site.added for site in sites)
    assert [site.index for site in Sublayers().select(blocks, 0)] == list(range(3 * len(layers)))


CONFIGS = {
    "sublayers": presets.fora(3, Sublayers()),
    "cross-attention": presets.fora(3, Sublayers((Kind.CROSS_ATTENTION,))),
    "tgate": presets.tgate(0.5),
    "pab": presets.pab(),
    "delta_dit": presets.delta_dit(),
    "first_block_cache": presets.first_block_cache(0.5),
    "dbcache": presets.dbcache(0.5, front=1),
    "dicache": presets.dicache(2.0),
    "bwcache": presets.bwcache(0.9),
    "gradient_optimized_cache": presets.gradient_optimized_cache(),
    "fastercache_attention": presets.fastercache_attention(),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_presets_work_inside_a_unet_and_decide_per_sample(pipe, name):
    with dicache.enable(pipe, config=CONFIGS[name]) as cache:
        alone, decided = draw_unet(pipe, [2], STEPS), strips(cache)
        draw_unet(pipe, [1, 2], STEPS)  # costs of a batch of two are measured
        macs = count_macs(pipe.unet)
        together, trace = draw_unet(pipe, [1, 2], STEPS), cache.trace
        del pipe.unet.forward
        assert strips(cache)[1:] == decided and cache.report().compute_speedup > 1.0
    assert float(trace.executed.sum()) == pytest.approx(sum(macs), rel=1e-6)
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-3)


def test_sublayers_at_budget_zero_are_bitwise_the_pipeline(pipe):
    plain = draw_unet(pipe, [1, 2], STEPS)
    config = dicache.Config(Budgeted(0.0), ClosedLoop(), sites=Sublayers())
    with dicache.enable(pipe, config=config):
        assert torch.equal(draw_unet(pipe, [1, 2], STEPS), plain)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (presets.teacache(), r"norm1 is an AdaLayerNormZero.*as presets\.dicache\(\) does"),
        (presets.seacache(), r"norm1 is an AdaLayerNormZero.*as presets\.dicache\(\) does"),
        (presets.dbcache(), "Use a probe of fewer"),
        (presets.speca(), r"Use sites=Spans\(1\), Skips\(\)"),
    ],
    ids=["teacache", "seacache", "dbcache", "speca"],
)
def test_what_cannot_work_there_says_why_and_what_to_do(pipe, config, message):
    with pytest.raises(UnsupportedModelError, match=message), dicache.enable(pipe, config=config):
        draw_unet(pipe, [1], STEPS)


# Maps: attention and probes on (R, C, H, W).


class Seen(FirstBlocks):
    """Notes down what it looks at."""

    views: list[View]

    def __call__(self, view: View) -> Tensor | None:
        self.views.append(view)
        return super().__call__(view)


def test_a_probe_sees_what_the_first_down_block_made_before_it_samples_down(pipe):
    made, probe = [], Seen(1)
    object.__setattr__(probe, "views", [])
    layer = pipe.unet.down_blocks[0].resnets[-1]
    handle = layer.register_forward_hook(lambda module, args, output: made.append(output.clone()))
    with dicache.enable(pipe, config=dicache.Config(Interval(3), ClosedLoop(), probe=probe)):
        draw_unet(pipe, [1], STEPS)
    handle.remove()
    assert len(made) == len(probe.views) == STEPS  # it looks at skipped steps too
    assert all(torch.equal(view.after, each) for view, each in zip(probe.views, made, strict=True))
    assert all(view.before.shape == view.after.shape and view.before.ndim == 4 for view in probe.views)


def make_unconditional() -> DDIMPipeline:
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    pipe = DDIMPipeline(lively(unet), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    "config",
    [presets.fora(3, Sublayers((Kind.ATTENTION,))), presets.deepcache(3), presets.fora(3, Skips(1))],
    ids=["attention on maps", "deepcache", "skips"],
)
def test_a_unet_without_a_prompt_has_the_same_sites(config):
    pipe = make_unconditional()

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.tensor(pipe(2, generator, num_inference_steps=STEPS, output_type="np").images)

    plain = draw()
    with dicache.enable(pipe, config=config) as cache:
        draw()
        macs = count_macs(pipe.unet)
        drawn, trace = draw(), cache.trace
        del pipe.unet.forward
        assert cache.report().compute_speedup > 1.0
    assert float(trace.executed.sum()) == pytest.approx(sum(macs), rel=1e-6)
    assert not torch.equal(drawn, plain) and torch.equal(draw(), plain)


# Coefficients for maps.


class Numbered:
    """A pipeline whose prompts are the numbers of its samples."""

    def __init__(self, pipe: Any) -> None:
        self.unet, self.scheduler, self.pipe = pipe.unet, pipe.scheduler, pipe

    def __call__(self, prompts: list[str], *, num_inference_steps: int, **_: Any) -> Any:
        return draw_unet(self.pipe, [int(prompt) for prompt in prompts], num_inference_steps)


def test_coefficients_are_fitted_to_maps_and_lose_less_than_reuse(pipe):
    sites, plain, lost = Skips(0, 1), draw_unet(pipe, [1, 2], STEPS), {}
    for kind in ("ridge", "affine"):
        fitted = dicache.fit(Numbered(pipe), ["3", "4", "5"], steps=STEPS, kind=kind, sites=sites, progress=False)
        approximator = fitted.approximator()
        config = dicache.Config(Interval(3), ClosedLoop(), (approximator,), fitted.probe, fitted.sites)
        with dicache.enable(pipe, config=config) as cache:
            lost[kind] = float(relative_error(draw_unet(pipe, [1, 2], STEPS), plain).mean())
            assert cache.report().compute_speedup > 1.0
    with dicache.enable(pipe, config=presets.fora(3, sites)):
        reused = float(relative_error(draw_unet(pipe, [1, 2], STEPS), plain).mean())
    assert 0 < max(lost.values()) < reused
