"""The exception tree and the exit codes; everything that fcn_ray raises on purpose is below FcnRayError.

FcnRayError                 1  unexpected
├── ConfigError             2  a setting, a flag or a path is wrong
├── DataError               2  training or label data is not what it must be
├── ResourceError           2  the cluster does not have what the job asks for
├── IncompleteError         4  not finished; the same command continues
├── ForeignOutputError      5  the output folder belongs to another job
├── SchemaError             6  the input's columns or types are refused
├── DivergedError           7  training diverged
├── BundleError             8  the model bundle is refused
├── StorageError            9  a file cannot be read or written
│   └── OutOfReachError     9  nothing is known of the file
│       ├── UnavailableError 9  its store does not answer
│       └── RefusedError    9  its place is not for us
│           └── UnequippedError 9  nor is any other there: this machine lacks what asking takes
│               └── NotInstalledError 2  it needs a package; also a ConfigError
└── AuditError             10  the audit found a broken promise

A message says what was found, where, what was expected, and what to do. Codes: DESIGN 7. A signal ends a command with
128 + its number, but SIGTERM a training with 4. A bad image is never an exception: it is a row with a status
(fcn_ray.tables.schema). Messages go into logs, rows and status files: what looks like a secret is left out of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

EXIT_COMPLETE = 0
EXIT_BAD_IMAGES = 3
"""Complete, or ended early: more bad images than the limits allow; or input files that could not be opened."""

_SECRETS = (
    re.compile(r"(?<=://)[^\s/?#@'\"]+(?=@)"),  # user:password@
    re.compile(r"(?i)\b(?:x-(?:amz|goog)-[a-z-]{1,40}|awsaccesskeyid|signature|sig)=([^\s&'\"<>]+)"),
    re.compile(r"(?i)\b\w{0,40}(?:token|secret|password|passwd|api_?key|account_?key|access_?key)=([^\s&'\"<>;]+)"),
    re.compile(r"(?i)--[\w-]{0,40}(?:token|secret|password|passwd|key)[ =]+(\S+)"),
    re.compile(r"(?i)\b(?:authorization|cookie|x-(?:amz|goog)-[a-z-]{1,40})['\"]?: *['\"]?([^'\"\r\n]+)"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
)
"""Credentials in URIs, signatures and tokens in queries, options of commands, headers that prove who asks, key ids."""

_SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|_KEY(_ID)?$|APIKEY|CONNECTION_STRING|SAS$")
_MIN_SECRET = 8
"""Characters: a shorter value of such an environment variable is a test's, and would be found in innocent words."""


def redact(text: str) -> str:
    """`text` with *** for what looks like a secret, or is one of this process' environment."""
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET and _SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    return redact_places(text)


def redact_places(text: str) -> str:
    """`text` with *** for credentials, signatures and tokens, as URIs and headers hold them."""
    for pattern in _SECRETS:
        text = pattern.sub(lambda found: found[0].removesuffix(found[found.re.groups]) + "***", text)
    return text


def printable(text: str) -> str:
    """`text` on one line, with what no terminal, log or page should be given (control characters...) spelled out."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class FcnRayError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 1

    def __str__(self) -> str:
        return redact(super().__str__())


class ConfigError(FcnRayError):
    """A setting, a flag or a path is wrong."""

    exit_code = 2


def refuse_secrets(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError when a URI among the settings holds credentials: they are saved, and shown to others."""
    for name, value in settings.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and "://" in text and (shown := redact_places(text)) != text:
                raise ConfigError(
                    f"{name} = {shown}: settings are saved beside the results and shown by Ray, so they must hold no "
                    "secrets: the store or server has its own place for them (environment, profile, role)"
                )


class DataError(FcnRayError):
    """Training or label data is not what it must be: sizes, class ids, missing rows."""

    exit_code = 2


class ResourceError(FcnRayError):
    """The cluster does not have the CPUs, GPUs or memory that the job asks for."""

    exit_code = 2


class IncompleteError(FcnRayError):
    """The job stopped before its end; nothing is lost and the same command continues."""

    exit_code = 4


class ForeignOutputError(FcnRayError):
    """The output folder holds something that this job did not write."""

    exit_code = 5


class SchemaError(FcnRayError):
    """The input's columns or types are refused."""

    exit_code = 6


class DivergedError(FcnRayError):
    """Training produced a loss or a weight that is not finite."""

    exit_code = 7


class BundleError(FcnRayError):
    """The model bundle is missing, changed, or not one of ours."""

    exit_code = 8


class StorageError(FcnRayError):
    """Storage could not be read or written."""

    exit_code = 9


class OutOfReachError(StorageError):
    """Nothing is known of the file. Whoever takes a StorageError for a fact about a file lets this one pass."""


class UnavailableError(OutOfReachError):
    """The store does not answer, or not any more; the same command continues when it does."""


class RefusedError(OutOfReachError):
    """The place cannot be used by us: no credentials, no such bucket, another region."""


class UnequippedError(RefusedError):
    """This machine cannot ask the store at all: it has no credentials, or no account. Says nothing of the place."""


class NotInstalledError(ConfigError, UnequippedError):
    """The place needs a package that is not installed where it is asked for, which may be one machine of many."""


class AuditError(FcnRayError):
    """The audit found that the output does not keep its promises."""

    exit_code = 10


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end by SIGTERM: an interrupt, but nobody sits at the keyboard."""
