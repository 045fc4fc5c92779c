"""Three samples without a model: what shows at every step is drawn, and the parts of a configuration play over it."""

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch

from dicache.approximators.base import Histories, Target
from dicache.config import Config
from dicache.estimators.base import Estimator, Evidence
from dicache.tensors import history
from dicache.tensors.norms import relative_change
from dicache.types import Action, Quote, Step, Timetable

N, B = 24, 3
SIGMAS = [1 - i / N for i in range(N)]
TIMETABLE = Timetable(tuple(SIGMAS), (1 / N,) * N, tuple(-s for s in SIGMAS), 0)


@dataclass
class Toy:
    """What three samples show at every step, (N, B, ...): random walks of very different pace."""

    latent: np.ndarray
    feature: np.ndarray
    output: np.ndarray

    @staticmethod
    def drawn(seed: int, shape: tuple[int, ...] = (4,)) -> "Toy":
        generator = np.random.default_rng(seed)
        pace = np.array([0.02, 0.1, 0.3]).reshape(B, *[1] * len(shape))

        def walk():
            return 2 + np.cumsum(pace * generator.standard_normal((N, B, *shape)), axis=0)

        return Toy(walk(), walk(), walk())


def step(i: int) -> Step:
    return Step(i, N, SIGMAS[i], 1 / N, (i + 1) / N, (1.0, 0.0), timetable=TIMETABLE)


def played(config: Config, toy: Toy) -> tuple[list[str], np.ndarray]:
    """Estimator, controller and approximator of a preset over the toy: strips (# computed), and what is handed out."""
    (approximator,), estimator, controller = config.approximators, config.estimator, config.controller
    estimates, account = estimator.init(B, 1), controller.init(B)
    histories, strips, handed = Histories(*(history.empty(config.depth, B) for _ in range(3))), [""] * B, []
    unknown = torch.full((B,), torch.nan, dtype=torch.float64)
    for i in range(N):
        latent, feature, output = (torch.tensor(x[i]) for x in (toy.latent, toy.feature, toy.output))
        growth = approximator.growth(histories.outputs.sigmas, SIGMAS[i])
        evidence = Evidence(growth[:, None], unknown, unknown, 1.0, step(i), latent, feature)
        enough_values = histories.outputs.sigmas[approximator.needs - 1].isfinite()
        error = torch.where(enough_values, estimator.predict(evidence, estimates).min(1).values, torch.inf)
        decision, account = controller.decide(Quote(error, error, torch.ones(B)), step(i), account)
        computed = decision.action[:, 0] == Action.COMPUTE
        enough = len(histories.outputs.values) >= approximator.needs
        guess = (
            approximator.guess(histories, Target(SIGMAS[i], feature, latent, timetable=TIMETABLE)) if enough else output
        )
        handed.append(torch.where(computed.view(B, *[1] * (output.ndim - 1)), output, guess).numpy())
        realised = torch.where(enough_values, relative_change(guess, output), torch.nan)
        truth = output if bool(computed.any()) else None
        estimates = estimator.observe(realised[:, None], evidence._replace(output=truth), computed, estimates)
        histories = Histories(
            history.push(histories.outputs, output, SIGMAS[i], computed),
            history.push(histories.features, feature, SIGMAS[i], computed),
            histories.noises,
        )
        strips = [s + "=#"[c] for s, c in zip(strips, computed.tolist(), strict=True)]
    return strips, np.array(handed)


@dataclass(frozen=True)
class Poisoned(Estimator[Any]):
    """Another estimator, whose prediction for one row is not a number."""

    inner: Estimator[Any]
    row: int

    def init(self, samples, n_approximators):
        return self.inner.init(samples, n_approximators)

    def predict(self, evidence, state):
        predicted = self.inner.predict(evidence, state)
        predicted[self.row] = torch.nan
        return predicted

    def observe(self, realised, evidence, computed, state):
        return self.inner.observe(realised, evidence, computed, state)


def histories_at(times, value, feature=lambda sigma: torch.ones(2, 3)) -> Histories:
    outputs, features = history.empty(len(times), 2), history.empty(len(times), 2)
    for sigma in times:
        outputs = history.push(outputs, value(sigma), sigma, torch.ones(2, dtype=torch.bool))
        features = history.push(features, feature(sigma), sigma, torch.ones(2, dtype=torch.bool))
    return Histories(outputs, features, history.empty(len(times), 2))


UNEVEN = st.lists(st.integers(1, 40), min_size=5, max_size=5, unique=True).map(
    lambda ticks: [t / 20 for t in sorted(ticks, reverse=True)]
)
