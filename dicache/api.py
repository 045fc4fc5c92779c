"""The public face: `enable` wraps, the returned `Cache` reports, resets and undoes."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from torch import nn

from dicache.budget import Budget, per_sample
from dicache.clock import SchedulerClock, TimestepClock
from dicache.config import Config, budgeted
from dicache.errors import ModeError, UnsupportedModelError
from dicache.hooks import Attachment
from dicache.report import Report
from dicache.session import Clock, Session
from dicache.trace import Trace
from dicache.types import Rows

DENOISERS = ("transformer", "transformer_2", "unet")


class Cache:
    """One `enable`. Also a context manager: leaving it disables."""

    def __init__(self, attachments: dict[str, Attachment], budget: Budget | None) -> None:
        self._attachments, self._budget = attachments, budget

    @property
    def _session(self) -> Session:
        """Of the denoiser that ran last; the first one before any did."""
        sessions = [a.session for a in self._attachments.values()]
        return next((s for s in reversed(sessions) if s.run is not None), sessions[0])

    @property
    def trace(self) -> Trace | None:
        """The last run, or the one going on; None before the first."""
        return self._session.trace()

    def report(self) -> Report:
        trace = self.trace
        return Report(trace, self._budgets(len(trace.executed)) if trace else None, self._session.notes)

    def _budgets(self, samples: int) -> Rows | None:
        """(B,); None without a budget, or where the run broke off because its list has another length."""
        if self._budget is None or (isinstance(self._budget, tuple) and len(self._budget) != samples):
            return None
        return per_sample(self._budget, samples)

    def reset(self) -> None:
        """Begin anew at the next denoiser call. Pipelines never need it; a hand-written loop does where it begins again
        at the timestep where it was broken off.
        """
        for attachment in self._attachments.values():
            attachment.session.reset()

    def disable(self) -> None:
        """Restore the model exactly. The report stays. Doing it twice does nothing."""
        for attachment in self._attachments.values():
            attachment.detach()

    def __enter__(self) -> "Cache":
        if not any(attachment.hooked for attachment in self._attachments.values()):
            raise ModeError("this Cache was disabled. Call dicache.enable again.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()


def enable(target: Any, *, error_budget: float | Sequence[float] | None = None, config: Config | None = None) -> Cache:  # noqa: ANN401
    """Skip denoiser evaluations that can be predicted, on a diffusers pipeline or a bare denoiser module.

    `error_budget` is the relative L2 error that the final latent of a sample may have against the uncached run of the
    same seed, ||x - x_ref|| / ||x_ref||: one number, or one per sample. Without calibration it is an estimate. 0
    computes everything. `config` is a composition of parts instead (see `dicache.config.Config`).

    Raises ModeError unless exactly one of the two is given, BudgetError for a budget that is not a finite number >= 0
    (and, in the run, for a list of the wrong length), AlreadyEnabledError if a cache is on the model,
    UnsupportedModelError if nothing in it can be skipped safely. The model is then as it was.
    """
    if (error_budget is None) == (config is None):
        raise ModeError(
            "give exactly one of error_budget and config, for example dicache.enable(pipe, error_budget=0.05)."
        )
    if config is None:
        assert error_budget is not None
        config = budgeted(error_budget)
    if not isinstance(config, Config):
        raise ModeError(f"config is {config!r}. Expected a dicache.Config; for a number use error_budget.")
    budget = getattr(getattr(config.controller, "inner", config.controller), "budget", None)
    attachments: dict[str, Attachment] = {}
    try:
        for name, denoiser in denoisers(target).items():
            attachments[name] = Attachment(denoiser, config, _clock(target, config))
    except BaseException:
        for attachment in attachments.values():
            attachment.detach()
        raise
    return Cache(attachments, budget)


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


def _clock(target: Any, config: Config) -> Clock:  # noqa: ANN401
    if isinstance(target, nn.Module) or getattr(target, "scheduler", None) is None:
        return TimestepClock()
    return SchedulerClock(lambda: target.scheduler, effects=config.corrector is not None)
