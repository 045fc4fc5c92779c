"""The public face: `enable` wraps a model and hands out its `Cache`, `disable` takes it off again."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed import ProcessGroup

from dicache.cache import Cache
from dicache.config import Config
from dicache.enable_options import (
    Asked,
    Mode,
    check_promised,
    parse_audit,
    parse_compile_blocks,
    parse_mode,
    with_settings,
)
from dicache.errors import UnsupportedModelError
from dicache.hosts.attachment import Attachment, attached_to
from dicache.hosts.audit import Auditor
from dicache.hosts.compiled_blocks import refuse_whole
from dicache.hosts.running_pipeline import DENOISERS, Running
from dicache.hosts.side_networks import SideNetworks
from dicache.memory.encoders import Encoders, parse_memory
from dicache.memory.hardness import Hardness
from dicache.memory.learning import Learning, dealing, with_learning
from dicache.memory.store import Memory
from dicache.models.family import Family
from dicache.models.find_blocks import family_of
from dicache.models.identity import identity, offloaded
from dicache.parallel.ranks import parse_ranks
from dicache.promise.choose_profile import AskedProfile
from dicache.promise.keep_budget import AskedBudget
from dicache.ranks.branches import BranchRanks
from dicache.reporting.callbacks import OnReport, OnStep, parse_callbacks
from dicache.schedules.schedule import Schedule
from dicache.slots.slots import Slots, Terms
from dicache.solvers.clock import SchedulerClock
from dicache.solvers.loop_clock import DeclaredClock, LoopClock
from dicache.solvers.play import own_copy
from dicache.solvers.timeline import Clock


def enable(
    target: Any,  # noqa: ANN401
    *,
    error_budget: AskedBudget | None = None,
    speedup: float | Sequence[float] | None = None,
    evaluations: int | Sequence[int] | None = None,
    confidence: float | None = None,
    profile: AskedProfile | None = None,
    schedule: str | Path | Schedule | None = None,
    config: Config | None = None,
    family: Family | None = None,
    audit: float | None = None,
    compile_blocks: bool | Mapping[str, Any] | None = None,
    memory: str | Path | Memory | None = None,
    ranks: ProcessGroup | BranchRanks | None = None,
    settings: str | Path | Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
    on_report: OnReport | None = None,
) -> Cache:
    """Skip denoiser evaluations that can be predicted, on a diffusers pipeline or a bare denoiser module.

    `error_budget` is the relative L2 error that the final latent of a sample may have against the uncached run of the
    same seed, ||x - x_ref|| / ||x_ref||: one number, or one per sample; or a bound in another metric (`dicache.Psnr`).
    0 computes everything. `speedup` is the dual: the best quality at this ratio of uncached to executed work of the
    denoiser (what runs beside it is told in the report), met on average over prompts; easy and hard ones compute as
    many steps (`dicache.controllers.counted`). `evaluations` is a number in the place of that ratio, for a pipeline:
    `dicache.enable(pipe, evaluations=14)`, called with several times as many steps. `schedule` is a table of actions
    found before, or its file (`dicache.schedules.schedule`): it belongs to one model, scheduler and step count.
    `config` is a composition of parts instead (see `dicache.config.Config`).

    `profile` and `confidence` go with `error_budget` only. `profile` is a file of `dicache.calibrate`, or several; by
    default one that ships for this very model, if it fits the run. `confidence` makes the budget a promise: with
    probability `confidence` a sample stays within it, if model, scheduler, steps, guidance and negative prompt are the
    profile's and the prompts are exchangeable with those it was tested on (for nine of ten such calibrations;
    `dicache.promise.learn_then_test`). `profile="nearest"` goes by the shipped profile that is nearest, and promises
    nothing. Without a profile the error is an estimate by a law (`dicache.planning.error_law`).

    `family` says what `dicache` cannot know of a model of your own (`dicache.Family`): where its blocks are, what they
    are called with. It goes without where the model is one of diffusers', or shaped like one.

    `audit` is the share of samples that are also run uncached, so that the report can say how many were within budget
    (`dicache.hosts.audit`). It needs a pipeline.

    `compile_blocks` compiles the blocks, inside dicache's hooks: True, or options of `torch.compile` such as
    {"mode": "max-autotune-no-cudagraphs"}; `fullgraph` is True unless they say otherwise. Blocks that are compiled
    already, or later, are taken over.

    `memory` is a file, or a `dicache.Memory`, in which what the pipeline's text encoders give is remembered, also for
    other processes: for the same token ids, encoder and weights they do not run again (`cache.memory` says how often,
    and the seconds saved). What is remembered are an encoder's own outputs, to the bit. With a `speedup` it also
    remembers how hard prompts are (`dicache.memory.hardness`), from audits and from what runs estimate: samples of a
    batch that are expected to err more compute more of its evaluations, others fewer, all together as many.

    `ranks` is the torch.distributed group of those that compute the same samples, each a part of the tokens, or a part
    of the weights (FSDP2): they decide alike (`dicache.parallel.ranks`), and weights of blocks that are skipped are not
    gathered. The group of diffusers' context parallelism is found. `dicache.BranchRanks(group)` says
    instead that each rank calls the denoiser for a guidance branch of its own.

    `settings` is a file in TOML or JSON, or a mapping, with any of error_budget, speedup, evaluations, confidence,
    profile, schedule, preset, audit, compile_blocks and memory; arguments that are given beside it win. Relative paths
    in a file begin at its folder. `preset` is the name of a preset, or a table of it and its options:
    {name = "teacache", threshold = 0.4}.

    `on_step` is called with a `dicache.StepReport` when a step is over, which is when the next one begins or the run
    ends (of two denoisers that take turns, the first one's last step is told at the end); `on_report` once for each run
    that is over, with its Report. What they raise comes out of the pipeline's call: the run has ended, the cache is
    still on, and the next run is as any. Requests (`Cache.join`) call them too.

    The Cache is a context manager, and a decorator: each call of the function is then an `enable` of its own.

    A LoRA that is loaded, scaled or fused later is noticed: the next call begins a new run. Offload may be turned on
    before or after.

    Raises ModeError unless exactly one of error_budget, speedup, evaluations, schedule and config is given, for a
    speed-up that is not a finite number >= 1, evaluations that are no whole number >= 1 (and, in the run, where the
    number of steps is not known), or where something is compiled in a way that dicache would be compiled with it (also
    in the run), ScheduleError for a schedule that is damaged or of another model (and, in the run, for other steps),
    BudgetError for a budget that is not a finite number >= 0 (and, in the run, for a list of budgets or speed-ups of
    the wrong length), ProfileError for a profile that is damaged or of another model, or a confidence that none can
    give (of a bare denoiser none can; in the run, where it does not fit it), MemoryFileError for a memory that cannot
    be used, SettingsError for settings that cannot be read or that name what is no setting, RanksError for parts that
    cannot decide over several ranks (in the run, where ranks do not agree or one is lost), AlreadyEnabledError if a
    cache is on the model, UnsupportedModelError if nothing in it can be skipped safely. The model is then as it was. A
    model that shows only when it runs that it cannot be cached raises UnsupportedModelError at its first call.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("target", "settings")}
    return _enabled(target, Asked(**with_settings(settings, arguments)))


