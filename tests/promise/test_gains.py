"""Gains: how far errors of sites below the whole evaluation reach the final latent, and budgets that need them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import dicache
from dicache.approximators import Reuse
from dicache.controllers import Budgeted, ByKind, Clip, Gains, Interval, Planned, WithGains
from dicache.errors import ModeError, ProfileError
from dicache.estimators import Estimator
from dicache.fanout.workers import Workers
from dicache.files.checkpoint import Checkpoint
from dicache.measuring.gains import Injected, Injection, gains_of, measure_gains
from dicache.measuring.prompt_runs import Drawer
from dicache.measuring.recording import Recorder
from dicache.planning.error_law import REMAINS
from dicache.promise.choose_profile import profiles_for
from dicache.promise.metrics import relative_error
from dicache.sites import Drafted, Evaluation, Skips, Spans, Sublayers, Tail
from dicache.types import Kind, Quote, Site
from helpers.calibrating import LEVELS, PROMPTS, STEPS, Captioned
from helpers.toy import B, step
from pipelines.tiny import GUIDANCE

A, SHARE, SLOPE, LONG = 0.3, 0.5, 0.4, 10


class Grows(nn.Module):
    """(h, x) to (h + a h, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        h, x = hidden_states.chunk(2, dim=1)
        return hidden_states + torch.cat([A * h, 0 * x], dim=1)


class Adds(Grows):
    """(h, x) to (h + b x, x)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        _, x = hidden_states.chunk(2, dim=1)
        return hidden_states + torch.cat([SHARE * x, 0 * x], dim=1)


class LinearDenoiser(nn.Module):
    """The velocity is c (1 + a + b) x."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Grows(), Adds()])

    def forward(self, latent: Tensor, timestep: Tensor) -> Tensor:
        hidden = torch.cat([latent, latent], dim=1)
        for block in self.blocks:
            hidden = block(hidden_states=hidden)
        return SLOPE * hidden.chunk(2, dim=1)[0]


class LinearPipeline:
    def __init__(self) -> None:
        self.transformer, self.scheduler = LinearDenoiser(), FlowMatchEulerDiscreteScheduler()

    def __call__(
        self, prompt: Sequence[str], *, num_inference_steps: int, generator: Any, callback_on_step_end: Any, **_: Any
    ) -> tuple[Tensor]:
        sigmas = [1 - i / num_inference_steps for i in range(num_inference_steps)]
        self.scheduler.set_timesteps(sigmas=sigmas)
        latent = torch.stack([torch.randn(4, 2, 2, generator=each) for each in generator])
        for i, time in enumerate(self.scheduler.timesteps):
            latent = self.scheduler.step(self.transformer(latent, time.expand(len(latent))), time, latent)[0]
            callback_on_step_end(self, i, time, {"latents": latent})
        return (latent,)


@dataclass(frozen=True)
class Last(Estimator[Tensor]):
    """The error that was seen last: on the linear model it is that of every step."""

    def init(self, samples, n_approximators):
        return torch.full((samples, n_approximators), torch.inf, dtype=torch.float64)

    def predict(self, evidence, state):
        return state

    def observe(self, realised, evidence, computed, state):
        return torch.where(computed[:, None] & realised.isfinite(), realised, state)


LINEAR = dicache.Config(Interval(1), Last(), (Reuse(),), sites=Spans(1))


def expected(index: int, site: int) -> float:
    """Of one cell in closed form, with x_{t+1} = (1 - r) x_t, r = c (1 + a + b) / T, and sigma_t = 1 - t / T: what the
    final latent is off by over what it is priced at.
    """
    whole = 1 + A + SHARE
    slope, stream = SLOPE * whole, [1 + A, whole][site]
    rate = slope / LONG
    stale = 1 / (1 - rate) - 1
    added = [A, SHARE][site]
    true = SLOPE * added * stale / LONG * (1 - rate) ** (LONG - 1 - index) / (1 - rate) ** (LONG - index)
    share, before = added / (stream**2 + 1) ** 0.5, 1 - (index - 1) / LONG
    return true / (stale * share / LONG * slope / (1 - before * slope) * REMAINS)


@pytest.fixture(scope="module")
def measured() -> tuple[Drawer, Gains]:
    drawer = Drawer(LinearPipeline(), ["one", "two", "three", "four"], LONG, 0, {}, images=False)
    with Workers(drawer.pipe, None, "") as workers:
        return drawer, measure_gains(workers, drawer, LINEAR, "", Checkpoint(None, []), batch=5)


def test_gains_of_a_linear_model_are_those_of_its_closed_form(measured):
    drawer, gains = measured
    with dicache.enable(drawer.pipe, config=LINEAR) as cache:
        drawer.draw([0])
        times = Recorder(cache).facts.timetable.half_log_snrs
    steps = [3, 4, 5, 7, 8, 9]
    assert gains.half_log_snrs == tuple(times[index] for index in steps) and gains.parts == LINEAR.parts
    wanted = [[expected(index, site) for site in (0, 1)] for index in steps]
    np.testing.assert_allclose(gains.values, wanted, rtol=2e-4)
    assert gains.values[0][0] < 0.95 * gains.values[0][1], "an error of the first block reaches less far"


@pytest.mark.parametrize("site", [0, 1])
def test_with_its_gains_a_skip_of_a_linear_model_is_priced_at_what_it_costs(measured, site):
    drawer, gains = measured
    exact = drawer.draw([0, 1]).latents
    rule = WithGains(Injected((Injection(5, site), Injection(8, site))), gains)
    with dicache.enable(drawer.pipe, config=replace(LINEAR, controller=rule)) as cache:
        true = relative_error(drawer.draw([0, 1]).latents, exact)
    assert cache.trace.records[-1].spent.tolist() == pytest.approx(true.tolist(), rel=1e-3)
    assert (true > 0).all()


def test_between_its_points_the_logarithm_of_a_gain_goes_along_a_line():
    gains = Gains((-1.0, 1.0), ((1.0, 2.0), (4.0, 8.0)))
    assert [gains.at(0, time) for time in (-9.0, -1.0, 0.0, 1.0, 9.0)] == pytest.approx([1, 1, 2, 4, 4])
    assert gains.at(1, 0.0) == pytest.approx(4.0)
    assert gains.at(1, None) == 8.0, "where nobody knows how much noise there is, the largest"
    assert Gains().at(3, 0.5) == 1.0


def test_a_cell_of_which_nothing_is_known_has_its_sites_largest_gain():
    ratios = {Injection(3, 0): [1.0, 3.0, 8.0], Injection(5, 0): [0.5], Injection(5, 1): [2.0]}
    gains = gains_of(ratios, [1.0, 0.0], [3, 5], 2, "parts")
    assert gains == Gains((0.0, 1.0), ((0.5, 2.0), (3.0, 2.0)), "parts")
    with pytest.raises(ProfileError, match="site 1 of parts was never skipped"):
        gains_of({Injection(3, 0): [1.0]}, [0.0], [3], 2, "parts")


@pytest.mark.parametrize(
    ("times", "values"),
    [((0.0,), ()), ((1.0, 0.0), ((1.0,), (1.0,))), ((0.0,), ((-1.0,),)), ((0.0, 1.0), ((1.0,), (1.0, 2.0)))],
    ids=["no values", "falling", "below zero", "of other sites"],
)
def test_gains_that_make_no_sense_are_refused(times, values):
    with pytest.raises(ModeError, match="finite and above 0"):
        Gains(times, values)


def test_the_rule_inside_is_quoted_the_cost_times_the_gain():
    cost = torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64)
    quote = Quote(cost, cost, torch.ones(B))
    rule = WithGains(Budgeted(1.0), Gains((0.0,), ((2.0, 3.0),))).at(Site("block", Kind.SPAN, index=1), 4)
    decision, _ = rule.decide(quote, step(20), rule.init(B))
    assert decision.spent.tolist() == pytest.approx((3 * cost).tolist())
    assert rule.error_budget == 0.5


