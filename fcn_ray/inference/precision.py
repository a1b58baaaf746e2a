"""In which precision a run predicts: settled once, on the driver, so that all actors make the same masks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fcn_ray.bundle import Bundle
from fcn_ray.config import Precision

SLOW = (
    "bfloat16 is emulated by %s, which is slower than float32: run the job on other hardware, or set "
    "predict.precision=float32, which is another run"
)
"""A log message about a kind of hardware."""

CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Of CPUs that compute in bfloat16: x86 twice, and ARM."""


def settle_precision(wanted: Literal["auto"] | Precision, bundle: Bundle) -> Precision:
    """What a run takes: what is wanted, or what the bundle was validated in."""
    return bundle.precision if wanted == "auto" else wanted


def cpu_emulates_bfloat16() -> bool:
    """Whether this machine's CPU says that it lacks the instructions; False where it says nothing."""
    flags = _cpu_flags()
    return bool(flags) and not flags & CPU_FLAGS


def _cpu_flags() -> set[str]:
    """What this machine's CPU says that it has; nothing where it says nothing."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return set()
    return {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