def _enabled(target: Any, asked: Asked) -> Cache:  # noqa: ANN401
    family = asked.family
    mode = parse_mode(
        asked.error_budget,
        asked.speedup,
        asked.confidence,
        asked.profile,
        asked.schedule,
        asked.config,
        family,
        asked.evaluations,
    )
    callbacks = parse_callbacks(asked.on_step, asked.on_report)
    scheduled = not isinstance(target, nn.Module) and getattr(target, "scheduler", None) is not None
    share, compiling = parse_audit(asked.audit, scheduled), parse_compile_blocks(asked.compile_blocks)
    check_promised(mode.confidence, scheduled)
    remembered, group = parse_memory(asked.memory, target), parse_ranks(asked.ranks)
    attachments: dict[str, Attachment] = {}
    hardness: Hardness | None = None
    try:
        for name, denoiser in denoisers(target).items():
            composed = mode.config_of(denoiser)
            refuse_whole(denoiser)
            if remembered is not None and asked.speedup is not None and not offloaded(denoiser):
                composed, hardness = dealing(composed, remembered, identity(denoiser))
            clock = _clock(target, family_of(denoiser, family), scheduled)
            attachments[name] = Attachment(denoiser, composed, clock, compiling, family, group)
        if not isinstance(target, nn.Module):
            SideNetworks(Running(target, denoisers(target)), attachments.values())
    except BaseException:
        for attachment in attachments.values():
            attachment.detach()
        raise
    budget = mode.budget(composed)
    audited = attachments.values() if share > 0 else ()
    auditors = [Auditor(attachment, Running(target, denoisers(target)), share, budget) for attachment in audited]
    if hardness is not None and len(attachments) == 1:
        (attachment,) = attachments.values()
        callbacks = with_learning(callbacks, Learning(hardness, attachment.session))
    encoders = None if remembered is None else Encoders(target, remembered)
    own = partial(_asked, target, mode), partial(_own_scheduler, target)
    slots = None if len(attachments) > 1 else Slots(next(iter(attachments.values())), *own, callbacks)
    again = partial(_enabled, target, asked)
    return Cache(attachments, budget, mode.confidence, auditors, encoders, slots, callbacks, again=again)


