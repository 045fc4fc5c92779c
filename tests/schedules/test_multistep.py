"""Slopes fitted along the cached run: what is fitted is what runs, every step is the least-squares answer, it pays on
other captions, and what cannot be fitted so is refused.
"""

import copy

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FluxKontextPipeline

import dicache
from dicache.approximators.base import Histories, Target
from dicache.approximators.fitted.run_slopes import RunSlopes
from dicache.errors import FittedError, ModeError, ScheduleError
from dicache.finders.base import MOST
from dicache.finders.fixed import FixedInterval
from dicache.finders.law_plan import Law
from dicache.finders.multistep import Multistep
from dicache.measuring.schedule_measurements import Calibration
from dicache.measuring.slopes_along_run import fit_slopes, uncached_steps
from dicache.promise.metrics import relative_error
from dicache.reference.scenes import prompts
from dicache.schedules.action_table import table_of
from dicache.schedules.schedule import Schedule
from dicache.sites import Evaluation, Spans
from dicache.types import Action
from helpers.calibrating import PROMPTS, Captioned
from helpers.fuzzing import LONG
from helpers.toy import histories_at
from pipelines.tiny import embeds

STEPS = 8
GUIDED = {"negative_prompt": "", "true_cfg_scale": 3.5}


@pytest.fixture(scope="module")
def pipe():
    return Captioned()


@pytest.fixture(scope="module")
def measurements(pipe):
    return Calibration(PROMPTS[:3], STEPS, call={"guidance": 4.0}).on(pipe, Evaluation())


def steps_of(measurements):
    """The uncached steps that its slopes are fitted to."""
    drawn = range(min(measurements.prompts, measurements.calibration.batch))
    return uncached_steps(measurements.drawer, measurements.basis, drawn)


def coefficients(a, b, newest, before):
    columns = {"a": a, "b": b, "newest": newest, "before": before}
    return {"": {name: torch.tensor(column, dtype=torch.float32) for name, column in columns.items()}}


def test_a_guess_is_its_equation_and_holds_where_a_row_comes_from_other_steps():
    sigmas = (1.0, 0.8, 0.5, 0.3)
    line = RunSlopes(coefficients([0, 0, 0, 0.5], [0, 0, 0, -2.0], [-1, -1, -1, 2], [-1, -1, -1, 0]), sigmas)
    outputs = histories_at([1.0, 0.5], lambda s: torch.full((2, 3), 10 * s)).outputs
    noises = histories_at([1.0, 0.5], lambda s: torch.full((2, 3), s)).outputs
    other = outputs._replace(sigmas=torch.tensor([[0.5, 0.5], [1.0, 0.8]], dtype=torch.float64))
    guess = line.guess(Histories(other, outputs, noises), Target(0.3, None))
    assert torch.allclose(guess[0], torch.full((3,), 5 + 0.5 * (5 - 10) - 2.0 * (0.5 - 1.0)))
    assert torch.equal(guess[1], outputs.values[0][1])
    with pytest.raises(FittedError, match="fitted for 4 steps"):
        line.guess(Histories(outputs, outputs, noises), Target(0.4, None))


@pytest.mark.parametrize("scheduler", ["as it is", "multistep"])
def test_the_run_that_was_fitted_is_the_run_of_the_schedule(scheduler):
    pipe = Captioned()
    if scheduler == "multistep":
        pipe.pipe.scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            use_dynamic_shifting=True,
            time_shift_type="exponential",
        )
    calibration = Calibration(PROMPTS[:3], STEPS, call={"guidance": 4.0})
    measurements, table = calibration.on(pipe, Evaluation()), table_of(list("##*#**##"))
    fitted, latents, guidance = fit_slopes(
        measurements.drawer, measurements.basis, range(3), steps_of(measurements), table, 1e-4
    )
    coefficients, _ = Multistep()._fitted(measurements, table)
    assert guidance == coefficients.about.guidance == pytest.approx(4.0, rel=1e-3)
    assert [int(n) for n in fitted.newest] == [-1, -1, 1, -1, 3, 3, -1, -1]
    assert [int(n) for n in fitted.before] == [-1, -1, 0, -1, 1, 1, -1, -1]
    played = measurements.errors([table], coefficients)[0]
    assert played == pytest.approx(relative_error(latents, measurements.reference[:3]).numpy(), rel=1e-3, abs=1e-6)


