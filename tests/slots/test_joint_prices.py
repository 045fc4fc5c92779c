"""What skipping is priced at for many slots at once is what each would be told alone."""

import copy
from typing import Any

import pytest
import torch

import dicache
from dicache.config import Config
from dicache.controllers.planned import Planned
from dicache.estimators.amplitude import Amplitude
from dicache.estimators.closed_loop import ClosedLoop
from dicache.planning.error_law import MARGIN
from dicache.slots.call_form import MOST, CallForms
from dicache.types import Grid
from helpers.requesting import Requested, play
from pipelines.neighbours import quiet
from pipelines.tiny import make_flux

JOBS = ((1, 6, 0, 0.5), (2, 9, 1, 0.1), (3, 12, 2, 2.0), (4, 8, 2, 0.02), (5, 7, 4, 0.0))
"""Sample, steps, start and budget."""


@pytest.fixture(scope="module")
def pipe() -> Any:
    return quiet(make_flux())


def played(cache: dicache.Cache, pipe: Any, jobs: Any) -> list[Requested]:
    requests = [Requested(pipe, sample, steps, start, error_budget=budget) for sample, steps, start, budget in jobs]
    play(cache, requests)
    return requests


def noted(request: Requested) -> list[torch.Tensor]:
    trace = request.slot.report().trace
    return [t for r in trace.records for t in (r.action, r.reason, r.predicted, r.realised, r.spent)]


def test_prices_of_slots_at_steps_of_their_own_are_those_of_each_alone(pipe, monkeypatch):
    rows, predict = list[int](), Amplitude.predict

    def counting(self: Amplitude, evidence: Any, state: Any) -> Grid:
        rows.append(len(evidence.growth))
        return predict(self, evidence, state)

    monkeypatch.setattr(Amplitude, "predict", counting)
    with dicache.enable(pipe, error_budget=0.05) as cache:
        together = played(cache, pipe, JOBS)
        asked = rows.copy()
        alone = [played(cache, pipe, [(sample, steps, 0, budget)])[0] for sample, steps, _, budget in JOBS]
    assert max(asked) == 4  # the fifth remembers one value when the first is at its last step
    assert len(asked) < 0.75 * (len(rows) - len(asked))
    for one, solo in zip(together, alone, strict=True):
        # The latents of a joint call differ by its rounding, and errors are read off them.
        for mine, own in zip(noted(one), noted(solo), strict=True):
            assert torch.allclose(mine.double(), own.double(), rtol=1e-4, atol=1e-6, equal_nan=True)
        assert one.decisions == solo.decisions


def test_a_batch_in_one_slot_stands_beside_single_requests(pipe):
    with dicache.enable(pipe, error_budget=0.05) as cache:
        pair, one = Requested(pipe, 1, 8, error_budget=[0.02, 2.0]), Requested(pipe, 2, 8, error_budget=0.5)
        for name in ("hidden_states", "encoder_hidden_states", "pooled_projections"):
            other = Requested(pipe, 3, 8).kwargs[name]
            pair.kwargs[name] = torch.cat([pair.kwargs[name], other])
        pair.latent = pair.kwargs["hidden_states"].clone()
        twin = copy.copy(pair)
        twin.scheduler, twin.latent = copy.deepcopy(pair.scheduler), pair.latent.clone()
        play(cache, [pair, one])
        play(cache, [twin])
    samples = pair.slot.report().to_dict()["samples"]
    assert [str(s["actions"]) for s in samples] == [str(s["actions"]) for s in twin.slot.report().to_dict()["samples"]]
    assert samples[0]["actions"] != samples[1]["actions"]
    assert torch.allclose(pair.latent, twin.latent, atol=1e-5)


def test_other_estimators_are_asked_run_by_run(pipe):
    config = Config(Planned(0.5 / MARGIN), estimator=ClosedLoop())
    with dicache.enable(pipe, config=config) as cache:
        requests = [Requested(pipe, sample, 8) for sample in (1, 2)]
        play(cache, requests)
        solo = Requested(pipe, 2, 8)
        play(cache, [solo])
    assert requests[1].decisions == solo.decisions


def test_forms_of_calls_are_told_apart_and_not_kept_forever(pipe):
    with dicache.enable(pipe, error_budget=0.05) as cache:
        family = cache._slots.attachment.family
    call_forms, inputs = CallForms(family), Requested(pipe, 1, 4).inputs
    form = call_forms.of(inputs, inputs, 1)
    assert call_forms.of({**inputs, "hidden_states": inputs["hidden_states"] + 1}, inputs, 1) is form
    for other in (
        {**inputs, "hidden_states": inputs["hidden_states"][:, :8]},
        {**inputs, "return_dict": True},
        {**inputs, "joint_attention_kwargs": {"scale": 0.5}},
        {**inputs, "guidance": torch.ones(1)},
    ):
        assert call_forms.of(other, other, 1).kind != form.kind
    for k in range(MOST + 1):
        call_forms.of({**inputs, "joint_attention_kwargs": {"scale": k}}, inputs, 1)
    assert len(call_forms.by_shape) <= MOST
    unknown = {**inputs, "joint_attention_kwargs": {"object": object()}}
    assert call_forms.of(unknown, unknown, 1).kind == call_forms.of(unknown, unknown, 1).kind
