"""What the arguments of `enable` mean: which parts decide for a denoiser, and what was asked of them. All are checked
before a model is touched.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dicache import presets
from dicache.config import Config
from dicache.defaults import for_budget, for_evaluations, for_profile, for_speedup
from dicache.errors import BudgetError, ModeError, ProfileError, SettingsError
from dicache.files.settings_file import check_known, read_settings
from dicache.models.family import Family
from dicache.models.identity import identity, offloaded, outline
from dicache.planning.budget import Budget, plain, validate
from dicache.promise.choose_profile import HOW_TO, AskedProfile, ProfileChoice, may_have_shipped, profiles_for
from dicache.promise.keep_budget import AskedBudget, BudgetDemand, parse_budget
from dicache.reporting.callbacks import OnReport, OnStep
from dicache.schedules.schedule import Schedule

BARE = (
    "a promise needs a pipeline with a scheduler, whose steps are known before a run and which draws prompts again; of "
    "a bare denoiser errors are estimated and nothing is promised"
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of `enable`, as they came; None for those that were not given."""

    error_budget: AskedBudget | None = None
    speedup: float | Sequence[float] | None = None
    evaluations: int | Sequence[int] | None = None
    confidence: float | None = None
    profile: AskedProfile | None = None
    schedule: str | Path | Schedule | None = None
    config: Config | None = None
    family: Family | None = None
    audit: float | None = None
    compile_blocks: bool | Mapping[str, Any] | None = None
    memory: Any = None
    ranks: Any = None
    on_step: OnStep | None = None
    on_report: OnReport | None = None


MODES = ("error_budget", "speedup", "evaluations", "schedule", "config")
SETTINGS = (*MODES[:-1], "preset", "confidence", "profile", "audit", "compile_blocks", "memory")
"""What a file of settings may hold."""


