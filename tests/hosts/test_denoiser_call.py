"""One call of the denoiser: latents and predictions as one tensor each, whatever the model takes and gives."""

from collections import OrderedDict
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import given
from torch import Tensor, nn

import dicache
from dicache.approximators.hold import Reuse
from dicache.controllers.interval import Interval
from dicache.errors import UnsupportedModelError
from dicache.estimators.closed_loop import ClosedLoop
from dicache.hosts.denoiser_call import latent_of, prediction_of, returned
from dicache.models.family import Family
from helpers.fuzzing import examples
from helpers.stepping import Work
from pipelines.table import PIPELINES

ONE = Family(model="One", stacks=("blocks",))
TWO = Family(model="Two", stacks=("blocks",), latents=("picture", "sound"))
SHAPES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=2, max_size=2)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# What is denoised.


def test_the_latent_is_the_first_floating_tensor_with_a_batch():
    latent, text = drawn(2, 4), drawn(2, 7)
    arguments = {"timestep": torch.tensor(1.0), "ids": torch.ones(2, 3, dtype=torch.int64), "x": latent, "text": text}
    assert latent_of(ONE, arguments) is latent
    assert latent_of(ONE, {"inputs": {"x": (latent, text)}}) is latent, "also inside of what is handed over"


def test_a_list_of_samples_is_a_batch_of_them_and_of_one_size():
    samples = [drawn(3, 4), drawn(3, 4) + 1]
    latent = latent_of(ONE, {"x": samples, "t": torch.zeros(2)})
    assert torch.equal(latent, torch.stack(samples))
    with pytest.raises(UnsupportedModelError, match="samples of 2 sizes"):
        latent_of(ONE, {"x": [drawn(3, 4), drawn(3, 5)]})


@pytest.mark.parametrize(
    "arguments", [{}, {"t": torch.tensor(3.0)}, {"x": [], "y": drawn(2, 3)}, {"x": torch.ones(2, 2).int()}]
)
def test_a_call_without_a_latent_is_refused_with_what_was_expected(arguments):
    with pytest.raises(UnsupportedModelError, match="One was called without a latent"):
        latent_of(ONE, arguments)


def test_of_several_streams_those_that_are_there_are_joined():
    picture, sound = drawn(2, 3, 4), drawn(2, 5)
    joined = latent_of(TWO, {"sound": sound, "picture": picture, "text": drawn(2, 9)})
    assert torch.equal(joined, torch.cat([picture.flatten(1), sound], dim=1)), "in the order that the family says"
    assert latent_of(TWO, {"picture": picture, "sound": None}) is picture
    with pytest.raises(UnsupportedModelError, match="Two was called without a latent"):
        latent_of(TWO, {"text": drawn(2, 9)})


# What comes back.


@examples(10)
@given(shapes=SHAPES, rows=st.integers(1, 3))
def test_what_is_handed_back_takes_the_way_back_in_streams(shapes, rows):
    streams = [drawn(rows, *shape) for shape in shapes]
    arguments = {"picture": streams[0], "sound": streams[1]}
    latent = latent_of(TWO, arguments)
    output = (streams[0] + 1, streams[1] + 2)
    prediction = prediction_of(TWO, latent, arguments, output)
    assert prediction.shape == latent.shape
    back = returned(output, 2 * prediction)
    assert isinstance(back, tuple) and all(torch.equal(b, 2 * o) for b, o in zip(back, output, strict=True))


@given(rows=st.integers(1, 4), channels=st.integers(1, 3))
def test_what_is_handed_back_takes_the_way_back_in_samples(rows, channels):
    """Also of a list of one, and where a sample is as long as the batch."""
    samples = [drawn(channels, 4) + i for i in range(rows)]
    latent = latent_of(ONE, {"x": samples})
    prediction = prediction_of(ONE, latent, {"x": samples}, samples)
    assert torch.equal(prediction, latent)
    back = returned(samples, prediction + 1)
    assert isinstance(back, list) and all(torch.equal(b, s + 1) for b, s in zip(back, samples, strict=True))


def test_the_object_that_comes_back_is_of_the_kind_that_the_pipeline_expects():
    output = drawn(2, 4)
    wrapped = returned(Transformer2DModelOutput(sample=output), output + 1)
    assert isinstance(wrapped, Transformer2DModelOutput) and torch.equal(wrapped.sample, output + 1)
    assert torch.equal(returned(output, output + 1), output + 1)
    assert torch.equal(returned((output,), output + 1)[0], output + 1)
    two = OrderedDict(a=output, b=output[:, :2])
    back = returned(two, torch.cat([output, output[:, :2]], dim=1) + 1)
    assert list(back) == ["a", "b"] and torch.equal(back["b"], output[:, :2] + 1)


@pytest.mark.parametrize("output", [(drawn(2, 4), drawn(2, 4)), (drawn(3, 4),), (), torch.tensor(1.0)])
def test_what_is_no_prediction_of_the_samples_is_refused_with_its_shapes(output):
    with pytest.raises(UnsupportedModelError, match=r"for a latent of \(2, 4\)"):
        prediction_of(ONE, drawn(2, 4), {"x": drawn(2, 4)}, output)