def test_every_step_is_as_near_to_the_uncached_run_as_its_two_slopes_can_bring_it(measurements):
    """Of the first skipped step: moving either slope leaves the next latent farther from the uncached one."""
    taken, table, step = steps_of(measurements), table_of(list("##*#####")), 2
    fitted = fit_slopes(measurements.drawer, measurements.basis, range(3), taken, table, 1e-9).slopes
    (newest, other), here = (taken[1], taken[0]), taken[step]
    sigmas = measurements.basis.sigmas
    noises = [
        at.before + (1 - sigma) * at.output for at, sigma in zip((newest, other), (sigmas[1], sigmas[0]), strict=True)
    ]

    def missed(a, b):
        line = newest.output + a * (newest.output - other.output) + b * (noises[0] - noises[1])
        left = [
            ((p - q).double() ** 2).flatten(1).sum(1) for p, q in ((line, here.output), (newest.output, here.output))
        ]
        return float((left[0] / left[1]).sum())

    a, b = float(fitted.a[step]), float(fitted.b[step])
    assert missed(a, b) < 0.99 * missed(0, 0)
    assert all(missed(a, b) < missed(a + x, b + y) for x, y in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)))


def test_the_uncached_steps_are_those_of_the_solver(measurements):
    """For flow matching x' = x + (sigma' - sigma) v."""
    taken = uncached_steps(measurements.drawer, measurements.basis, range(2))
    ends = [*measurements.basis.sigmas[1:], 0.0]
    for at, sigma, end in zip(taken, measurements.basis.sigmas, ends, strict=True):
        assert at.carries == pytest.approx(1.0, abs=1e-3) and at.adds == pytest.approx(end - sigma, abs=1e-3)


@pytest.mark.long
def test_on_other_captions_it_loses_less_than_the_same_steps_without_and_fixed_intervals(reference):
    lost = []
    for k in range(2 if LONG > 1 else 1):
        mine = Calibration(prompts("calibration", 8, seed=400 + k), 10, seed=100 * k, call=GUIDED)
        unseen = Calibration(prompts("calibration", 4, seed=500 + k), 10, seed=7000 + 100 * k, call=GUIDED)
        there = unseen.on(reference, Evaluation())
        plan = Multistep().find(reference, Evaluation(), mine, cost=0.6)
        law = [
            Law().find(reference, Evaluation(), mine, cost=0.6),
            FixedInterval().find(reference, Evaluation(), mine, cost=0.6),
        ]
        lost.append([there.errors([plan.table], plan.fitted).mean(), *(there.errors([s.table]).mean() for s in law)])
    ours, line, interval = np.mean(lost, axis=0)
    assert ours < 0.9 * line and ours < 0.8 * interval


def test_a_schedule_with_its_slopes_is_saved_and_runs_alike(pipe, measurements, tmp_path):
    plan = Multistep().find(pipe, Evaluation(), measurements.calibration, cost=0.7)
    assert isinstance(plan, Schedule) and set(np.unique(plan.table)) == {Action.COMPUTE, Action.CORRECT}
    plan.save(tmp_path / "s.json")
    drawn = []
    for schedule in (plan, tmp_path / "s.json"):
        with dicache.enable(pipe, schedule=schedule) as cache:
            drawn.append(pipe.draw([5, 6], STEPS))
        assert (cache.trace.executed == plan.macs).all()
    assert torch.equal(*drawn) and Schedule.load(tmp_path / "s.json").fitted.about.kind == "multistep"
    within = Multistep().find(pipe, Evaluation(), measurements.calibration, budget=plan.error)
    assert within.work <= plan.work and within.error <= plan.error


def test_what_cannot_be_fitted_is_refused_by_name_and_the_scheduler_is_as_it_was(pipe, measurements, monkeypatch):
    with pytest.raises(ScheduleError, match="whole evaluations"):
        Multistep().find(pipe, Spans(), measurements.calibration, cost=0.6)
    with pytest.raises(ScheduleError, match="Give a cost or a budget"):
        Multistep().find(pipe, Evaluation(), measurements.calibration)
    wrong = [lambda ridge=ridge: Multistep(ridge=ridge) for ridge in (0.0, -1.0, float("inf"), float("nan"))]
    for broken in (*wrong, lambda: Multistep(longest=0), lambda: Law(decay=-1.0)):
        with pytest.raises(ScheduleError, match=r"Expected|expected"):
            broken()
    with pytest.raises(ModeError, match="Expected one of ridge"):
        dicache.fit(pipe, PROMPTS[:2], steps=STEPS, kind="multistep")

    def failing(*args, **kwargs):
        raise KeyboardInterrupt

    taken = steps_of(measurements)  # what is measured before
    monkeypatch.setattr(type(pipe.scheduler), "step", failing)
    with pytest.raises(KeyboardInterrupt):
        fit_slopes(measurements.drawer, measurements.basis, range(3), taken, table_of(list("##*#####")), 1e-4)
    assert "step" not in vars(pipe.scheduler) and not pipe.transformer._forward_hooks


