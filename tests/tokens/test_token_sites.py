"""Some tokens run where a step is skipped: the laws of every site, and what is exact about it."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import dicache
from dicache.approximators.hold import Reuse
from dicache.controllers.budgeted import Budgeted
from dicache.controllers.fixed import Fixed
from dicache.controllers.interval import Interval
from dicache.errors import ModeError, UnsupportedModelError
from dicache.estimators.closed_loop import ClosedLoop
from dicache.sites import Evaluation, Tokens
from dicache.token_choice import Clusters, InputChange, LastError, Random, Refresh, TokenChoice
from helpers.watching import count_macs, untouched
from pipelines.one_stream import draw_dit, draw_prx, draw_sana, make_dit, make_prx, make_sana
from pipelines.tiny import PIPELINES, Tiny, draw_flux, make_flux
from pipelines.two_streams import draw_chroma, make_chroma

STEPS = 10
TOKENED = {**PIPELINES, "one stream, class labels (dit)": Tiny(make_dit, draw_dit)}
FLUX = PIPELINES["two streams and one (flux)"]
GUIDED = PIPELINES["sequential guidance with named branches (flux)"]
CHOICES = {
    "error": LastError(0.5),
    "chance": Random(0.5),
    "refresh": Refresh(0.5, size=None),
    "clusters": Clusters(3, weight=0.5),
    "input": InputChange(0.3),
}


@pytest.fixture(params=TOKENED.values(), ids=TOKENED.keys())
def tiny(request) -> Tiny:
    return request.param


def config(sites: Evaluation, interval: int = 3) -> dicache.Config:
    return dicache.Config(Interval(interval), ClosedLoop(), sites=sites)


def cached(tiny: Tiny, rule: dicache.Config, samples: tuple[int, ...] = (1, 2)):
    pipe = tiny.make()
    with dicache.enable(pipe, config=rule) as cache:
        return tiny.draw(pipe, list(samples), STEPS), cache.trace


@pytest.mark.parametrize("rule", [Interval(1), Budgeted(0.0)], ids=["every step computes", "budget zero"])
def test_what_computes_is_bitwise_that_of_no_cache_and_disabling_restores(tiny, rule):
    pipe = tiny.make()
    plain = tiny.draw(pipe, [1, 2], STEPS)
    with dicache.enable(pipe, config=dicache.Config(rule, ClosedLoop(), sites=Tokens(Refresh(0.5)))):
        assert torch.equal(tiny.draw(pipe, [1, 2], STEPS), plain)
    assert untouched(pipe)
    assert torch.equal(tiny.draw(pipe, [1, 2], STEPS), plain)


def test_no_token_is_the_approximator_bitwise(tiny):
    latents, trace = cached(tiny, config(Tokens(LastError(0.0))))
    expected, whole = cached(tiny, config(Evaluation()))
    assert torch.equal(latents, expected) and bool((trace.executed < trace.uncached).all())
    assert trace.executed.sum() >= whole.executed.sum(), "trying out how blocks take some tokens is counted"


def test_all_tokens_are_the_full_step_bitwise(tiny):
    pipe = tiny.make()
    plain = tiny.draw(pipe, [1, 2], STEPS)
    latents, trace = cached(tiny, config(Tokens(LastError(1.0))))
    assert torch.equal(latents, plain) and bool((trace.executed >= trace.uncached).all())


@dataclass(frozen=True)
class AllButOne(TokenChoice):
    """So many that what is exact shows, and not all, which would compute."""

    def choose(self, seen, state):
        mask = torch.ones_like(seen.errors, dtype=torch.bool)
        mask[:, seen.index % mask.shape[1]] = False
        return mask, state


@pytest.mark.parametrize("line", [False, True], ids=["held", "on a line"])
@pytest.mark.parametrize("name", ["two streams, batched guidance (sd3)", "two streams and one (flux)"])
def test_tokens_against_keys_and_values_of_inputs_that_stand_still_give_what_they_gave(name, line):
    """The same latent at the same time, twice: keys and values that are stored equal those computed again, and the
    output of tokens that run equals that of the full step, but for the kernels of another length.
    """
    tiny = PIPELINES[name]
    pipe, calls = tiny.make(), []
    inner = pipe.transformer.forward

    def first_inputs(*args, **kwargs):
        calls.append((args, kwargs) if not calls else calls[0])
        return inner(*calls[0][0], **calls[0][1])

    pipe.transformer.forward = first_inputs
    outputs = []
    rule = dicache.Config(Fixed((frozenset({0, 1, 2}),)), Willing(), (Reuse(),), sites=Tokens(AllButOne(), line=line))
    with torch.no_grad(), dicache.enable(pipe, config=rule) as cache:
        pipe.transformer.register_forward_hook(lambda m, a, o: outputs.append(o[0].clone()))
        tiny.draw(pipe, [1, 2], STEPS)
        trace = cache.trace
    assert bool((trace.executed < trace.uncached).all())
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


class Willing(ClosedLoop):
    """Expects a little of what went without any error, which else counts as unknown."""

    def predict(self, evidence, state):
        return super().predict(evidence, state).nan_to_num(1e-6, 1e-6).clamp(min=1e-6)


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
def test_a_sample_runs_the_same_tokens_alone_and_in_a_batch(choice):
    tiny, masks = GUIDED, []

    @dataclass(frozen=True)
    class Watched(TokenChoice):
        reads_entering: ClassVar[bool] = choice.reads_entering
        reads_leaving: ClassVar[bool] = choice.reads_leaving

        def choose(self, seen, state):
            mask, state = choice.choose(seen, state)
            masks.append(mask)
            return mask, state

        def spread(self, tokens, guess, mask, state):
            return choice.spread(tokens, guess, mask, state)

    pipe = tiny.make()
    with dicache.enable(pipe, config=config(Tokens(Watched()))):
        alone = tiny.draw(pipe, [1], STEPS)
        own = masks.copy()
        masks.clear()
        together = tiny.draw(pipe, [5, 1, 9], STEPS)
    assert len(own) == len(masks) > 2
    assert all(torch.equal(a[0], b[1]) for a, b in zip(own, masks, strict=True))
    torch.testing.assert_close(together[1], alone[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("text", [False, True], ids=["text stands still", "text runs"])
def test_work_is_what_ran(tiny, text):
    pipe = tiny.make()
    with dicache.enable(pipe, config=config(Tokens(LastError(0.5), text, line=text, lasting=True))) as cache:
        tiny.draw(pipe, [1, 2], STEPS)  # costs are measured
        macs = count_macs(pipe.transformer)
        tiny.draw(pipe, [1, 2], STEPS)
        trace = cache.trace
    assert trace.executed.sum().item() == pytest.approx(sum(macs), rel=1e-2)
    assert 0 < trace.cache_bytes <= trace.planned_bytes


@pytest.mark.parametrize("line", [False, True], ids=["held", "on a line"])
def test_samples_that_compute_and_samples_that_run_tokens_share_a_call(line):
    """One sample's schedule in a batch of others' equals the same alone."""
    schedules = frozenset({0, 1, 2, 5}), frozenset({0, 1, 2, 4, 7})
    sites = Tokens(LastError(0.5), line=line, lasting=True)
    rules = [dicache.Config(Fixed((own,)), Willing(), sites=sites) for own in schedules]
    alone = [cached(GUIDED, rule, (sample,))[0][0] for rule, sample in zip(rules, (1, 2), strict=True)]
    both = dicache.Config(Fixed(schedules), Willing(), sites=sites)
    together, _ = cached(GUIDED, both, (1, 2))
    for latent, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(latent, expected, rtol=1e-3, atol=1e-3)


def test_a_second_run_equals_a_fresh_one():
    rule = config(Tokens(Clusters(8, weight=0.5, updates=True), lasting=True))
    wanted, _ = cached(GUIDED, rule, (3,))
    pipe = GUIDED.make()
    with dicache.enable(pipe, config=rule):
        GUIDED.draw(pipe, [1, 2], STEPS + 1)
        assert torch.equal(GUIDED.draw(pipe, [3], STEPS), wanted)


def test_one_token_a_cluster_is_exact_on_equal_tokens():
    """Tokens of four kinds at one place of a model whose keys and values are constant: whatever runs for one of a kind
    is what all of it would have given.
    """
    torch.manual_seed(3)
    pipe = make_flux()
    for name, parameter in pipe.transformer.named_parameters():
        if any(part in name for part in ("to_k.weight", "to_v.weight", "add_k_proj.weight", "add_v_proj.weight")):
            parameter.data.zero_()
    latents = torch.randn(2, 4, 4).repeat(1, 64, 1)
    rule = dicache.Config(
        Fixed((frozenset({0, 1}),)), Willing(), (Reuse(),), sites=Tokens(Clusters(4, weight=1.0), text=True)
    )
    pipe.transformer.pos_embed.forward = _at_one_place(pipe.transformer.pos_embed.forward)
    plain = draw_flux(pipe, [1, 2], STEPS, latents=latents)
    with dicache.enable(pipe, config=rule) as cache:
        followed = draw_flux(pipe, [1, 2], STEPS, latents=latents)
        work = (cache.trace.executed / cache.trace.uncached).max()
    assert work < 0.5
    torch.testing.assert_close(followed, plain, rtol=1e-4, atol=1e-4)
    with dicache.enable(pipe, config=dicache.Config(rule.controller, Willing(), (Reuse(),))):
        assert not torch.allclose(draw_flux(pipe, [1, 2], STEPS, latents=latents), plain, rtol=1e-2, atol=1e-2)


def _at_one_place(forward):
    return lambda ids: forward(torch.zeros_like(ids))


# What cannot be done.


@pytest.mark.parametrize(
    ("tiny", "reason"),
    [
        (Tiny(make_sana, draw_sana), "transformer_blocks.0"),
        (Tiny(make_prx, draw_prx), "meet elsewhere than in attention"),
        (Tiny(make_chroma, draw_chroma), "no square patches"),
    ],
    ids=["linear attention and convolutions", "attention of its own", "text and picture in one stream"],
)
def test_a_model_whose_tokens_cannot_run_alone_is_refused_by_name(tiny, reason):
    pipe = tiny.make()
    with dicache.enable(pipe, config=config(Tokens())), pytest.raises(UnsupportedModelError, match=reason) as error:
        tiny.draw(pipe, [1], STEPS)
    assert type(pipe.transformer).__name__ in str(error.value)
    assert untouched(pipe)


def test_compiled_blocks_and_what_is_no_choice_are_refused():
    pipe = make_flux()
    with pytest.raises(ModeError, match="compile_blocks"):
        dicache.enable(pipe, config=config(Tokens()), compile_blocks=True)
    assert untouched(pipe)
    with pytest.raises(ModeError, match="LastError"):
        Tokens("error")
