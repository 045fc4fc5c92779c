"""What finders search on: a tiny pipeline, and scenes of the reference model."""

import pytest

from dicache.measuring.schedule_measurements import Calibration
from dicache.reference.scenes import prompts
from helpers.calibrating import PROMPTS, Captioned

GUIDED = {"negative_prompt": "", "true_cfg_scale": 3.5}


@pytest.fixture(scope="module")
def pipe():
    return Captioned()


@pytest.fixture(scope="module")
def calibration():
    return Calibration(PROMPTS[:2], 8, call={"guidance": 4.0})


@pytest.fixture(scope="module")
def scenes():
    """Three calibrations on captions of their own, 10 steps."""
    return [Calibration(prompts("calibration", 2, seed=300 + k), 10, seed=100 * k, call=GUIDED) for k in range(3)]
