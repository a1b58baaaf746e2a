"""What the commands print: plain lines that read well in a terminal and in a job's log."""

from __future__ import annotations

import logging
import math
import sys
import traceback
from collections.abc import Iterable, Sequence
from types import TracebackType

from fcn_ray.errors import printable, redact


def say(text: str = "") -> None:
    """One line on standard output, at once (a job's log must not lag behind the job).

    Names come from files: what would steer the terminal, or look like another line, is spelled out.
    """
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def print_lines(lines: Iterable[str]) -> None:
    """A report, line by line."""
    for line in lines:
        say(line)


def plain_lines(text: str) -> list[str]:
    """The lines of `text` as a terminal or a log may have them: no control characters, no secrets."""
    return [printable(line) for line in redact(text).splitlines()]


def log_plainly() -> None:
    """Put our warnings, and the traceback of a crash, on standard error as `plain_lines`."""
    handler = _Stderr(logging.WARNING)
    logger = logging.getLogger("fcn_ray")
    logger.addHandler(handler)
    logger.propagate = False
    sys.excepthook = _report_crash


class _Stderr(logging.Handler):
    """Writes to what sys.stderr is at that time; the command line gives it another one."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line, and those of the traceback."""
        try:
            trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
            _warn([printable(redact(record.getMessage())), *plain_lines(trace)])
        except Exception:  # a closed terminal must not cost the job
            self.handleError(record)


def _report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _warn(plain_lines("".join(traceback.format_exception(kind, error, trace))))


def _warn(lines: Iterable[str]) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def print_settings(rows: Sequence[tuple[str, str, str]]) -> None:
    """Settings as YAML-like lines with their meaning."""
    width = max(len(key) for key, _, _ in rows)
    for key, default, meaning in rows:
        say(f"{key:<{width}}  {default:<12}  {meaning}")


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """(name, value) pairs as two columns."""
    rows = list(facts)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def shorten(text: str, width: int) -> str:
    """`text` in one line of at most `width` >= 1 characters; names come from files, so nothing unprintable stays."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= width else line[: width - 1] + "…"


def percent(value: float | None) -> str:
    """0.8512 -> "85.1 %"; a class that does not occur has no value."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"
