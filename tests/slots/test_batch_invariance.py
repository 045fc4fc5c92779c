"""In groups of one size a call's output has the same bits in any batch: shuffled, split, joined with others."""

import inspect
import random
from contextlib import suppress
from typing import Any

import pytest
import torch

import dicache
from dicache.api import denoisers
from helpers.fuzzing import LONG
from helpers.requesting import DrawnError, call_of
from pipelines import tiny
from pipelines.controls import draw_unet, make_unet
from pipelines.neighbours import quiet

BATCHES = 1000 if LONG > 1 else 12
"""Of each family."""
FAMILIES = {
    "flux": (tiny.make_flux, tiny.draw_flux),
    "sd3": (tiny.make_sd3, tiny.draw_sd3),
    "unet": (make_unet, draw_unet),
}
SAMPLES, EARLIER = range(4), (1.0, 0.7, 0.4)
"""Samples, and by how much sooner than at the first step each is called."""
GROUP = 3


def first_call(pipe: Any, draw: Any, sample: int) -> dict[str, Any]:
    """What the denoiser is called with at the first step, by name."""
    ((_, denoiser),) = denoisers(pipe).items()
    names, seen = list(inspect.signature(type(denoiser).forward).parameters)[1:], dict[str, Any]()

    def listen(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(dict(zip(names, args, strict=False)) | kwargs)
        raise DrawnError

    handle = denoiser.register_forward_pre_hook(listen, with_kwargs=True, prepend=True)
    with suppress(DrawnError):
        pipe(**call_of(pipe, draw, sample, 2))
    handle.remove()
    return {**seen, "return_dict": False}


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_an_output_has_the_same_bits_in_any_batch(family):
    make, draw = FAMILIES[family]
    pipe, chance = quiet(make()), random.Random(7)
    calls = {}
    for sample in SAMPLES:
        call = first_call(pipe, draw, sample)
        for k, earlier in enumerate(EARLIER):
            calls[sample, k] = {**call, "timestep": (call["timestep"] * earlier).to(call["timestep"].dtype)}
    with dicache.enable(pipe, error_budget=0.0) as cache, torch.no_grad():

        def outputs(keys: list[Any]) -> list[torch.Tensor]:
            slots = [cache.join() for _ in keys]
            results = cache.step(slots, [calls[key] for key in keys], group=GROUP)
            for slot in slots:
                slot.leave()
            return [result[0] for result in results]

        alone = {key: outputs([key])[0] for key in calls}
        assert len({tuple(output.flatten().tolist()) for output in alone.values()}) == len(calls)
        for _ in range(BATCHES):
            batch = chance.choices(list(calls), k=chance.randint(1, 8))
            cut = chance.randint(0, len(batch))
            drawn = [each for part in (batch[:cut], batch[cut:]) if part for each in outputs(part)]
            assert all(torch.equal(output, alone[key]) for key, output in zip(batch, drawn, strict=True))
        runs = cache._slots.runs
        assert 0 < runs.padding < runs.rows
