"""How often the host waits for a device, counted on the CPU by `dicache.bench.harness.host_waits`."""

import pytest
import torch

import dicache
from dicache.bench.harness import host_waits
from dicache.controllers import Interval
from dicache.reference import pipeline
from dicache.sites import Spans

CAPTION = "small red star on white background"


@pytest.mark.parametrize("config", [None, dicache.Config(Interval(3), sites=Spans())])
def test_the_host_waits_once_for_each_computed_step_when_the_next_one_begins(config):
    pipe, waits = pipeline(), list[int]()
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 10, "true_cfg_scale": 3.5, "negative_prompt": "", "output_type": "latent"}
    how = {"error_budget": 0.3} if config is None else {"config": config}
    with dicache.enable(pipe, **how) as cache, host_waits.counted(pipe) as counter:
        pipe.transformer.register_forward_pre_hook(lambda *_: waits.append(counter.waits), prepend=True)
        pipe([CAPTION], generator=[torch.Generator().manual_seed(5)], **options)
    ahead, within = waits[2::2], waits[3::2]
    computed = [bool((record.action == 0).any()) for record in cache.trace.records]
    assert not all(computed)
    for i in range(2, 8):
        begun = within[i] - ahead[i]
        assert begun == computed[i], f"step {i} is over in the first call of the next one"
        assert ahead[i + 1] == within[i], "nothing is asked when a step has begun"
