"""One hook on one module: put on, looked for, taken off, whatever others put on or took off meanwhile.

Diffusers keeps its hooks in a registry and links them; accelerate (sequential offload) wraps `forward` and keeps what
it wrapped in `_old_forward`. Taking off the hook must leave both in place, and leave nothing of its own behind.
"""

from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from dicache.errors import CopyError

NAME = "dicache"


class Uncopied:
    """What is tied to one model. A copy of it would run the weights of the first."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Uncopied":
        raise CopyError("a model that dicache is enabled on cannot be copied. Call disable() on its Cache first.")

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:  # noqa: ANN401
        raise CopyError(
            "a model that dicache is enabled on cannot be pickled, or sent to another process. "
            "Call disable() on its Cache first; save_pretrained and state_dict work as they are."
        )


class ModuleHook:
    """A hook of the registry, put on when this is made."""

    def __init__(self, module: nn.Module, hook: ModelHook) -> None:
        self.module, self.hook = module, hook
        self.had = {"forward", "_diffusers_hook"} & set(vars(module))
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, NAME)
        self.worn, self.runs = module.forward, hook.fn_ref.forward

    def keep(self) -> None:
        """Put the hook back where one inside of it was taken off: diffusers then has the next one outside call what was
        inside, in the place of what it runs itself.
        """
        reference = self.hook.fn_ref
        if reference.forward is not self.runs:
            reference.original_forward, reference.forward = reference.forward, self.runs

    @property
    def alive(self) -> bool:
        """Whether calls of the module reach the hook: offload that is turned off brings back an older `forward`."""
        state, hooks = vars(self.module), registry_of(self.module)._hook_order
        return hooks[-1] != NAME or self.worn in (state.get("forward"), state.get("_old_forward"))

    def remove(self) -> None:
        self.keep()
        registry, state = registry_of(self.module), vars(self.module)
        wrapped, inside = self.module.forward, self.hook.fn_ref.original_forward
        later = registry._fn_refs[registry._hook_order.index(NAME) + 1 :]
        runs = later[0].forward if later else None
        registry.remove_hook(NAME, recurse=False)
        if later and later[0].original_forward is not None:  # it calls what it wraps itself
            later[0].forward, later[0].original_forward = runs, inside
        if not later and wrapped is not self.worn:
            self.module.forward = wrapped
        if state.get("_old_forward") is self.worn:
            self.module._old_forward = inside
        self._tidy(registry)

    def _tidy(self, registry: HookRegistry) -> None:
        state = vars(self.module)
        if registry.hooks:
            return
        if "forward" not in self.had and "_old_forward" not in state:
            state.pop("forward", None)
        if "_diffusers_hook" not in self.had:
            state.pop("_diffusers_hook", None)


def registry_of(module: nn.Module) -> Any:  # noqa: ANN401
    """The registry of diffusers on this module; None if it has none."""
    return vars(module).get("_diffusers_hook")
