"""Watching a run: what is told of a call is what the sites computed and how many steps ago, and nothing is changed."""

import torch

import dicache
from dicache.config import Config
from dicache.controllers.fixed import Fixed
from dicache.controllers.interval import Interval
from dicache.measuring.recording import LongHistory, Recorder
from dicache.probes.raw_latent import RawLatent
from dicache.sites import Evaluation, Spans
from helpers.calibrating import STEPS, Captioned


def watched(config, samples=(1, 2)):
    """The calls of a run, what the denoiser gave in each, the recorder, the mixture afterwards, the final latents."""
    pipe, calls, outputs = Captioned(), [], []
    with dicache.enable(pipe, config=config) as cache:
        recorder = Recorder(cache)
        handle = pipe.transformer.register_forward_hook(lambda module, args, output: outputs.append(output[0].clone()))
        with recorder.calls(pipe.transformer, calls.append):
            latents = pipe.draw(list(samples))
        handle.remove()
        mixture = recorder.mixture
    return calls, outputs, recorder, mixture, latents


def test_every_call_is_told_with_what_was_computed_at_the_steps_before():
    config = Config(Interval(1), approximators=(LongHistory(3),), sites=Evaluation())
    calls, outputs, recorder, mixture, latents = watched(config)
    assert torch.equal(latents, Captioned().draw([1, 2])), "watching changes nothing"
    per_step = len(calls) // STEPS
    for k, call in enumerate(calls):
        step = k // per_step
        assert call.step.index == step and call.first == (k % per_step == 0)
        (record,) = call.sites
        assert [value.steps_ago for value in record.values] == list(range(min(step + 1, 3)))
        for ago, value in enumerate(record.values):
            assert torch.equal(value.output, outputs[k - ago * per_step]) and value.feature is None
    assert recorder.facts.guidance is not None and len(recorder.facts.timetable.sigmas) == STEPS
    assert [len(chunks) for chunks in mixture] == [1] * per_step


def test_what_was_skipped_is_told_with_how_long_ago_it_was_computed():
    config = Config(Fixed((frozenset({0, 1, 4, 5}),)), approximators=(LongHistory(2),))
    calls, *_ = watched(config)
    ago = {call.step.index: [value.steps_ago for value in call.sites[0].values] for call in calls}
    assert ago[0] == [0] and ago[1] == [0, 1] and ago[4] == [0, 3] and ago[6] == [1, 2] and ago[9] == [4, 5]


def test_sites_inside_the_denoiser_are_told_each_with_their_macs_and_features_where_a_probe_looks():
    config = Config(Interval(1), approximators=(LongHistory(2, features=True),), probe=RawLatent())
    (record,) = watched(config)[0][-1].sites
    assert all(value.feature is not None for value in record.values)
    calls, _, recorder, *_ = watched(Config(Interval(1), approximators=(LongHistory(2),), sites=Spans(1)))
    last = calls[-1]
    assert [record.site for record in last.sites] == list(recorder.sites)
    assert len(last.site_macs) == len(recorder.sites) and min(last.site_macs) > 0
