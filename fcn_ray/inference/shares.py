"""What each process of a labelling job reserves from Ray."""

from __future__ import annotations

from dataclasses import dataclass

from fcn_ray.config import PredictConfig


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that each process of a stage reserves."""

    prepare: int
    predict: int
    commit: int


@dataclass(frozen=True, slots=True)
class Shares:
    """What each process of a stage reserves: `predict` has the CPUs and GPUs of an actor."""

    memory: Memory
    predict: PredictConfig
    stage_cpus: float