def with_settings(settings: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """What `enable` was given, and what its settings say where it was given nothing. Raises SettingsError for settings
    that are none, ModeError where they and the arguments ask for different things.
    """
    asked = {name: value for name, value in arguments.items() if value is not None}
    if settings is None:
        return asked
    saved = read_settings(settings, SETTINGS)
    if "preset" in saved:
        saved["config"] = _preset(saved.pop("preset"))
    for said, wanted in ((one, other) for one in MODES for other in MODES if one != other):
        if said in saved and wanted in asked and wanted not in saved:
            raise ModeError(f"the settings say {said} and enable was given {wanted}. Leave one of them out.")
    return saved | asked


def _preset(named: Any) -> Config:  # noqa: ANN401
    """By its name, or by a table of its name and options. Raises SettingsError."""
    options = dict(named) if isinstance(named, Mapping) else {"name": named}
    name = options.pop("name", None)
    check_known([name], dir(presets), "no preset")
    try:
        config: Config = getattr(presets, name)(**options)
    except TypeError as error:
        raise SettingsError(f"preset {name} does not take its options: {error}. See docs/presets.md.") from error
    return config


@dataclass(frozen=True)
class Mode:
    """One way to be enabled."""

    config_of: Callable[[nn.Module], Config]
    """The parts for one denoiser; raises where there are none for it."""
    demand: BudgetDemand | None = None
    """The budget that was asked for, if one was."""

    def budget(self, config: Config) -> Budget | None:
        """What a sample may spend in units of the latent; None where another unit, or no budget, was asked for."""
        return config.controller.error_budget if self.demand is None else self.demand.budget

    @property
    def confidence(self) -> float | None:
        return None if self.demand is None else self.demand.confidence


def parse_mode(
    error_budget: AskedBudget | None,
    speedup: float | Sequence[float] | None,
    confidence: float | None,
    profile: AskedProfile | None,
    schedule: str | Path | Schedule | None,
    config: Config | None,
    family: Family | None,
    evaluations: int | Sequence[int] | None = None,
) -> Mode:
    """Raises ModeError where they contradict each other, and what `enable` says of each."""
    if sum(argument is not None for argument in (error_budget, speedup, evaluations, schedule, config)) != 1:
        raise ModeError(
            "give exactly one of error_budget, speedup, evaluations, schedule and config, for example "
            "dicache.enable(pipe, error_budget=0.05)."
        )
    if error_budget is not None:
        demand = parse_demand(error_budget, confidence, profile)
        return Mode(lambda denoiser: _for_demand(denoiser, demand, profile), demand)
    if profile is not None or confidence is not None:
        raise ModeError("profile and confidence go with error_budget. Leave them out, or give error_budget=... alone.")
    if schedule is not None:
        table = parse_schedule(schedule)
        return Mode(lambda denoiser: table.config(denoiser, family))
    if evaluations is not None:
        counted = for_evaluations(parse_evaluations(evaluations))
        return Mode(lambda denoiser: counted)
    same = for_speedup(parse_speedup(speedup)) if config is None else parse_config(config)
    return Mode(lambda denoiser: _of_this_model(same, denoiser))


def _of_this_model(config: Config, denoiser: nn.Module) -> Config:
    """Raises ProfileError for gains of another one."""
    gains = config.controller.known_gains
    if gains is not None and gains.model and gains.model != identity(denoiser):
        raise ProfileError(
            f"the profile's gains are of another model: {gains.model}, this is {identity(denoiser)}. Calibrate this "
            "one: dicache.calibrate(pipe, prompts, steps=..., config=...)."
        )
    return config


def parse_demand(error_budget: Any, confidence: Any, profile: Any) -> BudgetDemand:  # noqa: ANN401
    """Raises BudgetError for a budget that is none, ModeError for a confidence that is none or that cannot be had."""
    if confidence is None:
        return parse_budget(error_budget)
    confidence = plain(confidence)
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise ModeError(f"confidence is {confidence!r:.60}. Expected a share above 0 and below 1: 0.9 stands for 90 %.")
    if profile == "nearest":
        raise ModeError("profile='nearest' drops the promise: leave out confidence, or name a profile that fits.")
    return parse_budget(error_budget, confidence)


def check_promised(confidence: float | None, pipeline: bool) -> None:
    """Raises ProfileError where a promise is asked for that nobody can give."""
    if confidence is not None and not pipeline:
        raise ProfileError(f"{BARE}. Leave out confidence, or pass the pipeline.")


def parse_speedup(speedup: Any) -> Budget:  # noqa: ANN401
    """As numbers of at least 1. Raises ModeError for anything else."""
    try:
        return validate(speedup, "speedup", "Expected 1 (compute everything) or more, for example 2.0.", least=1)
    except BudgetError as error:
        raise ModeError(str(error)) from error


def parse_evaluations(evaluations: Any) -> Budget:  # noqa: ANN401
    """As whole numbers of at least 1. Raises ModeError for anything else."""
    expected = "Expected a whole number of 1 or more, for example 14."
    try:
        counts = validate(evaluations, "evaluations", expected, least=1)
    except BudgetError as error:
        raise ModeError(str(error)) from error
    for count in counts if isinstance(counts, Sequence) else [counts]:
        if count != int(count):
            raise ModeError(f"evaluations is {evaluations!r:.60}. {expected}")
    return counts


def parse_schedule(schedule: Any) -> Schedule:  # noqa: ANN401
    """It, or what its file holds. Raises ModeError for anything else, ScheduleError for a damaged file."""
    table = Schedule.load(schedule) if isinstance(schedule, str | Path) else schedule
    if not isinstance(table, Schedule):
        raise ModeError(
            f"schedule is a {type(schedule).__name__}. Expected a dicache.Schedule or the path of its file; of a "
            "ParetoSet choose one: front.at(cost=0.51)."
        )
    return table


def parse_config(config: Any) -> Config:  # noqa: ANN401
    """Raises ModeError for anything else."""
    if not isinstance(config, Config):
        raise ModeError(f"config is {config!r}. Expected a dicache.Config; for a number use error_budget.")
    return config


def parse_audit(audit: Any, pipeline: bool) -> float:  # noqa: ANN401
    """The share of samples to audit. Raises ModeError for anything else, and without a pipeline for any above 0."""
    audit = 0.0 if audit is None else audit
    if isinstance(audit, bool) or not isinstance(audit, int | float) or not 0 <= audit <= 1:
        raise ModeError(f"audit is {audit!r}. Expected the share of samples to run uncached too, from 0 to 1.")
    if audit > 0 and not pipeline:
        raise ModeError("audit needs the scheduler of a pipeline, and this is a bare denoiser. Leave out audit.")
    return audit


def parse_compile_blocks(compile_blocks: Any) -> Mapping[str, Any] | None:  # noqa: ANN401
    """Options of `torch.compile`; None to compile nothing. Raises ModeError for anything else."""
    if compile_blocks is None or isinstance(compile_blocks, bool):
        return {} if compile_blocks else None
    if isinstance(compile_blocks, Mapping):
        return compile_blocks
    raise ModeError(
        f"compile_blocks is {compile_blocks!r}. Expected True, False, or options of torch.compile such as "
        "{'dynamic': True}."
    )


def _for_demand(denoiser: nn.Module, demand: BudgetDemand, profile: AskedProfile | None) -> Config:
    """With what a profile measured where one might fit, else by the law."""
    if profile is not None or (may_have_shipped(outline(denoiser)) and not offloaded(denoiser)):
        choice = profiles_for(identity(denoiser), profile)
    else:
        choice = ProfileChoice(())
    if choice.profiles:
        return for_profile(choice, demand)
    if demand.needed or profile is not None or demand.budget is None:
        raise ProfileError(f"there is no profile of this {type(denoiser).__name__}. {HOW_TO}.")
    return for_budget(demand.budget)
