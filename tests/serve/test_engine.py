"""An engine: stock pipelines in loops of their own, whose denoiser calls meet, decide and draw as alone."""

import random
import sys
import threading
import time
from typing import Any

import pytest
import torch

import dicache
from dicache.errors import BudgetError, BusyError, ModeError, PipelineError, WorkerError
from dicache.serve import deployment
from dicache.serve.engine import Engine
from dicache.serve.request import CancelledError, Request
from helpers.fuzzing import LONG as LONGER
from helpers.requesting import call_of
from pipelines import tiny
from pipelines.controls import draw_unet, make_unet
from pipelines.neighbours import quiet
from pipelines.table import PIPELINES

LONG = 600.0
pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi, at every run
    pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),  # the autoencoder of Stable Audio
]
MADE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "flux": (tiny.make_flux, tiny.draw_flux, {"guided": True}),
    "sd3": (tiny.make_sd3, tiny.draw_sd3, {}),
    "pixart": (tiny.make_pixart, tiny.draw_pixart, {}),
    "wan": (tiny.make_wan, tiny.draw_wan, {}),
    "unet": (make_unet, draw_unet, {}),
}


APART = {
    *("SD3 perturbed attention", "PixArt perturbed attention", "Wan 2.2, two experts"),  # refused
    *("Bria", "HunyuanDiT ControlNet"),  # what draws them changes the pipeline between its calls
}


def latents(output: Any) -> torch.Tensor:
    """The first thing that a pipeline gave, of all samples."""
    first = output[0] if isinstance(output, tuple) else next(iter(output.values()))
    return torch.stack([torch.as_tensor(each) for each in first]) if isinstance(first, list) else torch.as_tensor(first)


@pytest.fixture(scope="module")
def flux() -> Any:
    return quiet(tiny.make_flux())


def flux_call(pipe: Any, sample: int = 1, steps: int = 8) -> dict[str, Any]:
    return call_of(pipe, tiny.draw_flux, sample, steps)


