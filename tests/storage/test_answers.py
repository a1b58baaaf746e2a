"""What is said while a store is waited for."""

import pytest

from fcn_ray.errors import ConfigError, UnavailableError
from fcn_ray.storage import answers

HINT = r"has not answered once: is AWS_ENDPOINT_URL right"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has asked for nothing yet, and little time."""
    monkeypatch.setattr(answers, "_answered", set())
    monkeypatch.setattr(answers, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0.05")


def _fail() -> None:
    raise answers.Passing("no connection")


def _miss() -> None:
    raise answers.Missing("no object")


def test_a_store_that_never_answered_may_be_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnavailableError, match=HINT):
        answers.patiently("s3://bucket/a", _fail)
    (line,) = caplog.messages
    assert line.startswith("s3://bucket/a: no connection; tried again for up to 0.05 seconds. It has not answered once")


def test_a_store_that_has_answered_is_where_it_is_looked_for(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(answers.Missing):
        answers.patiently("s3://bucket/a", _miss)
    with pytest.raises(UnavailableError, match=r"when the store answers again$"):
        answers.patiently("s3://bucket/a", _fail)
    assert not caplog.messages, "short pauses are nothing to tell of"


def test_a_long_wait_is_told_of_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "TELL_SECONDS", 0.01)
    answers.patiently("s3://bucket/a", lambda: "data")
    with pytest.raises(UnavailableError):
        answers.patiently("s3://bucket/a", _fail)
    assert caplog.messages == ["s3://bucket/a: no connection; tried again for up to 0.05 seconds"]


def test_a_patience_that_is_no_number_is_a_mistake_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "10m")
    with pytest.raises(ConfigError, match="FCN_RAY_PATIENCE_SECONDS is '10m': expected a number of seconds"):
        answers.patiently("s3://bucket/a", lambda: "data")
