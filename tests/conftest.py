"""Every test runs offline and on one thread, so that it does not depend on what else the machine does."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import diffusers
import hypothesis
import pytest
import torch
import transformers

torch.set_num_threads(1)
diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
hypothesis.settings.register_profile("dicache", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("dicache")


@pytest.fixture(scope="session")
def reference():
    """The reference pipeline; tests disable what they enable."""
    from dicache.reference.assembly import pipeline

    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe
