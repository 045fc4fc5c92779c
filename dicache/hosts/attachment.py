"""Attaching a session to a denoiser, and taking it off without a trace.

Blocks, and the modules around them, get a hook of diffusers' own registry, so weights, `state_dict`, offload and LoRA
are untouched; the denoiser itself gets two plain torch hooks (`dicache.hosts.denoiser_call`). The first block's hook
also receives the `cache_context` that some pipelines set, and is told when the pipeline's run is over. Whatever was not
there before is removed again: `__dict__` is then what it was.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from dicache.config import Config
from dicache.hosts.bypass import Bypass
from dicache.hosts.checks import check_apart, check_eager, check_free, check_offloaded
from dicache.hosts.compiled_blocks import Compilation, refuse_wrapped
from dicache.hosts.denoiser_call import DenoiserCalls
from dicache.hosts.module_hook import NAME, FirstHook, Hooks, SessionHook, Uncopied, registry_of
from dicache.hosts.running_pipeline import loop_of
from dicache.models.family import Family
from dicache.models.find_blocks import check_streams, family_of, find
from dicache.parallel.ranks import Ranks
from dicache.ranks.branches import BranchRanks
from dicache.ranks.sums import SharedSums, alone
from dicache.runtime.owner import Owner
from dicache.runtime.session import Session
from dicache.sites import Tokens
from dicache.solvers.timeline import Clock
from dicache.tokens.fit import check_family
from dicache.tokens.token_site import TokenSite
from dicache.types import Step


class Attachment(Uncopied):
    """A session on a denoiser; `compiling` are the options of `torch.compile` for its blocks, None to compile none.

    Raises UnsupportedModelError, AlreadyEnabledError, ModeError or RanksError, and then has changed nothing.
    """

    ranks: Ranks
    session: Session
    hooks: Hooks
    handles: list[Any]
    calls: DenoiserCalls
    denoiser: nn.Module

    def __init__(
        self,
        denoiser: nn.Module,
        config: Config,
        clock: Clock,
        compiling: Mapping[str, Any] | None = None,
        family: Family | None = None,
        ranks: ProcessGroup | BranchRanks | None = None,
    ) -> None:
        self.family: Family = family_of(denoiser, family)
        parts = find(denoiser, self.family)
        if family is not None:
            check_streams(parts.blocks, family)
        refuse_wrapped(parts.blocks)
        check_free(denoiser)
        check_offloaded(parts.blocks.values(), config)
        sites = config.sites.select(parts.blocks, config.probe.depth)
        self.family.check(sites, config.probe.depth, tuple(parts.blocks))
        for approximator in config.approximators:
            approximator.check(denoiser, sites)
        inside = dict.fromkeys(path for site in sites for path in site.modules if path not in parts.blocks)
        deciding = {**parts.blocks, **{path: denoiser.get_submodule(path) for path in inside}}
        check_apart(deciding)
        owner = Owner(self.family.model, partial(loop_of, denoiser))
        self.ranks, make = Ranks(denoiser, config, ranks), None
        if isinstance(config.sites, Tokens):
            check_family(self.family)
            check_eager(denoiser, parts.blocks.values(), compiling)
            make = partial(TokenSite, self.family)
        self.denoiser, self.session = denoiser, Session(config, clock, sites, owner, make)
        self.session.sums_of = self._begin_run
        if config.judged_by_others:
            self.session.note(f"the estimate is as good as your own {', '.join(config.judged_by_others)}.")
        self.bypass: Bypass = Bypass(denoiser, self.session)
        self.hooks, self.handles = Hooks(denoiser, self.session), list[Any]()
        self.compilation: Compilation = Compilation(denoiser, deciding.values(), compiling)
        self.undo: Callable[[], None] = self.detach
        """Takes it off: `disable` of the Cache that it belongs to."""
        try:
            self._attach(deciding, parts.around)
        except BaseException:
            self.detach()
            raise
        self.hooks.forget_registries()

    def _attach(self, deciding: dict[str, nn.Module], around: dict[str, nn.Module]) -> None:
        session, (first, *_) = self.session, deciding
        ear = FirstHook(session, first, self)
        ear.branch.of_rank = self.ranks.branch
        for path, module in deciding.items():
            self.hooks.put_on(module, ear if path == first else SessionHook(session, session.strategy.block, path))
        self.hooks.surround(around)
        self.bypass.put_on()
        self.compilation.begin()
        calls = self.calls = DenoiserCalls(
            self.denoiser, self.family, session, self.hooks, self.compilation, ear.branch, self.bypass
        )
        self.handles.append(self.denoiser.register_forward_pre_hook(calls.before, with_kwargs=True))
        self.handles.append(self.denoiser.register_forward_hook(calls.after, with_kwargs=True))

    def _begin_run(self, latent: Tensor, step: Step) -> SharedSums:
        sums, probe = self.ranks.begin_run(latent, step), self.session.config.probe
        self.bypass.alone = self.ranks.group is None
        if self.ranks.group is not None:
            runs_in_probe = probe.sees_tokens and probe.depth == 0  # a part of the first block, before that is called
            for hook in self.hooks.deciding[runs_in_probe:]:
                hook.gather_late(self.ranks.group)
        return sums

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.compilation.undo()
        self.bypass.remove()
        self.hooks.remove()
        self.session.sums_of = alone
        self.session.release()


def attached_to(denoiser: nn.Module) -> Attachment | None:
    """What `enable` has put on this denoiser; None where nothing is."""
    registries = filter(None, map(registry_of, denoiser.modules()))
    hooks = (registry.get_hook(NAME) for registry in registries)
    attachments = (hook.attachment for hook in hooks if isinstance(hook, FirstHook))
    return next((attachment for attachment in attachments if isinstance(attachment, Attachment)), None)
