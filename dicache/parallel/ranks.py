"""Ranks that compute the same samples, each a part of the tokens or all: who they are, what can be decided over them.

Under diffusers' context parallelism the latent is whole on every rank, and so is what the denoiser gives; between them
a rank has its part of the tokens. So whole evaluations that are decided without a look at tokens are decided alike
without a word. What looks at tokens (a probe's feature, the errors of sites inside the denoiser) is added up over the
ranks first (`dicache.ranks`), and parts that reduce tokens in another way are refused by name.
"""

import re
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from dicache.approximators.base import Approximator
from dicache.config import Config
from dicache.errors import ModeError, RanksError
from dicache.estimators.base import Estimator
from dicache.probes.first_blocks import FirstBlocks
from dicache.ranks.branches import BranchesApart, BranchRanks
from dicache.ranks.group import Group, digest
from dicache.ranks.sums import ALONE, SharedSums
from dicache.sites import Evaluation, Tokens
from dicache.types import Step

NO_PROBE = FirstBlocks(depth=0)
Asked = dist.ProcessGroup | BranchRanks | None


class Ranks:
    """Those that compute the samples of one denoiser; looked for whenever a run begins."""

    config: Config
    by_branch: bool
    denoiser: nn.Module

    def __init__(self, denoiser: nn.Module, config: Config, asked: Asked) -> None:
        self.denoiser, self.config, self.by_branch = denoiser, config, isinstance(asked, BranchRanks)
        self.asked: dist.ProcessGroup | None = asked.process_group if isinstance(asked, BranchRanks) else asked
        self.group: Group | None = None
        self.look()

    @property
    def branch(self) -> str | None:
        """What the guidance branch of this rank is called, where each has one of its own."""
        return BranchesApart(self.group).name(self.group.rank) if self.by_branch and self.group is not None else None

    def begin_run(self, latent: Tensor, step: Step) -> SharedSums:
        """What a run adds up by, once the ranks are known to begin the same one. Raises RanksError."""
        group = self.look()
        if group is None:
            return ALONE
        named = re.sub(r" at 0x[0-9a-f]+", "", repr(self.config))
        sizes = tuple(latent.shape), latent.dtype
        facts = {"arguments of dicache.enable": named, "size": sizes, "latents": digest(latent)}
        group.check_same(facts | {"steps": (step.index, step.total)}, step.index, latent.device)
        if self.by_branch:
            return SharedSums(apart=BranchesApart(group))
        return SharedSums(group) if looks_at_parts(self.config) else ALONE

    def look(self) -> Group | None:
        """Raises RanksError where what decides cannot do so over several ranks."""
        process_group = self.asked or context_of(self.denoiser)
        if process_group is None:
            self.group = None
        elif self.group is None or self.group.process_group is not process_group:
            group = Group(process_group)
            if group.size > 1:
                (check_branches if self.by_branch else check_parts)(self.config, group.size)
            self.group = group if group.size > 1 else None
        return self.group


def parse_ranks(ranks: Any) -> Asked:  # noqa: ANN401
    """Raises ModeError for anything but a process group."""
    if ranks is None or isinstance(ranks, dist.ProcessGroup | BranchRanks):
        return ranks
    raise ModeError(
        f"ranks is {ranks!r:.80}. Expected the torch.distributed process group of those that compute the same samples, "
        "for example dist.group.WORLD; under diffusers' context parallelism leave it out."
    )


def context_of(denoiser: nn.Module) -> dist.ProcessGroup | None:
    """The group of diffusers' context parallelism, `enable_parallelism`; None where it is off."""
    config = vars(denoiser).get("_parallel_config")
    context = None if config is None else config.context_parallel_config
    return None if context is None else context._flattened_mesh.get_group()


def looks_at_parts(config: Config) -> bool:
    """Whether what decides sees the part of the tokens that its rank has."""
    return config.sites.inside_denoiser or isinstance(config.sites, Tokens) or config.probe.sees_tokens


def check_parts(config: Config, size: int) -> None:
    """Raises RanksError by name."""
    if not looks_at_parts(config):
        return
    wrong = next(_refused(config), None)
    if wrong is not None:
        raise RanksError(
            f"the tokens of a sample lie on {size} ranks, and {wrong}, so ranks would decide differently. Use whole "
            "evaluations without a probe, dicache.enable(pipe, error_budget=0.05), or a preset such as dicache() or "
            "first_block_cache()."
        )


def check_branches(config: Config, size: int) -> None:
    """Raises RanksError by name where ranks that have guidance branches would decide by their own."""
    parts: list[Estimator[Any] | Approximator] = [config.estimator, *config.approximators]
    unsaid = next((part for part in parts if not part.over_ranks), None)
    wrong = f"{config.sites} are decided by what one branch shows" if type(config.sites) is not Evaluation else ""
    wrong = wrong or (f"{config.probe} looks at one branch" if config.probe != NO_PROBE else "")
    wrong = wrong or (f"{type(unsaid).__name__} does not say over_ranks" if unsaid is not None else "")
    if wrong:
        raise RanksError(
            f"the guidance branches of a sample lie on {size} ranks, and {wrong}, so ranks would decide differently. "
            "Use whole evaluations without a probe, for example dicache.enable(..., error_budget=0.05)."
        )


def _refused(config: Config) -> Any:  # noqa: ANN401
    parts: list[Estimator[Any] | Approximator] = [config.estimator, *config.approximators]
    if isinstance(config.sites, Tokens):
        yield "sites=Tokens() chooses among those of one rank"
    if config.sites.inside_denoiser and config.probe != NO_PROBE:
        yield f"{config.probe} is held against the past at every site, which is an exchange for each of them"
    if not config.probe.over_ranks:
        yield f"{type(config.probe).__name__} makes one thing of all tokens that it sees"
    for part in parts:
        if not part.over_ranks:
            yield f"{type(part).__name__} does not say that it reads them through `sums` alone (over_ranks)"
    if config.memory_limit is not None:
        yield "memory_limit goes by the size of one rank's part"