def disable(target: Any) -> None:  # noqa: ANN401
    """Take dicache off a pipeline or a denoiser, also where the Cache that `enable` returned was lost. The model is
    restored exactly, and that Cache is disabled. Where none is on, this does nothing.
    """
    for denoiser in denoisers(target).values():
        attachment = attached_to(denoiser)
        if attachment is not None:
            attachment.undo()


def _asked(target: Any, mode: Mode, **asked: Any) -> Terms:  # noqa: ANN401
    """What a request asks for, of the only denoiser; what the cache was enabled with where that is nothing."""
    (denoiser,) = denoisers(target).values()
    if asked:
        options = dict.fromkeys(("error_budget", "speedup", "confidence", "profile", "schedule", "config", "family"))
        mode = parse_mode(**{**options, **asked})
        check_promised(mode.confidence, not isinstance(target, nn.Module))
    config = mode.config_of(denoiser)
    return Terms(config, mode.budget(config))


def _own_scheduler(target: Any) -> Any:  # noqa: ANN401
    """A copy of the pipeline's; None where there is none."""
    scheduler = None if isinstance(target, nn.Module) else getattr(target, "scheduler", None)
    return None if scheduler is None else own_copy(scheduler)


def denoisers(target: Any) -> dict[str, nn.Module]:  # noqa: ANN401
    """By the name that the pipeline gives them. Raises UnsupportedModelError where there is none."""
    if isinstance(target, nn.Module):
        return {"module": target}
    if isinstance(target, type):
        raise UnsupportedModelError(
            f"{target.__name__} is a class. Expected a pipeline or a denoiser that was made of one, for example by "
            f"{target.__name__}.from_pretrained(...)."
        )
    attributes = {name: getattr(target, name, None) for name in DENOISERS}
    modules = {name: module for name, module in attributes.items() if isinstance(module, nn.Module)}
    if not modules:
        raise UnsupportedModelError(
            f"{type(target).__name__} is neither a torch module nor a pipeline with one of {', '.join(DENOISERS)}. "
            "Pass the denoiser module itself."
        )
    return modules


def _clock(target: Any, family: Family, scheduled: bool) -> Clock:  # noqa: ANN401
    if not scheduled and family.noise_schedule is not None:
        return DeclaredClock(family.level, family.prediction, family.times)
    if not scheduled:
        return LoopClock()
    running = Running(target, denoisers(target))
    return SchedulerClock(running, running.loop)