class ByHand(Captioned):
    """A loop of its own. `bend` is what the scheduler is given of an output, `times` how often it steps."""

    def __init__(self, bend, times=1):
        super().__init__()
        self.bend, self.times = bend, times

    def __call__(self, prompts, *, num_inference_steps, generator, callback_on_step_end, **kwargs):
        samples = [int(prompt.split()[1]) for prompt in prompts]
        arguments = {
            "encoder_hidden_states": embeds(samples, 8, 32, salt=1),
            "pooled_projections": embeds(samples, 32, salt=2),
            "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(8, 3),
            "return_dict": False,
        }
        latents = torch.cat([torch.randn(1, 16, self.transformer.config.in_channels, generator=g) for g in generator])
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_inference_steps, num_inference_steps), mu=0.0)
        twin = copy.deepcopy(self.scheduler)  # as for sound beside pictures
        for i, t in enumerate(self.scheduler.timesteps):
            output = self.transformer(latents, timestep=t.expand(len(samples)) / 1000, **arguments)[0]
            if self.times == 2:
                twin.step(output, t, latents)
            if self.times:
                latents = self.scheduler.step(self.bend(output), t, latents, return_dict=False)[0]
            else:
                latents = latents - output / num_inference_steps
            callback_on_step_end(self, i, t, {"latents": latents})
        return (latents,)


class Edited(Captioned):
    """Beside a picture whose tokens are appended to the latent."""

    def __init__(self):
        super().__init__()
        nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        self.pipe.vae.register_to_config(shift_factor=0.06)
        parts = {"scheduler": self.scheduler, "vae": self.pipe.vae, "transformer": self.transformer}
        self.pipe = FluxKontextPipeline(**parts, **nothing)
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, prompts, **kwargs):
        picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return super().__call__(prompts, image=picture, _auto_resize=False, max_area=32 * 32, **kwargs)


def test_slopes_are_fitted_along_runs_beside_a_picture():
    pipe, calibration = Edited(), Calibration(PROMPTS[:2], STEPS, call={"guidance": 4.0})
    measurements, table = calibration.on(pipe, Evaluation()), table_of(list("##*#**##"))
    assert all(at.output.shape == at.before.shape == (2, 256, 4) for at in steps_of(measurements))
    fitted, lost = Multistep()._fitted(measurements, table)
    assert fitted.about.guidance == pytest.approx(4.0, rel=1e-4), (
        "tokens that no step moves tell nothing of the mixture"
    )
    reused = measurements.errors([np.where(table == Action.CORRECT, Action.REUSE, table)])[0]
    assert measurements.errors([table], fitted)[0] == pytest.approx(lost, rel=1e-3) and lost.mean() < reused.mean()


@pytest.mark.parametrize(
    ("bend", "times"),
    [(lambda v: v.sign() * v.abs().sqrt(), 1), (torch.neg, 1), (torch.clone, 2), (torch.clone, 0)],
    ids=["rescaled", "negated", "a copy steps too", "no scheduler"],
)
def test_a_pipeline_that_changes_outputs_before_its_scheduler_sees_them_is_refused(bend, times):
    with pytest.raises(ScheduleError, match="between its denoiser and its scheduler"):
        Multistep().find(ByHand(bend, times), Evaluation(), Calibration(PROMPTS[:2], STEPS), cost=0.6)


def test_a_loop_of_ones_own_that_hands_outputs_on_is_fitted(tmp_path):
    pipe, calibration = ByHand(torch.clone), Calibration(PROMPTS[:2], STEPS)
    plan = Multistep(ridge=1).find(pipe, Evaluation(), calibration, cost=0.8)
    plan.save(tmp_path / "s.json")
    assert Schedule.load(tmp_path / "s.json").error == plan.error and plan.work < 0.8


def test_every_count_of_steps_is_tried_in_two_ways_where_none_is_asked_for(measurements):
    tables = Multistep().tables(measurements, None, 0)
    counts = [int((table == Action.COMPUTE).sum()) for table in tables]
    assert len(tables) <= MOST and len({table.tobytes() for table in tables}) == len(tables)
    assert sorted(set(counts)) == list(range(3, STEPS + 1)) and {counts.count(n) for n in set(counts)} <= {1, 2}
