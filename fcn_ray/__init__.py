"""fcn_ray: train fully convolutional networks on Ray Train, label image collections with Ray Data.

The names below load their modules when first used, so that `import fcn_ray` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fcn_ray.bundle import Bundle as Bundle
    from fcn_ray.bundle import grow as grow
    from fcn_ray.bundle import load_bundle as load_bundle
    from fcn_ray.bundle import save_bundle as save_bundle
    from fcn_ray.cluster import connect as connect
    from fcn_ray.config import CheckConfig as CheckConfig
    from fcn_ray.config import ModelSpec as ModelSpec
    from fcn_ray.config import SegmentConfig as SegmentConfig
    from fcn_ray.config import TrainConfig as TrainConfig
    from fcn_ray.config_text import load_config as load_config
    from fcn_ray.datasets.importing import import_dataset as import_dataset
    from fcn_ray.demo import demo as demo
    from fcn_ray.errors import FcnRayError as FcnRayError
    from fcn_ray.evaluation import evaluate as evaluate
    from fcn_ray.inference.export import export as export
    from fcn_ray.inference.job import segment as segment
    from fcn_ray.labels import LabelSet as LabelSet
    from fcn_ray.models.fcn import build_fcn as build_fcn
    from fcn_ray.models.surgery import convolutionalize as convolutionalize
    from fcn_ray.tables.audit import audit as audit
    from fcn_ray.tables.current import read_masks as read_masks
    from fcn_ray.training.check import check as check
    from fcn_ray.training.job import train as train
else:
    _HOMES = {
        "Bundle": "fcn_ray.bundle",
        "CheckConfig": "fcn_ray.config",
        "FcnRayError": "fcn_ray.errors",
        "LabelSet": "fcn_ray.labels",
        "ModelSpec": "fcn_ray.config",
        "SegmentConfig": "fcn_ray.config",
        "TrainConfig": "fcn_ray.config",
        "audit": "fcn_ray.tables.audit",
        "build_fcn": "fcn_ray.models.fcn",
        "check": "fcn_ray.training.check",
        "connect": "fcn_ray.cluster",
        "convolutionalize": "fcn_ray.models.surgery",
        "demo": "fcn_ray.demo",
        "evaluate": "fcn_ray.evaluation",
        "export": "fcn_ray.inference.export",
        "grow": "fcn_ray.bundle",
        "import_dataset": "fcn_ray.datasets.importing",
        "load_bundle": "fcn_ray.bundle",
        "load_config": "fcn_ray.config_text",
        "read_masks": "fcn_ray.tables.current",
        "save_bundle": "fcn_ray.bundle",
        "segment": "fcn_ray.inference.job",
        "train": "fcn_ray.training.job",
    }
    __all__ = sorted([*_HOMES, "__version__"])

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'fcn_ray' has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return __all__
