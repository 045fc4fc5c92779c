"""Whatever happens to a pipeline, in any order: a run that nothing happens in is that of a fresh cache; prompts,
adapters and weights that change half-way, runs that break off or that another one comes within, say so; and no error
is far above what was estimated. Of guidance whose branches are nearly alike nothing is said: there only the error is
looked at.
"""

import threading
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from peft import LoraConfig

import dicache
from dicache.errors import BusyError
from dicache.promise.metrics import relative_error
from helpers.fuzzing import LONG
from helpers.watching import strips
from pipelines.neighbours import lora_layers, quiet
from pipelines.table import PIPELINES

NAMES = ("FLUX.1 guided", "SD3", "Wan 2.1", "CogView 4", "SD3 ControlNet")
STEPS, FAR = 10, 600
MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
AT = st.integers(2, STEPS - 3)


pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # autocast's


class Broken(Exception):
    """What a user's callback raises."""


class Situations(RuleBasedStateMachine):
    """One pipeline, enabled once. Each rule is one run or more; what is drawn is drawn without dicache too."""

    @initialize(name=st.sampled_from(NAMES), budget=st.sampled_from([0.02, 0.1]))
    def enable(self, name: str, budget: float) -> None:
        self.tiny, self.budget = PIPELINES[name], budget
        self.pipe = quiet(self.tiny.make())
        self.cache = dicache.enable(self.pipe, error_budget=budget)
        self.adapters = 0

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.disable()

    # Runs.

    def draw(self, samples: list[int], steps: int = STEPS, **kwargs: Any) -> torch.Tensor:
        return self.tiny.draw(self.pipe, samples, steps, **kwargs).detach().clone()

    def plain(self, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The same without dicache, which is then on again as before."""
        before = self.cache
        before.disable()
        latents = draw()
        self.cache = dicache.enable(self.pipe, error_budget=self.budget)
        return latents

    def notes(self) -> list[str]:
        return [note for note in self.cache.report().warnings if "half-way" in note or "began anew" in note]

    def keeps(self, cached: torch.Tensor, draw: Callable[[], torch.Tensor]) -> None:
        """What was just drawn is as far from what the same gives without dicache as was estimated, or not far above:
        models that were never trained are four times further now and then.
        """
        told = [sample["estimated_error"] or 0.0 for sample in self.cache.report().to_dict()["samples"]]
        plain = self.plain(draw)
        assert bool(cached.isfinite().all()) and bool(plain.isfinite().all())
        assert float(relative_error(cached.float(), plain.float()).max()) <= 8 * max(*told, self.budget)

    def undisturbed(self, draw: Callable[[], torch.Tensor]) -> None:
        """A run in which nothing changes: as a fresh cache's, and nothing is said of it."""
        cached, decided = draw(), strips(self.cache)
        assert self.notes() == [] and self.cache.report().trace.complete
        self.keeps(cached, draw)
        assert torch.equal(cached, draw()) and decided == strips(self.cache), "that of a fresh cache"

    @rule(samples=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True))
    def run(self, samples: list[int]) -> None:
        self.undisturbed(lambda: self.draw(samples))

    @rule(steps=st.integers(4, 14))
    def run_other_steps(self, steps: int) -> None:
        self.undisturbed(lambda: self.draw([1, 2], steps))

    @rule(mode=st.sampled_from(sorted(MODES)))
    def run_in(self, mode: str) -> None:
        with MODES[mode]():
            self.undisturbed(lambda: self.draw([3]))

    @rule()
    def run_in_a_thread(self) -> None:
        drawn: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: drawn.append(self.draw([4])))
        thread.start()
        thread.join(FAR)
        decided = strips(self.cache)
        assert torch.equal(drawn[0], self.draw([4])) and decided == strips(self.cache)

    @rule()
    def load(self) -> None:
        """An adapter between two runs."""
        self._adapt()
        self.undisturbed(lambda: self.draw([5]))

    # Runs in which something happens.

    def changing(self, step: int, act: Callable[[], None], undo: Callable[[], None], word: str) -> None:
        """What `act` changes after a step is said by `word`, and no more is lost than estimates may miss."""

        def draw() -> torch.Tensor:
            try:
                return self.draw([1, 2], callback_on_step_end=at_step(step, act))
            finally:
                undo()

        cached, notes = draw(), self.notes()
        self.keeps(cached, draw)
        assert any(word in note for note in notes), f"nothing was said of it: {self.cache.report().warnings}"

    @rule(step=AT)
    def switch_the_prompt(self, step: int) -> None:
        held: list[Any] = []

        def others(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "encoder_hidden_states": kwargs["encoder_hidden_states"].flip(1) * 1.3}

        def act() -> None:
            held.append(self.pipe.transformer.register_forward_pre_hook(others, prepend=True, with_kwargs=True))

        self.changing(step, act, lambda: held.pop().remove(), "conditions were changed half-way (encoder_hidden_states")

    @rule(step=AT, factor=st.sampled_from([1.05, 1.3]))
    def write_weights(self, step: int, factor: float) -> None:
        weight = next(m for m in self.pipe.transformer.modules() if isinstance(m, torch.nn.Linear)).weight
        before = weight.detach().clone()

        def act() -> None:
            with torch.no_grad():
                weight.mul_(factor)

        def undo() -> None:
            with torch.no_grad():
                weight.copy_(before)

        self.changing(step, act, undo, "weights were changed half-way")

    @rule(step=AT)
    def load_half_way(self, step: int) -> None:
        loaded: list[bool] = []

        def act() -> None:
            if not loaded:
                loaded.append(True)
                self._adapt()

        self.draw([1], callback_on_step_end=at_step(step, act))
        assert any("LoRA was changed half-way" in note for note in self.notes())

    @rule(step=AT, scale=st.sampled_from([1.5, 12.0]))
    def guide_otherwise_half_way(self, step: int, scale: float) -> None:
        def act() -> None:
            self.pipe._guidance_scale = scale

        def draw() -> torch.Tensor:
            return self.draw([1, 2], callback_on_step_end=at_step(step, act))

        self.keeps(draw(), draw)

    @rule(step=AT)
    def break_off(self, step: int) -> None:
        def act() -> None:
            raise Broken

        with pytest.raises(Broken):
            self.draw([7, 8], callback_on_step_end=at_step(step, act))
        report = self.cache.report()
        assert not report.trace.complete and any("interrupted" in note for note in report.warnings)

    @rule(step=AT)
    def run_another_within(self, step: int) -> None:
        other = self._twin()

        def draw() -> torch.Tensor:
            return self.draw([1], callback_on_step_end=at_step(step, lambda: self.tiny.draw(other, [9], STEPS)))

        cached = draw()
        assert self.notes(), "a run that was taken up again says so"
        self.keeps(cached, draw)

    @rule(step=AT)
    def call_from_another_thread(self, step: int) -> None:
        other, raised = self._twin(), list[BusyError]()

        def intrude() -> None:
            try:
                self.tiny.draw(other, [9], STEPS)
            except BusyError as error:
                raised.append(error)

        def act() -> None:
            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join(FAR)

        disturbed = self.draw([1], callback_on_step_end=at_step(step, act))
        assert len(raised) == 1 and torch.equal(disturbed, self.draw([1]))

    @invariant()
    @precondition(lambda self: hasattr(self, "cache"))
    def nothing_is_left_of_a_call(self) -> None:
        assert self.cache.session.call is None

    def _twin(self) -> Any:
        """A second pipeline with the same denoiser, and a scheduler of its own."""
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        other = quiet(type(self.pipe)(**{**self.pipe.components, "scheduler": scheduler}))
        vars(other).update({name: value for name, value in vars(self.pipe).items() if name == "default_sample_size"})
        return other

    def _adapt(self) -> None:
        self.adapters += 1
        if self.adapters == 1:
            config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
            self.pipe.transformer.add_adapter(config)
        for layer in lora_layers(self.pipe.transformer):
            layer.set_scale("default", 0.3 + 0.7 * (self.adapters % 2))


def at_step(step: int, act: Callable[[], None]) -> Callable[..., dict[str, Any]]:
    def callback(pipe: Any, index: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == step:
            act()
        return {}

    return callback


PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking takes longer than reading."""
TestSituations = Situations.TestCase
TestSituations.settings = settings(
    max_examples=3 * LONG, stateful_step_count=8 if LONG == 1 else 16, deadline=None, phases=PHASES
)
