from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.keras


def test_the_rate_rises_in_the_warm_up_and_falls_to_zero() -> None:
    from fcn_ray.training.schedule import WarmupPoly

    schedule = WarmupPoly(0.1, steps=100, warmup=10, power=0.9)
    rates = [float(schedule(step)) for step in range(101)]
    assert np.isclose(rates[0], 0.01)
    assert np.isclose(rates[9], 0.1 * (1 - 0.09) ** 0.9)
    assert np.isclose(rates[50], 0.1 * 0.5**0.9)
    assert rates[100] == 0
    assert rates[9] == max(rates)
    assert [float(WarmupPoly(0.5, steps=10, power=0)(step)) for step in (0, 9, 10)] == [0.5] * 3, "the paper's"
    assert float(WarmupPoly(0.1, steps=10)(0)) == pytest.approx(0.1)
    assert WarmupPoly(**schedule.get_config()).get_config() == schedule.get_config()
