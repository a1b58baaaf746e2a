"""Every knob once: its default, its unit, its check.

A job is one frozen pydantic model, read as: defaults < YAML file < `--set a.b=1` and named flags (config_text.py). An
unknown key is an error that names the nearest valid one. Below these files functions take plain values, so that rooms
stay reusable.
"""

from fcn_ray.config.labelling import ChunkConfig, PredictConfig, SegmentConfig
from fcn_ray.config.network import (
    CAFFE_PREPROCESSING,
    FC6_SIZE,
    PAPER_BACKBONES,
    VARIANTS,
    Architecture,
    Backbone,
    ModelConfig,
    ModelSpec,
    Precision,
    Preprocessing,
)
from fcn_ray.config.section import STRIDE, Positive, Section
from fcn_ray.config.training import (
    AugmentConfig,
    CheckConfig,
    DivergenceConfig,
    LossConfig,
    OptimizerConfig,
    TrackConfig,
    TrainConfig,
    WorkersConfig,
)

__all__ = [
    "CAFFE_PREPROCESSING",
    "FC6_SIZE",
    "PAPER_BACKBONES",
    "STRIDE",
    "VARIANTS",
    "Architecture",
    "AugmentConfig",
    "Backbone",
    "CheckConfig",
    "ChunkConfig",
    "DivergenceConfig",
    "LossConfig",
    "ModelConfig",
    "ModelSpec",
    "OptimizerConfig",
    "Positive",
    "Precision",
    "PredictConfig",
    "Preprocessing",
    "Section",
    "SegmentConfig",
    "TrackConfig",
    "TrainConfig",
    "WorkersConfig",
]
