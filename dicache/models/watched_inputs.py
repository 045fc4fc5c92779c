"""What a denoiser is called with beside latent and time, watched: prompts, pooled ones, control residuals, pictures to
go by, masks, scales. What is remembered of a run is of these; where they are others, it says nothing.

Of every branch each input is held against the one of the call before, and is

    new      called with once; the same again makes it steady, another one makes it doubtful
    steady   the same at call after call; another one is a CHANGE, after which it is new
    doubtful another at the second call: the same again is a CHANGE, then steady; yet another one, and it is moving
    moving   another at every call, as control residuals are; then only its size counts: a CHANGE is where ||x|| of an
             input (B, .., ..) grows by more than twice what it grew by at the call before, or less than half, or
             begins or ends to be 0; inputs of fewer axes, times and the like, are not looked at any more

The same is what lies where it lay and was written to no more often (`_version`), else what has the same content: many
pipelines join their prompts anew at every step. On the host content is compared at once. No device is waited for: there
a comparison is put into its queue, and its answer read at a later call, once it has come; but what was one object call
after call and is another object then counts as changed without. Inference tensors have no version and are copied.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

import torch
from torch import Tensor

from dicache.tensors.norms import length
from dicache.tensors.tree import Tree

RATIO, FIRST_RATIO = 2.0, 4.0
"""Between how much a moving input grows from call to call and how much it grew before, from which on it has changed;
the second where it was not seen to grow before. Residuals of a ControlNet double in a step of eight.
"""


_CONTROLS = re.compile("control|residual|adapter|image|face")
"""In the names of inputs that steer a run beside its prompt."""


class State(Enum):
    NEW, STEADY, DOUBTFUL, MOVING = auto(), auto(), auto(), auto()


class Answer:
    """Numbers of a device that nobody waits for."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers: Tensor = numbers
        self.event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self.numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(numbers.device))

    @property
    def came(self) -> bool:
        return self.event is None or bool(self.event.query())


@dataclass
class Input:
    """One of them, in one branch."""

    latest: Tree
    """At the call before; None while it is moving."""
    version: int | None = None
    state: State = State.NEW
    object_stayed: bool = False
    """Whether it was one object at the last two calls."""
    size: float | None = None
    growth: float | None = None
    """While it is moving: ||x||, and how many times that of the call before."""
    missed: int = 0
    """At how many calls nobody saw it since then."""
    answer: Answer | None = None
    """Whether it differed, or what its size is, as was asked at an earlier call."""

    @property
    def moves(self) -> bool:
        return self.state is State.MOVING

    def changed(self, value: Tree) -> bool:
        """At this call it is `value`."""
        if self.answer is not None and not self.answer.came:
            return False
        answer, self.answer, changed = self.answer, None, False
        if not self.moves:
            changed = answer is not None and self._follows(bool(answer.numbers))
        if self.moves:
            return self._resized(value, answer) or changed
        other = self._other(value)
        changed = changed if other is None else self._follows(other) or changed
        if self.moves:
            self._resized(value, None)
        return changed

    def _other(self, value: Tree) -> bool | None:
        """Whether it is another than at the call before; None where that was asked of a device."""
        before, version, stayed = self.latest, self.version, self.object_stayed
        self.remember(value)
        if not isinstance(value, Tensor) or not _comparable(before, value):
            return type(before) is not type(value) or isinstance(value, Tensor) or bool(before != value)
        if before.data_ptr() == value.data_ptr() and before.stride() == value.stride():
            self.object_stayed = version == self.version
            return not self.object_stayed
        if value.device.type == "cpu":
            return not torch.equal(before, value)
        if stayed:
            return True
        self.answer = Answer((before != value).any())
        return None

    def remember(self, value: Tree) -> None:
        counts = isinstance(value, Tensor) and not value.is_inference()
        self.version, self.object_stayed = value._version if counts else None, False
        self.latest = value if counts or not isinstance(value, Tensor) else value.clone()

    def _follows(self, other: bool) -> bool:
        """The next state; whether that is a change."""
        before = self.state
        if not other:
            self.state = State.STEADY
            return before is State.DOUBTFUL
        self.state = {State.NEW: State.DOUBTFUL, State.STEADY: State.NEW}.get(before, State.MOVING)
        if self.moves:
            self.latest = None
        return before is State.STEADY

    def _resized(self, value: Tree, answer: Answer | None) -> bool:
        """Whether a moving input has changed; `answer` is its size at an earlier call."""
        if answer is None and isinstance(value, Tensor) and value.ndim > 2 and value.is_floating_point():
            answer = Answer(length(value[None])[0])
            if not answer.came:
                self.answer = answer
                return False
        if answer is None and (value is not None or self.size is None):
            return False
        before, self.size = self.size, 0.0 if answer is None else float(answer.numbers)
        missed, self.missed = self.missed, 0
        if before is None or before == self.size or not math.isfinite(before + self.size):
            return False
        if before and self.size:
            usual, self.growth = self.growth, (self.size / before) ** (1 / (missed + 1))
            ratio = self.growth / (usual or 1.0)
            if max(ratio, 1 / ratio) < (FIRST_RATIO if usual is None else RATIO):
                return False
        self.state, self.size, self.growth = State.NEW, None, None
        self.remember(value)
        return True


