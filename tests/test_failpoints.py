"""Failpoints by themselves; tests/tables/test_failpoints.py lets jobs die at every one of them."""

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from fcn_ray.errors import ConfigError
from fcn_ray.failpoints import VARIABLE, fail_at
from tests.failpoints import PACKAGE, failpoint_names

_STEPS = """
from fcn_ray.failpoints import fail_at
for step in "aabab":
    fail_at(step)
    print(step, end="", flush=True)
"""


def _run(failpoint: str | None) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if failpoint:
        environment[VARIABLE] = failpoint
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", _STEPS], stdout=pipe, stderr=pipe, text=True, env=environment)


@pytest.mark.parametrize(
    ("failpoint", "steps", "code"),
    [
        (None, "aabab", 0),
        ("c:1:kill", "aabab", 0),
        ("b:3:kill", "aabab", 0),
        ("a:1:kill", "", -signal.SIGKILL),
        ("b:2:kill", "aaba", -signal.SIGKILL),
        ("a:3:raise", "aab", 1),
    ],
)
def test_the_named_step_fails_the_nth_time(failpoint: str | None, steps: str, code: int) -> None:
    process = _run(failpoint)
    printed, errors = process.communicate()
    assert (printed, process.returncode) == (steps, code)
    assert errors.startswith(f"failpoint {failpoint}\n" if code else "")
    assert ("OSError: [Errno 5]" in errors) == (code == 1)


def test_a_hanging_step_says_so_and_goes_nowhere() -> None:
    process = _run("a:2:hang")
    assert process.stderr is not None
    assert process.stderr.readline() == "failpoint a:2:hang\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    process.kill()
    assert process.communicate()[0] == "a"


@pytest.mark.parametrize("text", ["", "a", "a:1", "a:0:kill", "a:x:kill", "a:1:stop", "a:1:kill:", "a:-1:raise"])
def test_a_failpoint_that_cannot_be_understood(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """In silence a test that names it would try nothing."""
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match="expected name:n:action"):
        fail_at("step")


def test_every_failpoint_is_one_place_with_a_plain_name() -> None:
    names = failpoint_names()
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert {"run", "plan", "write", "put", "chunk", "manifest", "success", "replace", "status", "audit"} == {
        name.partition(".")[0] for name in names
    }


def test_nothing_but_the_environment_reaches_a_failpoint() -> None:
    """The package only marks steps: it neither sets the variable nor takes more from the module than `fail_at`."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert VARIABLE not in text or path.name == "failpoints.py"
        for line in text.splitlines():
            assert "failpoints" not in line or "import" not in line or line.endswith("import fail_at")
