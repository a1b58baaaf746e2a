"""Failpoints: named steps at which a test lets a process die, fail or hang (`FCN_RAY_FAILPOINT=name:n:action`).

Every step after which storage holds something else has one, so that tests can try them all. Without the variable, which
is read at each step and nowhere else, a failpoint does nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import time

from fcn_ray.errors import ConfigError

VARIABLE = "FCN_RAY_FAILPOINT"

_ACTIONS = ("kill", "raise", "hang")

_reached = 0
"""How often this process came to the step that the variable names."""


def fail_at(name: str) -> None:
    """The step `name` is reached: what the variable asks for happens here, the n-th time in this process.

    kill is SIGKILL to this process, raise an OSError (EIO), hang a sleep without end; a line on stderr says so before.
    Raises ConfigError when the variable cannot be understood.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is not None:
        _act(name, wanted)


def _act(name: str, wanted: str) -> None:
    global _reached
    step, number, action = _parse(wanted)
    if step != name:
        return
    _reached += 1
    if _reached != number:
        return
    os.write(2, f"failpoint {wanted}\n".encode())
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "raise":
        raise OSError(errno.EIO, f"failpoint {wanted}")
    while True:
        time.sleep(3600)


def _parse(wanted: str) -> tuple[str, int, str]:
    name, number, action = [*wanted.split(":"), "", ""][:3]
    if wanted.count(":") != 2 or not number.isdecimal() or int(number) < 1 or action not in _ACTIONS:
        raise ConfigError(f"{VARIABLE} is {wanted!r}; expected name:n:action with n from 1 on, action {_ACTIONS}")
    return name, int(number), action
