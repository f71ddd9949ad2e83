"""The exception tree.

::

    PilotfishError
    ├── InputError (also ValueError)        a value given by the caller is wrong
    │   └── ConfigError                     a configuration file or environment variable is wrong
    ├── MissingExtraError (also ImportError)  an optional dependency is not installed
    ├── NotFittedError                      a learned part was used before ``fit``
    ├── ModelError                          a model could not answer
    │   ├── UpstreamError                   a remote endpoint refused, failed or sent garbage
    │   │   ├── UpstreamTimeoutError        it did not answer in time
    │   │   └── RateLimitedError            it asked for fewer calls
    │   ├── ContextLengthError              the prompt is longer than the model's window
    │   ├── DownloadError                   a model file could not be fetched
    │   └── IntegrityError                  a file's content does not match its recorded hash
    ├── LogError                            the traffic log could not be read or written
    │   ├── LogFullError                    no space is left for the log
    │   ├── LogCorruptError                 the log file is damaged
    │   └── LogVersionError                 the log was written by a newer version
    └── TaskError                           a task cannot do what was asked
        ├── UnknownTaskError                no task of that name
        └── TaskLockedError                 another process is learning the task

Every message is one sentence that names the field, the value and the mend.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ContextLengthError",
    "DownloadError",
    "InputError",
    "IntegrityError",
    "LogCorruptError",
    "LogError",
    "LogFullError",
    "LogVersionError",
    "MissingExtraError",
    "ModelError",
    "NotFittedError",
    "PilotfishError",
    "RateLimitedError",
    "TaskError",
    "TaskLockedError",
    "UnknownTaskError",
    "UpstreamError",
    "UpstreamTimeoutError",
    "missing_extra",
]


class PilotfishError(Exception):
    """Base of every exception raised on purpose by Pilotfish."""


class InputError(PilotfishError, ValueError):
    """A value given by the caller is wrong."""


class ConfigError(InputError):
    """A configuration file or environment variable is wrong."""


class MissingExtraError(PilotfishError, ImportError):
    """An optional dependency is not installed."""


class NotFittedError(PilotfishError):
    """A learned part was used before ``fit``."""


class ModelError(PilotfishError):
    """A model could not answer.

    Attributes
    ----------
    cost : float
        US dollars that were spent on other models before it failed.
    """

    cost: float = 0.0


class UpstreamError(ModelError):
    """A remote endpoint refused, failed or sent garbage.

    Parameters
    ----------
    message : str
        One sentence.
    status : int or None
        HTTP status, where one was received.
    body : bytes
        The body as received, for passing on.
    """

    def __init__(self, message: str, status: int | None = None, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class UpstreamTimeoutError(UpstreamError):
    """A remote endpoint did not answer in time."""


class RateLimitedError(UpstreamError):
    """A remote endpoint asked for fewer calls."""


class ContextLengthError(ModelError):
    """The prompt is longer than the model's window."""


class DownloadError(ModelError):
    """A model file could not be fetched."""


class IntegrityError(ModelError):
    """A file's content does not match its recorded hash."""


class LogError(PilotfishError):
    """The traffic log could not be read or written."""


class LogFullError(LogError):
    """No space is left for the log."""


class LogCorruptError(LogError):
    """The log file is damaged."""


class LogVersionError(LogError):
    """The log was written by a newer version."""


class TaskError(PilotfishError):
    """A task cannot do what was asked."""


class UnknownTaskError(TaskError):
    """No task of that name."""


class TaskLockedError(TaskError):
    """Another process is learning the task."""


def missing_extra(package: str, extra: str, why: str) -> MissingExtraError:
    """Make the error for an optional dependency that is not installed.

    Parameters
    ----------
    package : str
        The distribution that is missing.
    extra : str
        The extra of Pilotfish that brings it.
    why : str
        What needs it, as the start of a sentence.

    Examples
    --------
    >>> print(missing_extra("xllamacpp", "gguf", "Running GGUF models"))
    Running GGUF models needs the package 'xllamacpp': install it with pip install 'pilotfish[gguf]'.
    """
    return MissingExtraError(f"{why} needs the package '{package}': install it with pip install 'pilotfish[{extra}]'.")
