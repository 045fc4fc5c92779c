"""Every test runs offline and on one thread, so that it does not depend on what else the machine does."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import diffusers
import hypothesis
import pytest
import torch
import transformers

from helpers.fuzzing import LONG

torch.set_num_threads(1)
diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()


class TorchNumbers:
    """torch's generator as hypothesis seeds it, so that an example that failed fails again."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_NUMBERS = TorchNumbers()
hypothesis.register_random(TORCH_NUMBERS)
hypothesis.settings.register_profile("dicache", deadline=None, derandomize=LONG == 1, max_examples=25 * LONG)
hypothesis.settings.load_profile("dicache")


@pytest.fixture(scope="session")
def reference():
    """The reference pipeline; tests disable what they enable."""
    from dicache.reference.assembly import pipeline

    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Runs a `main` in this process as a shell would: exit code, output, errors."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
        return (code, *capsys.readouterr())

    return run