# A budget over sites below the evaluation needs them.


@pytest.mark.parametrize("sites", [Tail(), Spans(1), Sublayers(), Skips(1), Drafted()], ids=repr)
def test_a_budget_below_the_evaluation_is_refused_by_name_until_its_gains_are_known(sites):
    rules = Planned(0.05), Clip(Planned((0.0, 0.05))), ByKind({Kind.SPAN: Planned(0.05)})
    for rule in rules:
        with pytest.raises(ModeError, match=rf"error budget over {type(sites).__name__}\(.*calibrate\(.*Interval\(2\)"):
            dicache.Config(rule, sites=sites)
    for rule in (Planned(0.0), Interval(2), WithGains(Planned(0.05), Gains()), Clip(WithGains(Planned(0.05), Gains()))):
        assert dicache.Config(rule, sites=sites).sites == sites
    assert dicache.Config(Planned(0.05), sites=Evaluation()).controller == Planned(0.05)


@pytest.mark.parametrize("around", [lambda rule: rule, Clip, lambda rule: ByKind({Kind.SPAN: rule})])
def test_gains_of_other_parts_are_refused_whatever_stands_around_them(around):
    rule = WithGains(Planned(0.05), Gains((0.0,), ((1.0,),), "others"))
    with pytest.raises(ModeError, match="gains were measured with others"):
        dicache.Config(around(rule), sites=Tail())


def test_gains_of_other_parts_are_refused():
    parts = dicache.Config(Interval(1), sites=Tail()).parts
    rule = WithGains(Planned(0.05), Gains((0.0,), ((1.0,),), parts))
    assert dicache.Config(rule, sites=Tail()).parts == parts
    with pytest.raises(ModeError, match=r"gains were measured with Tail\(.*and Config has Tail\(size=None, back=1"):
        dicache.Config(rule, sites=Tail(back=1))


