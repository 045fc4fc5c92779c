"""What model cards measure: real clips and pictures score as they must."""

import itertools

import pytest
import torch
from PIL import Image

from dicache.bench.models.clips import PACES, clips, shown
from dicache.bench.models.training import clips_card, emoji_card
from dicache.bench.models.training.cards import nearer, save_grid


def single(count):
    return list(itertools.islice((c for c in clips("test", seed=3) if len(c.movers) == 1), count))


def test_real_clips_move_as_far_as_their_captions_say_and_still_ones_do_not():
    asked = single(40)
    real = clips_card.figures(shown(asked), asked)
    assert real["change from frame to frame, still"] == 0
    assert real["change from frame to frame, slowly"] < real["change from frame to frame, quickly"]
    assert all(0.9 < real[f"share of the way, {pace}, median"] < 1.1 for pace in PACES)


@pytest.mark.parametrize("card", [clips_card, emoji_card])
def test_a_real_one_is_found_at_once_and_another_ones_is_not(card):
    shape = (6, 3, 5, 32, 32) if card is clips_card else (6, 3, 48, 48)
    real = card.shrunk(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    assert nearer(real, real) == 0
    assert nearer(real.roll(1, 0), real) > 0.3
    assert nearer(real + 1e-3, real) == 0


def test_a_grid_is_as_wide_as_its_pixels(tmp_path):
    sheet = torch.zeros(3, 2, 3)
    sheet[0, 1, 2] = 1.0
    save_grid(sheet, 4, tmp_path / "pictures.png")
    with Image.open(tmp_path / "pictures.png") as saved:
        assert saved.size == (12, 8)
        assert saved.getpixel((11, 7)) == (255, 0, 0) and saved.getpixel((7, 7)) == (0, 0, 0)