@dataclass
class BranchInputs:
    """The inputs of one branch by name: those in lists and mappings one by one."""

    inputs: dict[str, Input] = field(default_factory=dict)
    calls: int = 0

    def changed(self, values: Mapping[str, Tree], unseen: Collection[int]) -> list[str]:
        """The names of those that changed, now that they are `values`; the `id` of some is `unseen`."""
        for name in values.keys() - self.inputs.keys():
            self.inputs[name] = Input(None, state=State.NEW if self.calls < 2 else State.STEADY)
            if self.calls == 0:
                self.inputs[name].remember(values[name])
        self.calls += 1
        if self.calls == 1:
            return []
        hidden = {name for name, value in values.items() if id(value) in unseen}
        for name in hidden:
            self.inputs[name].missed += 1
        return [name for name, each in self.inputs.items() if name not in hidden and each.changed(values.get(name))]


class Conditions:
    """Those of one run."""

    def __init__(self) -> None:
        self.branches: dict[str, BranchInputs] = {}
        self.unseen: Collection[int] = ()
        """The `id` of what only stands in for an input, for rows that read nothing of it: it is not looked at."""

    def changed(self, branch: str, inputs: Mapping[str, Tree]) -> list[str]:
        """The names of those that changed, now that the branch is called with `inputs`."""
        values = dict(_leaves(inputs))
        changed = self.branches.setdefault(branch, BranchInputs()).changed(values, self.unseen)
        return sorted({name.partition("[")[0] for name in changed})

    def settled(self, branch: str) -> bool:
        """Whether a call with the very same inputs as the last one changes nothing, also of what is known of them."""
        inputs = self.branches[branch].inputs.values()
        return all(each.state in (State.STEADY, State.MOVING) and each.answer is None for each in inputs)


def controls_among(inputs: Mapping[str, Tree]) -> set[str]:
    """The names of those that steer a run beside its prompt: residuals of controls and adapters, pictures."""
    names = {name.partition("[")[0] for name, value in _leaves(inputs) if value is not None}
    return set(filter(_CONTROLS.search, names))


def _leaves(inputs: Mapping[str, Tree]) -> Iterator[tuple[str, Tree]]:
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            yield from _leaves({str(key): each for key, each in value.items()})
        elif isinstance(value, list | tuple):
            yield from _leaves({f"{name}[{i}]": each for i, each in enumerate(value)})
        elif value is None or isinstance(value, bool | int | float | str) or _is_plain(value):
            yield name, value


def _is_plain(value: Tree) -> bool:
    """Whether it is a tensor that has an address."""
    plain = type(value) in (Tensor, torch.nn.Parameter)
    return plain and value.layout is torch.strided and value.device.type in ("cpu", "cuda")


def _comparable(before: Tree, value: Tensor) -> bool:
    facts = ("shape", "dtype", "device")
    return isinstance(before, Tensor) and all(getattr(before, fact) == getattr(value, fact) for fact in facts)