# And a profile holds them.


@pytest.fixture(scope="module")
def tail() -> dicache.Profile:
    config = dicache.Config(Interval(1), sites=Tail())
    call = {"guidance": GUIDANCE}
    options = {"steps": STEPS, "batch": 4, "levels": LEVELS, "call": call, "progress": False}
    return dicache.calibrate(Captioned(), PROMPTS, config=config, **options)


def test_a_profile_of_sites_below_the_evaluation_comes_back_with_its_gains(tail, tmp_path):
    tail.save(tmp_path / "tail.json")
    loaded = dicache.load_profile(tmp_path / "tail.json")
    assert loaded.gains == tail.gains and loaded.facts == tail.facts
    assert len(tail.gains.values[0]) == 1 and tail.gains.model == tail.facts.model


def test_its_rule_keeps_the_budget_and_the_report_says_by_which_profile(tail):
    pipe = Captioned()
    exact, bound = pipe.draw(range(12)), tail.smallest("latent", 0.8).bound
    with dicache.enable(pipe, config=dicache.Config(tail.rule(bound, 0.8), sites=Tail())) as cache:
        error = relative_error(pipe.draw(range(12)), exact)
    report = cache.report().to_dict()
    assert cache.report().compute_speedup > 1 and (error <= bound).double().mean() >= 0.8
    assert report["samples"][0]["budget"] == bound and report["profile"] == tail.name


def test_a_level_is_shared_out_among_sites_as_it_was_when_it_was_tested(tail):
    rule = tail.rule(0.1)
    state = rule.at(Site("block", Kind.SPAN), 4).init(2)
    assert state.way.account.budget.tolist() == [rule.init(2).way.account.budget[0] / 2] * 2


def test_it_is_for_its_composition_and_its_model_alone(tail):
    with pytest.raises(ProfileError, match=r"was calibrated with Tail\(.*profile\.rule\(0\.05\)"):
        profiles_for(tail.facts.model, tail)
    other = Captioned()
    torch.nn.init.normal_(other.transformer.x_embedder.weight)
    with pytest.raises(ProfileError, match="gains are of another model"):
        dicache.enable(other, config=dicache.Config(tail.rule(0.1), sites=Tail()))


CALIBRATION = {"steps": STEPS, "batch": 4, "levels": LEVELS, "call": {"guidance": GUIDANCE}}
INJECTED = 6 * 4
"""Samples with an injection: six steps, one site, four prompts."""


@pytest.mark.parametrize("runs", [0, 1, 3, 8], ids="killed after {}".format)
def test_a_kill_while_gains_are_measured_loses_one_batch_of_them(tail, tmp_path, runs):
    pipe, config = Captioned(), dicache.Config(Interval(1), sites=Tail())
    pipe.fail_after = runs
    with pytest.raises(KeyboardInterrupt):
        dicache.calibrate(pipe, PROMPTS, config=config, checkpoint=tmp_path, progress=False, **CALIBRATION)
    pipe.fail_after = None
    resumed = dicache.calibrate(pipe, PROMPTS, config=config, checkpoint=tmp_path, progress=False, **CALIBRATION)
    assert resumed.gains == tail.gains
    for key, value in tail.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[key], value)
    assert resumed.about["cost"]["samples"] <= tail.about["cost"]["samples"] - 4 * min(runs, 7)
    other = replace(config, sites=Tail(back=1))
    with pytest.raises(ProfileError, match="holds other measurements"):
        dicache.calibrate(pipe, PROMPTS, config=other, checkpoint=tmp_path, progress=False, **CALIBRATION)


def test_what_gains_take_and_what_follows_is_said_after_one_uncached_run(capsys):
    pipe, config = Captioned(), dicache.Config(Interval(1), sites=Tail())
    pipe.fail_after = 1
    with pytest.raises(KeyboardInterrupt):
        dicache.calibrate(pipe, PROMPTS, config=config, progress=True, **CALIBRATION)
    told = capsys.readouterr().err
    after = len(PROMPTS) * (1 + len(LEVELS))
    assert f"gains first, of 1 site at 6 steps on 4 prompts: {INJECTED} samples, about " in told
    assert f"and then {after} samples within levels, at most " in told


def test_gains_are_not_measured_where_they_mean_nothing():
    with pytest.raises(ProfileError, match="gains are those of sites inside the denoiser"):
        dicache.calibrate(Captioned(), PROMPTS, steps=STEPS, config=dicache.Config(Interval(1)), progress=False)
    together = dicache.Config(Interval(1), sites=Spans(1), together=True)
    with pytest.raises(ProfileError, match="Leave out together=True"):
        dicache.calibrate(Captioned(), PROMPTS, steps=STEPS, config=together, progress=False)