@pytest.mark.parametrize("name", MADE)
def test_requests_of_a_stock_pipeline_are_as_alone(name):
    make, draw, options = MADE[name]
    pipe, chance = quiet(make()), random.Random(0)
    jobs = [(i, chance.choice([0.0, 0.05, 0.5, 2.0]), chance.choice([4, 6, 10])) for i in range(6)]
    alone = []
    for sample, budget, steps in jobs:
        with dicache.enable(pipe, error_budget=budget) as cache:
            alone.append((pipe(**call_of(pipe, draw, sample, steps, **options)), cache.report().to_dict()))
    with Engine(pipe, slots=3) as engine:
        calls = [call_of(pipe, draw, sample, steps, **options) for sample, _, steps in jobs]
        requests = [engine.submit(call, error_budget=job[1]) for call, job in zip(calls, jobs, strict=True)]
        results = [request.result(LONG) for request in requests]
        assert engine.counts.served == len(jobs) and engine.counts.steps < engine.counts.calls
    for (output, facts), served in zip(alone, results, strict=True):
        expected, drawn = latents(output), latents(served.output)
        assert torch.allclose(drawn, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        mine = served.report.to_dict()
        assert mine["samples"][0]["actions"] == facts["samples"][0]["actions"]
        assert mine["samples"][0]["budget"] == facts["samples"][0]["budget"] and mine["complete"]
    assert "_diffusers_hook" not in vars(getattr(pipe, engine.name))


def test_a_request_that_fails_or_is_cancelled_harms_no_other(flux):
    class Stopped(Exception):
        pass

    def stop(*_: Any) -> Any:
        raise Stopped

    with Engine(flux, slots=3, error_budget=0.1) as engine:
        first, free = blocked(engine, flux)
        good = [engine.submit(flux_call(flux, sample)) for sample in (1, 2)]
        bad = engine.submit(flux_call(flux, 3) | {"callback_on_step_end": stop})
        wrong = engine.submit(flux_call(flux, 3) | {"max_sequence_length": 10**6})
        late = engine.submit(flux_call(flux, 4))
        late.cancel()
        free.set()
        first.result(LONG)
        drawn = [request.result(LONG) for request in good]
        with pytest.raises(Stopped):
            bad.result(LONG)
        with pytest.raises(ValueError, match="max_sequence_length"):
            wrong.result(LONG)
        with pytest.raises(CancelledError):
            late.result(LONG)
        again = [engine(flux_call(flux, sample)) for sample in (1, 2)]
        assert (engine.counts.served, engine.counts.failed, engine.counts.cancelled) == (5, 2, 1)
        assert not engine.running and not any(slot.on for slot in engine.slots.all)
    for one, other in zip(drawn, again, strict=True):
        assert torch.allclose(latents(one.output), latents(other.output), atol=1e-5)


def test_cancelled_half_way_it_ends_before_its_next_call(flux):
    with Engine(flux, slots=1, error_budget=0.0) as engine:
        seen, made = threading.Event(), list[Request]()

        def cancel(_: Any, step: int, *__: Any) -> Any:
            if step == 2:
                made[0].cancel()
                seen.set()
            return {}

        made.append(engine.submit(flux_call(flux) | {"callback_on_step_end": cancel}))
        with pytest.raises(CancelledError):
            made[0].result(LONG)
        assert seen.is_set() and engine.counts.calls == 3


def blocked(engine: Engine, pipe: Any) -> tuple[Request, threading.Event]:
    """A request that waits, at its first step, until the event is set."""
    free, there = threading.Event(), threading.Event()

    def wait(*_: Any) -> Any:
        there.set()
        free.wait(LONG)
        return {}

    request = engine.submit(flux_call(pipe) | {"callback_on_step_end": wait})
    assert there.wait(LONG)
    return request, free


def test_where_too_many_wait_one_more_is_refused(flux):
    with Engine(flux, slots=1, queue=2, error_budget=0.1) as engine:
        first, free = blocked(engine, flux)
        waiting = [engine.submit(flux_call(flux)) for _ in range(2)]
        with pytest.raises(BusyError, match="2 requests wait"):
            engine.submit(flux_call(flux))
        waiting.pop().cancel()  # and makes room at once
        waiting.append(engine.submit(flux_call(flux)))
        free.set()
        assert all(request.result(LONG).report.trace is not None for request in (first, *waiting))
        assert engine.counts.refused == 1


def test_budgets_grow_with_the_queue_up_to_the_largest(flux):
    with Engine(flux, slots=1, largest_budget=0.12, error_budget=0.05) as engine:
        first, free = blocked(engine, flux)
        waiting = [
            engine.submit(flux_call(flux), **asked) for asked in ({}, {"error_budget": 0.05}, {"error_budget": 0.3})
        ]
        free.set()
        reports = [request.result(LONG).report for request in waiting]
        first.result(LONG)
    assert [r.to_dict()["samples"][0]["budget"] for r in reports] == pytest.approx([0.12, 0.1, 0.3])
    raised = [any("where 0.05 was asked for" in note for note in report.warnings) for report in reports]
    assert raised == [True, True, False] and engine.counts.loosened == 2
    for odd in (-1, float("nan"), "much"):
        with pytest.raises(BudgetError):
            Engine(flux, largest_budget=odd)


def test_what_cannot_be_is_one_error_at_once(flux):
    with Engine(flux, slots=1, error_budget=0.1) as engine:
        with pytest.raises(PipelineError, match="takes no no_such_word"):
            engine.submit({"no_such_word": 1})
        with pytest.raises(BudgetError):
            engine.submit(flux_call(flux), error_budget=-1.0)
        with pytest.raises(ModeError, match="exactly one"):
            engine.submit(flux_call(flux), error_budget=0.1, speedup=2.0)
    with pytest.raises(BusyError, match="closed"):
        engine.submit(flux_call(flux))
    with pytest.raises(ModeError, match="slots=0"):
        Engine(flux, slots=0)


def test_closing_cancels_what_waits_and_lets_what_runs_end(flux):
    engine = Engine(flux, slots=1, error_budget=0.1)
    first, free = blocked(engine, flux)
    waiting = engine.submit(flux_call(flux))
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not waiting.cancelled:
        time.sleep(0.01)
    free.set()
    closing.join(LONG)
    assert first.result(LONG).report.trace is not None
    with pytest.raises(CancelledError):
        waiting.result(LONG)


def test_many_small_requests_some_cancelled_some_poisoned_lose_none(flux):
    chance = random.Random(1)
    with Engine(flux, slots=4, queue=1000, error_budget=0.1) as engine:
        call = flux_call(flux, 1, 2)
        requests = []
        for i in range(60):
            poisoned = {"prompt_embeds": call["prompt_embeds"] * torch.nan} if i % 20 == 7 else {}
            requests.append(engine.submit(call | poisoned, error_budget=chance.choice([0.0, 0.1])))
            if i % 12 == 5:
                requests[-1].cancel()
        ended = [request.future.exception(LONG) for request in requests]
        assert sum(isinstance(error, CancelledError) for error in ended) == engine.counts.cancelled
        assert engine.counts.served + engine.counts.cancelled == 60
        assert not [error for error in ended if error is not None and not isinstance(error, CancelledError)]
        served = {i: r.result() for i, r in enumerate(requests) if r.future.exception() is None}
        lost = {i for i, each in served.items() if any("not finite" in note for note in each.report.warnings)}
        assert lost == {i for i in range(60) if i % 20 == 7} & served.keys()
        assert not any(slot.on for slot in engine.slots.all)


def test_audits_are_the_errors_of_the_latents(flux):
    call = flux_call(flux)
    with Engine(flux, slots=2, audit=1.0, error_budget=0.5) as engine:
        served = engine(call)
    with dicache.enable(flux, error_budget=0.0):
        exact = latents(flux(**flux_call(flux)))
    drawn = latents(served.output)
    error = float((drawn - exact).norm() / exact.norm())
    assert error > 0
    (audited,) = engine.audits
    assert audited.error == pytest.approx(error, rel=1e-3) and audited.budget == 0.5


@pytest.mark.parametrize("name", sorted(PIPELINES.keys() - APART))
def test_requests_of_every_pipeline_are_as_alone(name):
    tiny_one = PIPELINES[name]
    pipe, jobs = quiet(tiny_one.make()), [(1, 0.5, 3), (2, 0.0, 5)]
    alone = []
    for sample, budget, steps in jobs:
        with dicache.enable(pipe, error_budget=budget) as cache:
            output = pipe(**call_of(pipe, tiny_one.draw, sample, steps))
            alone.append((latents(output), cache.report().to_dict()["samples"][0]["actions"]))
    with Engine(pipe, slots=2) as engine:
        calls = [call_of(pipe, tiny_one.draw, sample, steps) for sample, _, steps in jobs]
        served = [engine.submit(call, error_budget=job[1]) for call, job in zip(calls, jobs, strict=True)]
        for request, (expected, actions) in zip(served, alone, strict=True):
            result = request.result(LONG)
            assert result.report.to_dict()["samples"][0]["actions"] == actions
            assert torch.allclose(latents(result.output), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_what_changes_the_model_while_it_runs_is_refused():
    pipe = quiet(PIPELINES["SD3 perturbed attention"].make())
    with pytest.raises(ModeError, match="while it runs"):
        Engine(pipe)
    pipe = quiet(PIPELINES["Wan 2.2, two experts"].make())
    with pytest.raises(ModeError, match="one denoiser"):
        Engine(pipe)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # of torch, as without dicache
def test_the_precision_that_a_pipeline_runs_in_is_its_own():
    """Autocast belongs to a thread: the one that makes the calls takes it over."""

    class Autocast(type(quiet(tiny.make_flux()))):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return super().__call__(*args, **kwargs)

    pipe = quiet(tiny.make_flux())
    plain = latents(pipe(**flux_call(pipe)))
    pipe.__class__ = Autocast
    seen = list[torch.dtype]()
    handle = pipe.transformer.register_forward_pre_hook(
        lambda *_: seen.append(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else None
    )
    with Engine(pipe, slots=2, error_budget=0.0) as engine:
        drawn = latents(engine(flux_call(pipe)).output)
    handle.remove()
    assert seen and set(seen) == {torch.bfloat16} and not torch.equal(drawn.float(), plain.float())


def test_where_the_conductor_ends_nobody_waits_for_it(flux, monkeypatch):
    engine = Engine(flux, slots=2, error_budget=0.1)

    def fails(_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(engine.conductor, "_step", fails)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    requests = [engine.submit(flux_call(flux)) for _ in range(3)]
    for request in requests:
        with pytest.raises(BusyError, match="has ended"):
            request.result(LONG)
    assert not engine.alive
    engine.close()


@pytest.mark.parametrize("name", ["flux", "sd3", "unet"])
def test_in_groups_a_request_draws_the_same_bits_in_any_company(name):
    make, draw, options = MADE[name]
    pipe, chance = quiet(make()), random.Random(2)
    jobs = [(sample, chance.choice([0.0, 0.1, 0.5]), chance.choice([3, 4, 6])) for sample in range(4)]

    def submitted(engine: Engine, job: tuple[int, float, int]) -> Request:
        return engine.submit(call_of(pipe, draw, job[0], job[2], **options), error_budget=job[1])

    with Engine(pipe, slots=4, queue=100, batch_invariant=3) as engine:
        alone = [latents(submitted(engine, job).result(LONG).output) for job in jobs]
        assert engine.padding == pytest.approx(2 / 3, abs=0.1)
        for _ in range(3 if LONGER == 1 else 40):
            mixed = [chance.randrange(len(jobs)) for _ in range(8)]
            requests = [submitted(engine, jobs[i]) for i in mixed]
            for i, request in zip(mixed, requests, strict=True):
                assert torch.equal(latents(request.result(LONG).output), alone[i])
    with pytest.raises(ModeError, match="batch_invariant=0"):
        Engine(pipe, batch_invariant=0)


def test_without_ray_a_deployment_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerError, match=r"pip install 'dicache\[serve\]'"):
        deployment(tiny.make_flux)