@pytest.mark.parametrize("samples", [[1], [1, 2]])
@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_a_pipeline_that_hands_over_lists_gets_lists_also_of_one_picture(samples, guidance):
    tiny = PIPELINES["Z-Image"]
    pipe = tiny.make()
    plain = tiny.draw(pipe, samples, 6, guidance_scale=guidance)
    config = dicache.Config(Interval(2, first=3), ClosedLoop(), approximators=(Reuse(),))
    with dicache.enable(pipe, config=config) as cache:
        drawn_with_it = tiny.draw(pipe, samples, 6, guidance_scale=guidance)
    assert cache.report().strip(0) == "###=#=" and drawn_with_it.shape == plain.shape
    assert float((drawn_with_it - plain).norm() / plain.norm()) < 0.2


# Through the hooks.


class Block(Work):
    """With a parameter, by which a list of blocks is known."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.weight = nn.Parameter(self.__dict__.pop("weight"))


class Denoiser(nn.Module):
    """Takes a latent by position or by name, a timestep, options and whatever else."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(seed=i) for i in range(3))
        self.embed = nn.Linear(1, 4)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor | None = None, fast: bool = False, **options: object
    ) -> tuple[Tensor]:
        shift = 0 if timestep is None else self.embed(timestep.float().view(-1, 1).expand(len(hidden_states), 1))
        hidden = hidden_states + shift
        for block in self.blocks[: 2 if fast else 3]:
            hidden = block(hidden_states=hidden)
        return (hidden,)


@pytest.fixture
def caching():
    """A denoiser whose every second step is skipped, and its cache."""
    denoiser = Denoiser()
    config = dicache.Config(Interval(2, first=2), ClosedLoop(), approximators=(Reuse(),))
    with dicache.enable(denoiser, config=config) as cache, torch.no_grad():
        yield SimpleNamespace(denoiser=denoiser, cache=cache, session=cache.session)


def loop(caching: SimpleNamespace, steps: int = 6, **options: object) -> list[Tensor]:
    outputs = []
    for i in range(steps):
        outputs.append(caching.denoiser(drawn(2, 4) + i, timestep=torch.full((2,), 1 - i / steps), **options)[0])
    return outputs


def strip(caching: SimpleNamespace) -> str:
    return caching.cache.report().strip(0)


@pytest.mark.parametrize("how", ["by position", "by name", "left over"])
def test_a_timestep_is_heard_however_it_is_handed_over(caching, how):
    for i in range(4):
        time = torch.full((2,), 1 - i / 4)
        latent = drawn(2, 4)
        if how == "by position":
            caching.denoiser(latent, time)
        elif how == "by name":
            caching.denoiser(hidden_states=latent, timestep=time)
        else:
            caching.denoiser(latent, sigma=time)
        assert caching.session.run.step.sigma == pytest.approx(1 - i / 4)
    assert not any("no timestep" in note for note in caching.session.notes)


def test_a_model_that_is_told_no_time_says_which_names_were_looked_for(caching):
    caching.denoiser(drawn(2, 4))
    assert any(
        "no timestep was found" in note and "timestep, timesteps, t, sigma" in note for note in caching.session.notes
    )


def test_a_switch_that_runs_other_blocks_is_another_kind_of_call(caching):
    loop(caching)
    keys = set(caching.session.meter.costs_by_key)
    loop(caching, fast=True)
    assert len(set(caching.session.meter.costs_by_key) - keys) == 1
    trace = caching.session.trace()
    assert trace.uncached.tolist() == [6 * (2 * 16 + 4)] * 2, "two blocks and what is around them"


def test_blocks_that_read_a_cache_of_all_samples_are_not_taken_apart(caching):
    loop(caching, key_cache=object())
    assert caching.session.run.complete or caching.session.run.step.index == 5
    with_cache = caching.denoiser(drawn(2, 4), torch.ones(2), key_cache=object())
    assert torch.equal(with_cache[0], caching.denoiser(drawn(2, 4), torch.ones(2), key_cache=None)[0])


def test_a_skipped_step_hands_out_what_the_last_one_gave_and_no_block_runs(caching):
    outputs, ran = loop(caching), [len(block.ran) for block in caching.denoiser.blocks]
    assert strip(caching) == "##=#=#"
    torch.testing.assert_close(outputs[2], outputs[1])
    torch.testing.assert_close(outputs[4], outputs[3])
    assert ran == [4, 4, 4]


def test_outside_of_a_call_of_the_denoiser_its_blocks_are_what_they_were(caching):
    loop(caching, steps=3)
    block, hidden = caching.denoiser.blocks[0], drawn(2, 4)
    torch.testing.assert_close(block(hidden), Work().forward(hidden))
    assert len(caching.session.run.records) == 2


def test_a_cache_that_blocks_write_is_refused_with_what_switches_it_off_and_nothing_is_left():
    tiny = PIPELINES["Qwen-Image 2.1"]
    pipe = tiny.make()
    pipe.set_progress_bar_config(disable=True)
    with dicache.enable(pipe, error_budget=0.1) as cache:
        with pytest.raises(UnsupportedModelError, match=r"cache of keys and values .* use_kv_cache=False"):
            tiny.draw(pipe, [1], 6, use_kv_cache=True)
        tiny.draw(pipe, [1], 6)
        assert cache.report().to_dict()["complete"]
    tiny.draw(pipe, [1], 6, use_kv_cache=True)
