from __future__ import annotations

import time

from fcn_ray.training.meter import Meter, find_peak_memory, time_each


def test_the_mean_is_that_of_the_steps_that_were_taken() -> None:
    meter = Meter(batch_size=4)
    assert meter.read()["loss"] is None
    for loss, waited in ((1.0, 0.0), (None, 0.0), (2.0, 0.0)):
        meter.add(loss, waited)
    time.sleep(0.02)
    read = meter.read()
    assert read["loss"] == 1.5
    assert 0 < read["images_per_second"] <= 12 / 0.02


def test_waiting_is_a_share_of_the_time() -> None:
    meter = Meter(batch_size=1)
    time.sleep(0.05)
    meter.add(1.0, 0.02)
    assert 0 < meter.input_wait() <= 0.4


def test_items_are_numbered_and_waited_for() -> None:
    def slow() -> object:
        yield "a"
        time.sleep(0.05)
        yield "b"

    (first, a, _), (second, b, waited) = list(time_each(slow()))
    assert [(first, a), (second, b)] == [(1, "a"), (2, "b")]
    assert waited >= 0.05


def test_memory_is_in_bytes() -> None:
    assert 2**20 < find_peak_memory() < 2**40
