"""The public face: `enable` wraps, the returned `Cache` reports, resets and undoes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from dicache.config import Config, calibrated
from dicache.controllers.counted import Counted
from dicache.errors import BudgetError, ModeError, ProfileError, UnsupportedModelError
from dicache.hosts.attachment import Attachment
from dicache.hosts.audit import Auditor, summary
from dicache.hosts.compiled_blocks import refuse_whole
from dicache.hosts.running_pipeline import Running
from dicache.models.family import Family
from dicache.models.find_blocks import family_of
from dicache.models.identity import identity, offloaded, outline
from dicache.planning.budget import Budget, per_sample, validate
from dicache.promise.choose_profile import HOW_TO, ProfileChoice, may_have_shipped, profiles_for
from dicache.promise.keep_budget import BudgetAim, Chosen, Promised, keep
from dicache.promise.profile import Profile
from dicache.reporting.report import Promise, Report
from dicache.runtime.session import Clock, Session
from dicache.runtime.trace import Trace, joined
from dicache.schedules.schedule import Schedule
from dicache.solvers.clock import SchedulerClock, TimestepClock
from dicache.types import Rows, Wanted

DENOISERS = ("transformer", "transformer_2", "unet")


class Cache:
    """One `enable`. Also a context manager: leaving it disables."""

    def __init__(
        self,
        attachments: dict[str, Attachment],
        budget: Budget | None,
        asked: BudgetAim | None = None,
        auditors: Sequence[Auditor] = (),
    ) -> None:
        self._attachments, self._budget, self._asked, self._auditors = attachments, budget, asked, auditors
        self._all = [attachment.session for attachment in attachments.values()]

    @property
    def _sessions(self) -> list[Session]:
        """Of the denoisers that took part in the last run, in their order; the first one before any did."""
        ran = sorted((s.run.begun, i) for i, s in enumerate(self._all) if s.run is not None)
        if not ran:
            return self._all[:1]
        last = self._all[ran[-1][1]]
        return [self._all[i] for _, i in ran if self._all[i].shares_its_run_with(last)]

    @property
    def _session(self) -> Session:
        """Of the denoiser that ran last; the first one before any did."""
        return self._sessions[-1]

    @property
    def trace(self) -> Trace | None:
        """The last run, or the one going on, of all denoisers that take turns in it; None before the first."""
        traces = [trace for session in self._sessions if (trace := session.trace())]
        alike = len({(len(trace.sites), len(trace.executed)) for trace in traces}) == 1
        return joined(traces if alike else traces[-1:]) if traces else None

    def report(self) -> Report:
        trace = self.trace
        budgets = self._budgets(len(trace.executed)) if trace else None
        notes = list(dict.fromkeys(note for session in self._sessions for note in session.notes))
        return Report(trace, budgets, [*notes, *_missed(self._session.config, trace)], self._promise(), self._audit())

    def _audit(self) -> dict[str, Any] | None:
        """What audits found in all runs so far; None without audits."""
        for auditor in self._auditors:
            auditor.finish()
        found = [audited for auditor in self._auditors for audited in auditor.found]
        return summary(found, None if self._asked is None else self._asked.confidence) if self._auditors else None

    def _promise(self) -> Promise | None:
        """By which profile the last run went, and what that is worth; None without a profile."""
        run, controller = self._session.run, self._session.config.controller
        state = None if run is None else run.states[0].controller
        if not isinstance(state, Chosen) or state.profile is None or not isinstance(controller, Promised):
            return None
        confidence = None if self._asked is None or controller.choice.kind == "nearest" else self._asked.confidence
        negative_conditions = None if run is None else run.negative_conditions()
        others = negative_conditions is not None and not bool(state.profile.same_conditions(negative_conditions).all())
        return Promise(state.profile, confidence, controller.choice.kind, state.way.account.budget, others)

    def _budgets(self, samples: int) -> Rows | None:
        """(B,); None without a budget, or where the run broke off because its list has another length."""
        if self._budget is None or (isinstance(self._budget, tuple) and len(self._budget) != samples):
            return None
        return per_sample(self._budget, samples)

    def reset(self) -> None:
        """Begin anew at the next denoiser call. Pipelines never need it; a hand-written loop does where it begins again
        at the timestep where it was broken off.
        """
        for session in self._all:
            session.reset()

    def disable(self) -> None:
        """Restore the model exactly, and let go of it. The report stays. Doing it twice does nothing."""
        for auditor in self._auditors:
            auditor.release()
        for attachment in self._attachments.values():
            attachment.detach()
        self._attachments = {}

    def __enter__(self) -> "Cache":
        if not self._attachments:
            raise ModeError("this Cache was disabled. Call dicache.enable again.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()


def enable(
    target: Any,  # noqa: ANN401
    *,
    error_budget: "float | Wanted | Sequence[float | Wanted] | None" = None,
    speedup: float | Sequence[float] | None = None,
    confidence: float | None = None,
    profile: "str | Path | Profile | Sequence[str | Path | Profile] | None" = None,
    schedule: "str | Path | Schedule | None" = None,
    config: Config | None = None,
    family: Family | None = None,
    audit: float = 0.0,
    compile_blocks: bool | Mapping[str, Any] = False,
) -> Cache:
    """Skip denoiser evaluations that can be predicted, on a diffusers pipeline or a bare denoiser module.

    `error_budget` is the relative L2 error that the final latent of a sample may have against the uncached run of the
    same seed, ||x - x_ref|| / ||x_ref||: one number, or one per sample; or a bound in another metric (`dicache.Psnr`).
    0 computes everything. `speedup` is the dual: the best quality at this ratio of uncached to executed work, met on
    average over prompts; easy and hard ones compute as many steps (`dicache.controllers.counted`). `schedule` is a
    table of actions found before, or its file (`dicache.schedules.schedule`): it belongs to one model, scheduler and
    step count. `config` is a composition of parts instead (see `dicache.config.Config`).

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

    A LoRA that is loaded, scaled or fused later is noticed: the next call begins a new run. Offload may be turned on
    before or after.

    Raises ModeError unless exactly one of error_budget, speedup, schedule and config is given, for a speed-up that is
    not a finite number >= 1, or where something is compiled in a way that dicache would be compiled with it (also in
    the run), ScheduleError for a schedule that is damaged or of another model (and, in the run, for other steps),
    BudgetError for a budget that is not a finite number >= 0 (and, in the run, for a list of budgets or speed-ups of
    the wrong length), ProfileError for a profile that is damaged or of another model, or a confidence that none can
    give (in the run, where it does not fit it), AlreadyEnabledError if a cache is on the model, UnsupportedModelError
    if nothing in it can be skipped safely. The model is then as it was. A model that shows only when it runs that it
    cannot be cached raises UnsupportedModelError at its first call.
    """
    aim = _aim(error_budget, speedup, confidence, profile, schedule, config)
    if speedup is not None:
        config = Config(Counted(_speedups(speedup)))
    if isinstance(audit, bool) or not isinstance(audit, int | float) or not 0 <= audit <= 1:
        raise ModeError(f"audit is {audit!r}. Expected the share of samples to run uncached too, from 0 to 1.")
    scheduler = None if isinstance(target, nn.Module) else getattr(target, "scheduler", None)
    if audit > 0 and scheduler is None:
        raise ModeError("audit needs the scheduler of a pipeline, and this is a bare denoiser. Leave out audit.")
    options = _compile_options(compile_blocks)
    attachments: dict[str, Attachment] = {}
    try:
        for name, denoiser in denoisers(target).items():
            if aim is not None:
                used = _configured(denoiser, aim, profile)
            else:
                used = _scheduled(denoiser, schedule, family) if config is None else config
            refuse_whole(denoiser)
            clock = _clock(target, used, family_of(denoiser, family))
            attachments[name] = Attachment(denoiser, used, clock, options, family)
    except BaseException:
        for attachment in attachments.values():
            attachment.detach()
        raise
    budget = _budget_of(config) if aim is None else aim.budget
    auditing = attachments.values() if audit > 0 else ()
    auditors = [Auditor(attachment, Running(target, attachments), audit, budget) for attachment in auditing]
    return Cache(attachments, budget, aim, auditors)


def _missed(config: Config, trace: Trace | None) -> list[str]:
    """Where a finished run is slower than was asked for."""
    if trace is None or not trace.complete or not isinstance(config.controller, Counted):
        return []
    said = config.controller.missed(trace.executed / trace.uncached, len(trace.records))
    return [] if said is None else [said]


def _budget_of(config: Config | None) -> Budget | None:
    controller = None if config is None else config.controller
    return getattr(getattr(controller, "inner", controller), "budget", None)


def _aim(
    error_budget: Any,  # noqa: ANN401
    speedup: Any,  # noqa: ANN401
    confidence: Any,  # noqa: ANN401
    profile: Any,  # noqa: ANN401
    schedule: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
) -> BudgetAim | None:
    """The budget that was asked for; None for a speed-up, a schedule or a config."""
    if sum(asked is not None for asked in (error_budget, speedup, schedule, config)) != 1:
        raise ModeError(
            "give exactly one of error_budget, speedup, schedule and config, for example "
            "dicache.enable(pipe, error_budget=0.05)."
        )
    if config is not None and not isinstance(config, Config):
        raise ModeError(f"config is {config!r}. Expected a dicache.Config; for a number use error_budget.")
    if error_budget is None:
        if profile is not None or confidence is not None:
            raise ModeError(
                "profile and confidence go with error_budget. Leave them out, or give error_budget=... alone."
            )
        return None
    if confidence is None:
        pass
    elif isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise ModeError(f"confidence is {confidence!r}. Expected a number above 0 and below 1, for example 0.9.")
    elif profile == "nearest":
        raise ModeError("profile='nearest' drops the promise: leave out confidence, or name a profile that fits.")
    return keep(error_budget, confidence)


def _compile_options(asked: Any) -> Mapping[str, Any] | None:  # noqa: ANN401
    if isinstance(asked, bool):
        return {} if asked else None
    if isinstance(asked, Mapping):
        return asked
    raise ModeError(
        f"compile_blocks is {asked!r}. Expected True, False, or options of torch.compile such as {{'dynamic': True}}."
    )


def _speedups(speedup: Any) -> Budget:  # noqa: ANN401
    """As numbers of at least 1."""
    try:
        found = validate(speedup)
    except BudgetError as error:
        raise ModeError(str(error).replace("error_budget", "speedup").split(", for example")[0]) from error
    if min([found] if isinstance(found, float) else found) < 1:
        raise ModeError(f"speedup is {speedup!r}. Expected 1 (compute everything) or more, for example 2.0.")
    return found


def _configured(denoiser: nn.Module, aim: BudgetAim, profile: Any) -> Config:  # noqa: ANN401
    """The parts for one denoiser: with measured prices where a profile might fit, else those of the law."""
    if profile is not None or (may_have_shipped(outline(denoiser)) and not offloaded(denoiser)):
        choice = profiles_for(identity(denoiser), profile)
    else:
        choice = ProfileChoice(())
    if choice.profiles:
        return calibrated(choice, aim)
    if aim.needed or profile is not None:
        raise ProfileError(f"there is no profile of this {type(denoiser).__name__}. {HOW_TO}.")
    return Config(aim.fallback())


def _scheduled(denoiser: nn.Module, schedule: Any, family: Family | None) -> Config:  # noqa: ANN401
    """The parts that follow a schedule, or its file."""
    found = Schedule.load(schedule) if isinstance(schedule, str | Path) else schedule
    if not isinstance(found, Schedule):
        raise ModeError(
            f"schedule is a {type(schedule).__name__}. Expected a dicache.Schedule or the path of its file; of a "
            "ParetoSet choose one: found.at(cost=0.5)."
        )
    return found.config(denoiser, family)


def denoisers(target: Any) -> dict[str, nn.Module]:  # noqa: ANN401
    if isinstance(target, nn.Module):
        return {"module": target}
    found = {name: getattr(target, name, None) for name in DENOISERS}
    modules = {name: module for name, module in found.items() if isinstance(module, nn.Module)}
    if not modules:
        raise UnsupportedModelError(
            f"{type(target).__name__} is neither a torch module nor a pipeline with one of {', '.join(DENOISERS)}. "
            "Pass the denoiser module itself."
        )
    return modules


def _clock(target: Any, config: Config, family: Family) -> Clock:  # noqa: ANN401
    if isinstance(target, nn.Module) or getattr(target, "scheduler", None) is None:
        return TimestepClock(family.ends)
    return SchedulerClock(Running(target, denoisers(target)))
