"""A cache for SGLang-diffusion, in the shape of its `DiffusionCache`: a model asks it at every forward whether the
stack of its blocks may be left out, and hands it what the stack made of its input where it ran.

    cache.maybe_reset()
    if cache.should_skip(...): hidden_states = cache.read(hidden_states)
    else: ... run the blocks ...; cache.write(hidden_states, original_hidden_states)

All that such a hook shows is the stack's input and output, and, by SGLang's forward context, the step, the timesteps of
the run and the guidance branch. Neither latents nor what the sampler does with outputs can be seen, so an error of the
final latent has no price here and a budget cannot be kept. What can be had is a number of computed steps: the plan is
that of `speedup=` (`dicache.controllers.counted`), known as soon as the run begins, and in the places of skipped stacks
stands the line through their last two residuals, along true time. All branches compute at the same steps.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.controllers.counted import Counted, Evaluations
from dicache.errors import ModeError
from dicache.solvers.timeline import Timeline, first_order
from dicache.tensors import history
from dicache.types import Action, Quote, Step

Level = Callable[[float], tuple[float, float]]
EXTRA = "dicache"
"""What a request's `extra` holds its run under."""
APPROXIMATORS: tuple[Approximator, ...] = (Extrapolate(), Reuse())


class SglangRequest(Protocol):
    """What is read of SGLang's request."""

    timesteps: Tensor
    """Of all steps, (steps,)."""
    is_cfg_negative: bool
    extra: dict[str, Any]


class SglangContext(Protocol):
    """What is read of SGLang's forward context."""

    current_timestep: int
    """The step's index."""
    forward_batch: SglangRequest


def straight(timestep: float) -> tuple[float, float]:
    """Signal and noise of flow matching, whose timesteps are sigmas times 1,000."""
    return 1 - timestep / 1000, timestep / 1000


class StackRun:
    """What is known of one request."""

    def __init__(self, rule: Counted, timeline: Timeline) -> None:
        self.rule, self.timeline = rule, timeline
        self.counts, self.index, self.skips = rule.init(1), -1, False
        self.residuals: dict[bool, Histories] = {}
        """By guidance branch, whether it is the negative one."""
        self.decisions = ""
        """A character a step: # for computed, / for skipped."""

    @property
    def step(self) -> Step:
        return self.timeline.reading(self, self.index).step

    def decide(self) -> None:
        """Once a step, by what the first branch remembers."""
        fills = torch.tensor([bool(self.residuals)])
        unknown = torch.full((1,), torch.inf, dtype=torch.float64)
        action = torch.tensor([int(Action.EXTRAPOLATE)])
        decision, self.counts = self.rule.decide(Quote(unknown, unknown, action, fills=fills), self.step, self.counts)
        self.skips = bool((decision.action != Action.COMPUTE).all())
        self.decisions += "/" if self.skips else "#"

    def remember(self, negative: bool, residual: Tensor) -> None:
        everything = torch.ones(len(residual), dtype=torch.bool)
        remembered = self.residuals.get(negative) or Histories(*(history.empty(n, len(residual)) for n in (2, 0, 0)))
        outputs = history.push(remembered.outputs, residual, self.step.sigma, everything, self.step.time)
        self.residuals[negative] = remembered._replace(outputs=outputs)

    def guess(self, negative: bool) -> Tensor:
        remembered = self.residuals[negative]
        best = next(a for a in APPROXIMATORS if len(remembered.outputs.values) >= a.needs)
        return best.guess(remembered, Target(self.step.sigma, None, time=self.step.time))


class StackCache:
    """As SGLang's `DiffusionCache`; `context` is its `get_forward_context`, and `level` tells signal and noise at a
    timestep. Each request has a run of its own, in its `extra`.

    Raises ModeError unless exactly one of speedup (1 or more) and evaluations (a whole number of 1 or more) is given.
    """

    def __init__(
        self,
        context: Callable[[], SglangContext],
        *,
        speedup: float | None = None,
        evaluations: int | None = None,
        level: Level = straight,
    ) -> None:
        asked = [value for value in (speedup, evaluations) if value is not None]
        if len(asked) != 1 or not asked[0] >= 1:
            raise ModeError(
                f"speedup={speedup}, evaluations={evaluations}. Expected exactly one of them, of 1 or more: a hook "
                "around the blocks sees no latents, so there is no error_budget here."
            )
        self.context, self.level = context, level
        self.rule = Counted(float(speedup)) if speedup is not None else Evaluations(float(asked[0]))

    def maybe_reset(self, **_: Any) -> None:  # noqa: ANN401
        """At every forward: a request that is new, or back at its first step, begins."""
        context = self.context()
        batch, index = context.forward_batch, int(context.current_timestep)
        run = batch.extra.get(EXTRA)
        if run is None or index < run.index:
            run = batch.extra[EXTRA] = StackRun(self.rule, self._timeline(batch))
        if index != run.index:
            run.index = index
            run.decide()

    def _timeline(self, batch: SglangRequest) -> Timeline:
        times = [float(time) for time in batch.timesteps.tolist()]
        return first_order(times, [self.level(time) for time in times], "flow_prediction")

    def should_skip(self, **_: Any) -> bool:  # noqa: ANN401
        """Whether the stack may be left out for this branch; one of which nothing is remembered computes."""
        run, negative = self._run()
        return run.skips and negative in run.residuals

    def read(self, hidden_states: Tensor, **_: Any) -> Tensor:  # noqa: ANN401
        """What the stack would have made of its input, (B, ...), about; a new tensor."""
        run, negative = self._run()
        return hidden_states + run.guess(negative)

    def write(self, hidden_states: Tensor, original_hidden_states: Tensor, **_: Any) -> None:  # noqa: ANN401
        """What it made, (B, ...), of what, (B, ...)."""
        run, negative = self._run()
        run.remember(negative, hidden_states - original_hidden_states)

    def calibrate(self, **_: Any) -> None:  # noqa: ANN401
        """Nothing is fitted."""

    def decisions(self, batch: SglangRequest) -> str:
        """A character a step of a request so far: # for computed, / for skipped; empty before its first."""
        run = batch.extra.get(EXTRA)
        return "" if run is None else str(run.decisions)

    def _run(self) -> tuple[StackRun, bool]:
        batch = self.context().forward_batch
        return batch.extra[EXTRA], bool(batch.is_cfg_negative)
