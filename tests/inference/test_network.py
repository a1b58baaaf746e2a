from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from fcn_ray.bundle import load_bundle
from fcn_ray.inference import network
from fcn_ray.models.probe import Answer

pytestmark = pytest.mark.keras


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_garbage_collector_rests_while_a_network_is_compiled(
    enabled: bool, fails: bool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    ask: Callable[..., Answer] = network.ask

    def look(*arguments: object) -> Answer:
        seen.append(gc.isenabled())
        if fails:
            raise MemoryError("no room")
        return ask(*arguments)

    monkeypatch.setattr(network, "ask", look)
    bundle = load_bundle(str(tiny_bundle))
    if not enabled:
        gc.disable()
    try:
        if fails:
            with pytest.raises(MemoryError):
                network.compile_network(bundle, 0, "float32")
        else:
            network.compile_network(bundle, 0, "float32")
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    assert seen
    assert not any(seen)
