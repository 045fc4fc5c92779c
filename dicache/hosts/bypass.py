"""A call of which no row computes does not enter the denoiser: what it would give is guessed from outside, so neither
its blocks nor what lies around them, nor anybody's hooks on them, are asked.

Whether it will be so is decided before the call, where the rule looks at nothing inside (`EvaluationSite.leaves_out`).
The denoiser's forward is then left out by a hook of diffusers' registry. Others may wrap that forward later, which
leaves the hook where it is, or put an older one back, as model offload does after each run; then it is put on anew.
"""

from collections.abc import Callable, Hashable
from functools import partial

from diffusers.hooks import ModelHook
from torch import nn

from dicache.hosts.module_hook import ModuleHook, Uncopied
from dicache.runtime.evaluation_site import EvaluationSite
from dicache.runtime.session import Session
from dicache.tensors.tree import Tree, filled, nothing_like

Key = tuple[Hashable, ...]
MOST = 16
"""Kinds of calls whose outputs' shapes are remembered."""


class Leaving(Uncopied, ModelHook):
    heard: bool

    def __init__(self) -> None:
        super().__init__()
        self.prepared: Callable[[], Tree] | None = None
        """What is given in the place of running the denoiser, in this call."""
        self.heard = True
        """Whether the call before came through here."""

    def new_forward(self, module: nn.Module, *args: Tree, **kwargs: Tree) -> Tree:
        prepared, self.prepared, self.heard = self.prepared, None, True
        return self.fn_ref.original_forward(*args, **kwargs) if prepared is None else prepared()


class Bypass(Uncopied):
    """Of one denoiser. Where it is compiled as a whole, or sites lie inside it, every call enters it."""

    denoiser: nn.Module
    session: Session
    outputs: dict[Key, Tree]
    left: bool
    leaving: Leaving
    reached: bool

    def __init__(self, denoiser: nn.Module, session: Session) -> None:
        self.denoiser, self.session = denoiser, session
        self.alone = True
        """Whether this process computes all of it: what parts tokens over ranks waits for its like on the others."""
        self.outputs = dict[Key, Tree]()
        """Shaped as what the denoiser returned when it ran last, by the calls' keys; they hold nothing."""
        self.left = False
        """Whether the call that is going on is left out."""
        self.hook: ModuleHook | None = None
        self.leaving = Leaving()
        self.reached = False

    def put_on(self) -> None:
        if type(self.session.strategy) is EvaluationSite and self.denoiser._compiled_call_impl is None:
            self.hook = ModuleHook(self.denoiser, self.leaving)

    def look(self, *, hooked: bool) -> None:
        """Before a call: whether it will reach the hook, which is known of the one before. `hooked` says whether it
        reaches those inside.
        """
        self.left = False
        self.reached, self.leaving.heard, self.leaving.prepared = self.leaving.heard and hooked, False, None
        if self.hook is None or not hooked:
            return
        self.hook.put_back()
        if not self.hook.alive and (not self.reached or "_old_forward" in vars(self.denoiser)):
            self.reached = False  # this call is under way; the next will be heard
            self.hook.hook = self.leaving = Leaving()  # a new one: the old one may be inside still
            self.hook.renew()

    def prepare(self, key: Key) -> None:
        """Leave out the denoiser's forward in the call that has begun, if no row of it computes."""
        strategy, call, output = self.session.strategy, self.session.call, self.outputs.get(key)
        if output is None or call is None or not (self.reached and self.alone):
            return
        if isinstance(strategy, EvaluationSite) and strategy.leaves_out(call):
            self.leaving.prepared, self.left = partial(strategy.left_out, call, output), True

    def remember(self, key: Key, output: Tree) -> None:
        """What the denoiser returned."""
        if self.hook is None or self.left:
            return
        if len(self.outputs) >= MOST:
            self.outputs = {}
        self.outputs[key] = filled(output, nothing_like)

    def remove(self) -> None:
        if self.hook is not None:
            self.hook.remove()
        self.hook, self.outputs = None, {}
