"""What a worker's process is made ready for, in a process of its own: TensorFlow takes it in only before it begins."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.keras

ADD = """
import resource

from fcn_ray.config import WorkersConfig
from fcn_ray.training.replica import use_devices

use_devices(WorkersConfig(), 1)

import tensorflow as tf

tensor = tf.ones((12, 1 << 20))
for step in range(24):
    if step == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = tensor + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Twenty tensors of 48 MiB, one after the other: 12,288 pages each."""


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries keep large blocks")
def test_memory_of_a_large_tensor_is_there_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CPU_ALLOCATOR_USE_BFC", raising=False)
    result = subprocess.run([sys.executable, "-c", ADD], capture_output=True, text=True, timeout=200, check=True)
    assert int(result.stdout) < 2 * 12_288, "the system gave the pages anew"
