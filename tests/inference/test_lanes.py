"""Passes side by side: as many as there are lanes, within their pixels, and what comes out is in order."""

import random
import threading
import time

import pytest

from fcn_ray.inference.lanes import PASS_PIXELS, Lanes


class _Watch:
    """A call that takes a while, and what was under way at once: most calls, and most pixels of several."""

    def __init__(self) -> None:
        self._lock, self._running = threading.Lock(), list[int]()
        self.calls = self.together = 0

    def __call__(self, pixels: int) -> int:
        with self._lock:
            self._running.append(pixels)
            self.calls = max(self.calls, len(self._running))
            if len(self._running) > 1:
                self.together = max(self.together, sum(self._running))
        time.sleep(0.002 * random.random())
        with self._lock:
            self._running.remove(pixels)
        return pixels


def test_what_comes_out_is_in_order_and_within_the_limits() -> None:
    sizes = [random.choice([1, 2, 3, 5, 9]) for _ in range(200)]
    lanes, watch = Lanes(3, 5), _Watch()
    assert list(lanes.map(watch, sizes, sizes)) == sizes
    assert 2 <= watch.calls <= 3
    assert watch.together <= 5, "one of 9 goes alone"


def test_passes_really_go_on_at_once() -> None:
    meeting = threading.Barrier(3, timeout=20)
    assert len(set(Lanes(3, 100).map(lambda _: meeting.wait(), [1, 2, 3], [1, 1, 1]))) == 3


def test_large_passes_begin_in_their_order() -> None:
    begun: list[int] = []
    lanes = Lanes(4, 5)
    list(lanes.map(begun.append, range(60), [9] * 60))
    list(lanes.map(begun.append, range(60, 120), [9] * 60))
    assert begun == list(range(120))


@pytest.mark.parametrize(("count", "items"), [(1, [1, 2, 3]), (4, [1])])
def test_alone_it_goes_in_the_callers_thread(count: int, items: list[int]) -> None:
    found = Lanes(count, 5).map(lambda _: threading.get_ident(), items, items)
    assert set(found) == {threading.get_ident()}


def _divide_by(divisor: int) -> float:
    return 1 / divisor


def test_room_is_given_back_by_a_call_that_fails() -> None:
    lanes = Lanes(2, 5)
    with pytest.raises(ZeroDivisionError):
        list(lanes.map(_divide_by, [0, 0, 0], [5, 5, 5]))
    assert list(lanes.map(_divide_by, [1, 2], [5, 5])) == [1, 0.5]


@pytest.mark.parametrize(
    ("count", "pixels", "of_a_pass"),
    [
        (1, 2_000_000, 2_000_000),
        (2, 2_000_000, PASS_PIXELS),
        (64, 2_000_000, PASS_PIXELS),
        (2, 1, 1),
    ],
)
def test_passes_are_of_one_size_where_there_are_several(count: int, pixels: int, of_a_pass: int) -> None:
    assert Lanes(count, pixels).pass_pixels == of_a_pass
