"""The program `fcn-ray` (also `python -m fcn_ray`): signals, stderr, exit codes; the commands are in fcn_ray.cli."""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fcn_ray.cli import app
from fcn_ray.errors import EXIT_COMPLETE, FcnRayError, TerminatedError
from fcn_ray.reports.console import log_plainly, plain_lines


def main() -> None:
    """Run the command line and exit with the codes of fcn_ray.errors."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, partial(_interrupt, received))
    log_plainly()
    native = None if {"-v", "--verbose"} & set(sys.argv) else _divert_native_stderr()
    try:
        code = app(standalone_mode=False)
    except FcnRayError as error:
        _fail(f"error: {error}", error.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # a click usage error; click itself is typer's business
            _fail(f"error: {error.format_message()}\nTry 'fcn-ray --help'.", getattr(error, "exit_code", 2))
        with suppress(OSError):  # jobs of days have their log swept away
            if native is not None and native.stat().st_size:
                atexit.unregister(native.unlink)
                print(f"what libraries wrote meanwhile is in {native}", file=sys.stderr)
        raise
    if received:  # typer makes one exit code of every interrupt
        _fail("stopped: what is finished is safe; the same command goes on (train: with --resume)", 128 + received[0])
    sys.exit(code if isinstance(code, int) else EXIT_COMPLETE)


def _divert_native_stderr() -> Path:
    """Send what C++ code writes to stderr (Ray, TensorFlow: dozens of lines) to a file; Python keeps the real one, and
    tells there where it was when it is killed by a signal of its own making."""
    log = tempfile.NamedTemporaryFile("w", prefix="fcn-ray-native-", suffix=".log", delete=False)  # noqa: SIM115
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8")
    os.dup2(log.fileno(), 2)
    faulthandler.enable(sys.stderr)
    # A normal end needs no such log; after a crash this does not run, and the file stays.
    path = Path(log.name)
    atexit.register(path.unlink, missing_ok=True)
    return path


def _interrupt(received: list[int], number: int, _frame: FrameType | None) -> None:
    """Interrupt the job once; a second signal while it puts things in order changes nothing, the third ends it."""
    received.append(number)
    if len(received) > 2:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    if len(received) == 1:
        raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    print(*plain_lines(message), sep="\n    ", file=sys.stderr)  # only a message of ours begins at the margin
    sys.exit(code)


if __name__ == "__main__":
    main()
