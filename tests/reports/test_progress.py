import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_ray.reports.progress import Progress, format_duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def log_lines(total, updates, **options):
    """What a log shows of updates (seconds since the start, done, bad)."""
    clock, stream = Clock(), io.StringIO()
    with Progress(total, stream=stream, clock=clock, **options) as progress:
        for seconds, done, bad in updates:
            clock.now = 100.0 + seconds
            progress.update(done, bad)
    return stream.getvalue().splitlines()


def test_a_log_gets_a_line_each_interval_and_the_state_at_the_end():
    updates = [(second, 10 * second, 0) for second in range(1, 13)]
    assert log_lines(200, updates) == [
        "50/200 images (25 %)  10.0 images/s  15 s left",
        "100/200 images (50 %)  10.0 images/s  10 s left",
        "120/200 images (60 %)  10.0 images/s  8.0 s left",
    ]
    # The last of these six is also the state at the end: it is not written twice.
    assert len(log_lines(200, updates, interval_seconds=2.0)) == 6


def test_the_last_line_says_how_long_it_took_and_what_is_bad():
    assert log_lines(4, [(20, 2, 0), (30, 4, 1)])[-1] == "4/4 images (100 %)  0.2 images/s  in 30 s  1 bad"


def test_without_two_updates_nothing_is_promised():
    assert log_lines(4, [(6, 2, 0)]) == ["2/4 images (50 %)"]


def test_nothing_to_do_is_no_division_by_zero():
    assert log_lines(0, []) == ["0/0 images  in 0.0 s"]


def test_updates_in_the_same_moment_give_no_rate():
    clock = Clock()
    progress = Progress(9, stream=io.StringIO(), clock=clock)
    progress.update(1)
    progress.update(2)
    assert progress.rate() is None


def test_the_rate_is_that_of_the_last_minute():
    clock = Clock()
    progress = Progress(100_000, stream=io.StringIO(), clock=clock)
    done = 0
    for per_second, seconds in ((1, 300), (50, 100)):
        for _ in range(seconds * 4):  # more often than samples are kept
            clock.now += 0.25
            done += per_second / 4
            progress.update(done)
    assert progress.rate() == pytest.approx(50, rel=1e-6)
    assert len(progress._samples) <= 100


def test_a_terminal_line_is_drawn_over_and_wiped():
    clock, stream = Clock(), Terminal()
    progress = Progress(1000, stream=stream, clock=clock, width=lambda: 80)
    for done in (100, 200, 1000):
        clock.now += 10
        progress.update(done, 0)
    progress.close()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")
    draws = stream.getvalue().rstrip("\n").split("\r")[1:]
    assert draws[1].startswith("200/1000 images (20 %)  10.0 images/s  1 min 20 s left")
    assert len(draws[2]) == len(draws[1])  # padded over what was longer
    assert draws[2].rstrip().endswith("in 30 s")


@given(st.integers(1, 60), st.integers(0, 10**9), st.integers(0, 10**6))
def test_a_terminal_line_never_wraps(columns, done, bad):
    clock, stream = Clock(), Terminal()
    progress = Progress(10**9, stream=stream, clock=clock, width=lambda: columns)
    for step in (1, 2):
        clock.now += 1
        progress.update(done * step // 2, bad)
    progress.close()
    assert max(len(draw.rstrip("\n")) for draw in stream.getvalue().split("\r")) <= max(1, columns - 1)


def test_a_terminal_that_has_shrunk_is_not_overflowed():
    clock, stream, columns = Clock(), Terminal(), [80]
    progress = Progress(10**6, stream=stream, clock=clock, width=lambda: columns[0])
    for done, width in ((1000, 80), (2000, 80), (3000, 20)):
        columns[0] = width
        clock.now += 10
        progress.update(done)
    assert stream.getvalue().split("\r")[-1] == "3000/1000000 images"


def test_a_terminal_is_not_flooded():
    clock, stream = Clock(), Terminal()
    progress = Progress(1000, stream=stream, clock=clock, width=lambda: 80)
    for done in range(1000):
        clock.now += 0.001
        progress.update(done)
    assert stream.getvalue().count("\r") <= 10


def test_the_status_is_written_now_and_then_and_at_the_end():
    written = []
    log_lines(40, [(0.5 * n, n, n // 20) for n in range(1, 21)], write_status=written.append)
    assert [facts["done"] for facts in written] == [4, 8, 12, 16, 20, 20]
    assert written[-1] == {"done": 20, "total": 40, "bad": 1, "images_per_second": 2.0, "seconds_left": 10.0}


def test_closing_twice_says_it_once():
    stream = io.StringIO()
    with Progress(1, stream=stream) as progress:
        progress.update(1)
        progress.close()
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3659, "1 h"),
        (7500, "2 h 5 min"),
        (86400 * 3 + 4 * 3600 + 59, "3 d 4 h"),
        (math.inf, "?"),
        (math.nan, "?"),
        (-1, "?"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
