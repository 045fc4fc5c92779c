"""Several threads: one session works for one of them at a time, and sessions of their own do not touch each other."""

import asyncio
import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

import dicache
from dicache.errors import BusyError
from dicache.solvers import clock
from helpers.fuzzing import ROUNDS
from helpers.watching import strips
from pipelines.neighbours import quiet
from pipelines.tiny import draw_flux, make_flux

STEPS, FAR = 8, 600
"""FAR: seconds after which a thread is thought to hang."""


def in_thread(work: Callable[[], Any], pool: ThreadPoolExecutor) -> Any:
    return pool.submit(work).result(FAR)


@pytest.fixture
def pools() -> Iterator[list[ThreadPoolExecutor]]:
    """Of one thread each, which lives on between its tasks."""
    made = [ThreadPoolExecutor(1) for _ in range(2)]
    yield made
    for pool in made:
        pool.shutdown()


def pair() -> tuple[Any, Any]:
    """Two pipelines with one denoiser and a scheduler each."""
    one = quiet(make_flux())
    return one, quiet(FluxPipeline.from_pipe(one, scheduler=copy.deepcopy(one.scheduler)))


def at_step(index: int, act: Callable[[], Any]) -> Callable[..., Any]:
    """A callback that does something in the midst of a run."""

    def callback(pipe: Any, i: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if i == index:
            act()
        return tensors

    return callback


def told(cache: dicache.Cache) -> dict[str, Any]:
    facts = cache.report().to_dict()
    return {name: value for name, value in facts.items() if name != "overhead_seconds"}


@pytest.mark.parametrize("shared", ["the denoiser", "the pipeline's class"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_second_thread_gets_one_error_before_anything_ran_and_the_first_run_is_as_alone(pools, shared, guided):
    one, two = pair()
    with dicache.enable(one, error_budget=0.5) as cache:
        alone = draw_flux(one, [1, 2], STEPS, guided=guided)
        expected, ran = told(cache), []
        errors = []

        def intrude() -> None:
            block = one.transformer.transformer_blocks[0]
            handle = block.register_forward_pre_hook(lambda *_: ran.append(threading.get_ident()))
            with pytest.raises(BusyError, match="own") as caught:
                in_thread(lambda: draw_flux(two, [3], STEPS, guided=guided), pools[0])
            handle.remove()
            errors.append(str(caught.value))

        drawn = draw_flux(one, [1, 2], STEPS, guided=guided, callback_on_step_end=at_step(3, intrude))
        assert len(errors) == 1 and not ran and "FluxTransformer2DModel" in errors[0] and "disable" in errors[0]
        assert torch.equal(drawn, alone) and told(cache) == expected
        assert torch.equal(in_thread(lambda: draw_flux(two, [1, 2], STEPS, guided=guided), pools[0]), alone)


def test_runs_of_several_threads_one_after_another_are_as_those_of_one(pools):
    """As those of asyncio with a pool of threads; no thread ends in between."""
    pipe = quiet(make_flux())
    with dicache.enable(pipe, error_budget=0.5) as cache:
        expected, notes = draw_flux(pipe, [1, 2], STEPS), told(cache)
        for pool in (*pools, *pools):
            assert torch.equal(in_thread(lambda: draw_flux(pipe, [1, 2], STEPS), pool), expected)
            assert told(cache) == notes
        assert torch.equal(draw_flux(pipe, [1, 2], STEPS), expected)


@pytest.mark.parametrize("ended_by", ["an error", "a reset", "its thread's end"])
def test_a_run_that_broke_off_in_one_thread_leaves_the_denoiser_to_another(pools, ended_by):
    pipe = quiet(make_flux())

    def broken() -> None:
        def stop() -> None:
            if ended_by == "a reset":
                cache.reset()
            raise KeyError

        with pytest.raises(KeyError):
            draw_flux(pipe, [1, 2], STEPS, callback_on_step_end=at_step(3, stop))

    with dicache.enable(pipe, error_budget=0.5) as cache:
        expected = draw_flux(pipe, [1, 2], STEPS)
        in_thread(broken, pools[0])
        if ended_by == "its thread's end":
            pools[0].shutdown()
        assert torch.equal(in_thread(lambda: draw_flux(pipe, [1, 2], STEPS), pools[1]), expected)
        assert cache.report().to_dict()["complete"]


def test_what_another_thread_does_in_the_midst_of_a_run_is_refused_or_harmless(pools):
    """It may look; it may take the cache off between two calls, and not while rows wait to be filled."""
    pipe, refused, seen = quiet(make_flux()), [], []
    block = pipe.transformer.transformer_blocks[0]

    def meddle(*_: Any) -> None:
        for act in (cache.disable, cache.reset):
            try:
                in_thread(act, pools[0])
            except BusyError:
                refused.append(act.__name__)
        seen.append(in_thread(lambda: len(cache.report().to_dict()["steps"]), pools[0]))

    with dicache.enable(pipe, error_budget=0.5) as cache:
        expected = draw_flux(pipe, [1, 2], STEPS)
        whole = told(cache)
        handle = block.register_forward_pre_hook(meddle)
        assert torch.equal(draw_flux(pipe, [1, 2], STEPS), expected)
        handle.remove()
        assert told(cache) == whole and refused == ["disable", "reset"] * len(seen) and max(seen) == STEPS - 1
        off = at_step(3, lambda: in_thread(cache.disable, pools[0]))
        draw_flux(pipe, [1, 2], STEPS, callback_on_step_end=off)
    assert "transformer_blocks" not in str(vars(pipe.transformer).keys())


def loops(denoiser: Any) -> dict[str, Callable[..., torch.Tensor]]:
    """Written by hand: the loop calls the denoiser itself, or has a function that does."""
    call = {"encoder_hidden_states": torch.ones(1, 8, 32), "pooled_projections": torch.ones(1, 32)}
    places = {"txt_ids": torch.zeros(8, 3), "img_ids": torch.zeros(16, 3)}

    def predicted(x: torch.Tensor, time: float) -> torch.Tensor:
        return denoiser(x, timestep=torch.tensor([time]), **call, **places, return_dict=False)[0]

    def inner(x: torch.Tensor, between: Callable[[int], Any]) -> torch.Tensor:
        for i in range(STEPS):
            x = x - predicted(x, 1 - i / STEPS) / STEPS
            between(i)
        return x

    def direct(x: torch.Tensor, between: Callable[[int], Any]) -> torch.Tensor:
        for i in range(STEPS):
            time = torch.tensor([1 - i / STEPS])
            x = x - denoiser(x, timestep=time, **call, **places, return_dict=False)[0] / STEPS
            between(i)
        return x

    return {"itself": direct, "through a function": inner}


@pytest.mark.parametrize("calls", ["itself", "through a function"])
@torch.no_grad()
def test_two_loops_written_by_hand_are_never_mixed_and_may_follow_each_other(pools, calls):
    denoiser = make_flux().transformer
    xs = [torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    loop = loops(denoiser)[calls]

    def drawn(x: torch.Tensor, between: Callable[[int], Any] = lambda i: None) -> torch.Tensor:
        with torch.no_grad():
            return loop(x, between)

    with dicache.enable(denoiser, config=dicache.presets.fora(3)) as cache:
        alone = [drawn(x) for x in xs]
        for x, expected in zip(xs, alone, strict=True):
            for pool in pools:
                assert torch.equal(in_thread(lambda x=x: drawn(x), pool), expected)
                cache.reset()
        met = threading.Barrier(2)

        def wait(step: int) -> None:
            with suppress(threading.BrokenBarrierError):  # the other has its error
                met.wait(FAR)

        def in_turns(x: torch.Tensor) -> torch.Tensor | BusyError:
            try:
                return drawn(x, wait)
            except BusyError as error:
                met.abort()
                return error

        futures = [pool.submit(in_turns, x) for pool, x in zip(pools, xs, strict=True)]
        results = [future.result(FAR) for future in futures]
    plain = [drawn(x) for x in xs]
    for result, *fitting in zip(results, alone, plain, strict=True):
        assert isinstance(result, BusyError) or any(torch.equal(result, x) for x in fitting)


@pytest.mark.long
@pytest.mark.parametrize("options", [{"error_budget": 0.5}, {"config": dicache.presets.bwcache()}])
def test_two_pipelines_with_denoisers_of_their_own_are_bitwise_as_alone(pools, options, monkeypatch):
    monkeypatch.setattr(clock, "_MOST", 1)  # what is remembered for all is thrown out and made anew all the time
    pipes = [quiet(make_flux()) for _ in pools]
    for shift, pipe in enumerate(pipes):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0 + shift)
    caches = [dicache.enable(pipe, **options) for pipe in pipes]
    begun = threading.Barrier(2)

    def drawn(number: int, steps: int) -> tuple[Any, ...]:
        return draw_flux(pipes[number], [number, 5], steps).tolist(), strips(caches[number])

    def together(number: int, steps: int) -> tuple[Any, ...]:
        begun.wait(FAR)
        return drawn(number, steps)

    for turn in range(ROUNDS):
        steps = 4 + turn % 3
        futures = [pool.submit(together, number, steps) for number, pool in enumerate(pools)]
        assert [future.result(FAR) for future in futures] == [drawn(number, steps) for number in range(2)]
    for cache in caches:
        cache.disable()


@pytest.mark.long
def test_of_two_threads_that_begin_at_once_one_draws_and_the_other_gets_the_error(pools):
    one, two = pair()
    with dicache.enable(one, error_budget=0.5):
        alone = [draw_flux(pipe, [1], 4) for pipe in (one, two)]
        begun = threading.Barrier(2)

        def drawn(pipe: Any) -> torch.Tensor | BusyError:
            begun.wait(FAR)
            try:
                return draw_flux(pipe, [1], 4)
            except BusyError as error:
                return error

        for _ in range(ROUNDS):
            futures = [pool.submit(drawn, pipe) for pool, pipe in zip(pools, (one, two), strict=True)]
            results = [future.result(FAR) for future in futures]
            latents = [(r, x) for r, x in zip(results, alone, strict=True) if not isinstance(r, BusyError)]
            assert latents and all(torch.equal(r, x) for r, x in latents)


async def gathered(pool: ThreadPoolExecutor, work: Callable[[Any], Any], things: list[Any]) -> list[Any]:
    loop = asyncio.get_running_loop()
    return await asyncio.gather(*(loop.run_in_executor(pool, work, thing) for thing in things))


@pytest.mark.long
@pytest.mark.parametrize("how", ["threads", "asyncio"])
def test_of_eight_that_share_a_denoiser_each_draws_as_alone_or_gets_the_error(how):
    one = quiet(make_flux())
    pipes = [quiet(FluxPipeline.from_pipe(one, scheduler=copy.deepcopy(one.scheduler))) for _ in range(8)]

    def drawn(pipe: Any) -> torch.Tensor | BusyError:
        try:
            return draw_flux(pipe, [1], 4)
        except BusyError as error:
            return error

    with dicache.enable(one, error_budget=0.5), ThreadPoolExecutor(8) as pool:
        alone = draw_flux(one, [1], 4)
        for _ in range(ROUNDS):
            together = how == "asyncio"
            results = asyncio.run(gathered(pool, drawn, pipes)) if together else list(pool.map(drawn, pipes))
            latents = [result for result in results if not isinstance(result, BusyError)]
            assert latents and all(torch.equal(result, alone) for result in latents)
        assert torch.equal(draw_flux(one, [1], 4), alone)
