"""Everything a user can get wrong, as exceptions: each message says what happened, what was expected, what to do."""


class DicacheError(Exception):
    """Base of all errors that dicache raises on purpose."""


class DicacheWarning(UserWarning):
    """What was asked for was done, and is not what it was asked for."""


class BudgetError(DicacheError, ValueError):
    """An error budget is negative, not a number, or there are not as many budgets as samples."""


class ModeError(DicacheError, ValueError):
    """The arguments of `enable` contradict each other or name nothing to do."""


class SettingsError(DicacheError, ValueError):
    """A file of settings cannot be read, or names what is no setting."""


class AlreadyEnabledError(DicacheError, ValueError):
    """The model is already wrapped, by dicache or by a cache of diffusers."""


class BusyError(DicacheError, RuntimeError):
    """A model that dicache is enabled on was called by a second thread in the midst of a run."""


class UnsupportedModelError(DicacheError, ValueError):
    """No stack of blocks was found that can be skipped safely."""


class PartError(DicacheError, TypeError):
    """A part of a configuration (probe, estimator, approximator) gives something else than its contract says."""


class CopyError(DicacheError, TypeError):
    """A model that dicache is enabled on was to be copied or pickled, or sent to another process."""


class FittedError(DicacheError, ValueError):
    """Fitted coefficients cannot be read, made or used here: a damaged file, another model, other sites or steps."""


class CaptionError(DicacheError, ValueError):
    """A caption is empty or outside the language of the reference model."""


class ReferenceModelError(DicacheError, RuntimeError):
    """The weights of the reference model are missing or damaged."""


class ArgumentError(DicacheError, ValueError):
    """A fused operation was given tensors of the wrong shape, dtype, device or memory."""


class ExtensionError(DicacheError, RuntimeError):
    """The path that DICACHE_EXTENSION insists on cannot be taken, or native code gave up."""


class ScheduleError(DicacheError, ValueError):
    """A schedule is damaged, is of another model, or does not fit the run; or none can be found as asked."""


class ProfileError(DicacheError, ValueError):
    """A profile is damaged, does not fit the run, or cannot promise what was asked for."""


class FileError(DicacheError, OSError):
    """A file cannot be written. What was there before is unchanged."""


class PipelineError(DicacheError, ValueError):
    """A pipeline cannot be loaded, placed, or called as the command line was asked to."""


class WorkerError(DicacheError, RuntimeError):
    """Work cannot be handed to an executor's workers, or was lost with one of them."""


class RanksError(DicacheError, RuntimeError):
    """Ranks that compute one sample together do not agree, one of them is lost, or a part cannot decide over them."""


class SlotError(DicacheError, ValueError):
    """A slot is called with what is no call of its denoiser, twice in one step, or after it has left."""


class MemoryFileError(DicacheError, OSError):
    """A prompt memory cannot be read or written, or the file is something else. What is in it is unchanged."""
