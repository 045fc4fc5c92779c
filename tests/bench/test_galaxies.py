"""The galaxies: weights are read as they are written, every solver draws with them, and figures are counted."""

import numpy as np
import pytest
import torch

from dicache.bench.models.galaxies import SIZE, SOLVERS, Galaxies, GalaxyNet, filled
from dicache.bench.studies.galaxies import rows


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_file_of_arrays_fills_a_network_and_every_solver_draws_with_it(solver, tmp_path):
    torch.manual_seed(0)
    source, path = GalaxyNet(solver), tmp_path / "net.eqx"
    with path.open("wb") as file:
        for layer in source.layers():
            for parameter in layer.parameters():
                value = parameter.detach()
                np.save(
                    file, (value.flip(2, 3).transpose(0, 1) if parameter is source.conv_out.weight else value).numpy()
                )
    net = filled(GalaxyNet(solver), path)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), source.state_dict().values(), strict=True))
    galaxies, noise = Galaxies(net, solver, 3), torch.randn(1, 1, SIZE, SIZE)
    drawn = galaxies.draw(galaxies.target(), noise)
    assert drawn.shape == noise.shape and bool(drawn.isfinite().all())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError):
        filled(GalaxyNet(solver), path)


def test_a_budget_is_held_against_the_least_work_that_would_have_been_enough():
    lines = [
        {"budget": 0.05, "work": 0.6, "errors": [0.01, 0.02, 0.06, 0.01]},
        {"budget": 0.02, "work": 0.8, "errors": [0.01, 0.01, 0.02, 0.01]},
        {"budget": 0.2, "work": 0.4, "errors": [0.3, 0.2, 0.1, 0.1]},
    ]
    assert list(rows(lines)) == [(0.02, 1.0, 0.8, 1.0), (0.05, 0.75, 0.6, pytest.approx(0.75))]
