"""A network as .keras, SavedModel or ONNX: how each is written. The job around it is fcn_ray.inference.export.

All writers take a network of `take_raw_images`, a path where nothing is, and what else a program should know about it.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fcn_ray.errors import ConfigError

LABELS = "labels.json"
MAX_ONNX_BYTES = 2_000_000_000
"""An ONNX file is one Protocol Buffers message, which ends at 2 GiB."""

About = Mapping[str, Any]
"""Text, numbers and lists by name."""


def write_keras(model: keras.Model, path: Path, about: About) -> None:
    """A .keras file, with `about` as labels.json in its archive."""
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:  # Keras reads its own names only
        archive.writestr(LABELS, _to_json(about))


def write_saved_model(model: keras.Model, path: Path, about: About) -> None:
    """A SavedModel folder, with `about` in assets.extra/labels.json, where TensorFlow leaves a user's files alone."""
    named = keras.Model(model.input, {"logits": model.output})  # Keras would call it output_0
    signature = [keras.InputSpec(shape=(None, None, None, 3), dtype="float32", name="image")]
    named.export(path, format="tf_saved_model", verbose=False, input_signature=signature)
    extra = path / "assets.extra"
    extra.mkdir()
    (extra / LABELS).write_text(_to_json(about), encoding="utf-8")


def write_onnx(model: keras.Model, path: Path, about: About) -> None:
    """An ONNX file, with `about` in its metadata; what is not text as JSON. Raises ConfigError above 2 GiB."""
    import onnx

    size = sum(4 * math.prod(weight.shape) for weight in model.weights)
    if size > MAX_ONNX_BYTES:
        raise ConfigError(f"the network has {size:,} bytes of weights, an ONNX file 2 GiB at most: export a SavedModel")
    proto = _convert(model)
    for value in (*proto.graph.input, *proto.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, ("batch", "height", "width"), strict=False):
            dimension.dim_param = name
    onnx.helper.set_model_props(proto, {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()})
    onnx.save(proto, path)


WRITERS: dict[str, Callable[[keras.Model, Path, About], None]] = {
    "keras": write_keras,
    "savedmodel": write_saved_model,
    "onnx": write_onnx,
}
"""By format."""


def _to_json(about: About) -> str:
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def _convert(model: keras.Model) -> Any:
    """onnx.ModelProto of `model`, "image" -> "logits".

    tf2onnx copies a graph with its constants dozens of times: Keras' own ONNX export of an FCN on VGG16, 0.5 GB, took
    more than 22 GB. So the kernels are inputs of the graph that it converts, and are put in afterwards.
    """
    import onnx
    import tensorflow as tf
    import tf2onnx

    kernels = {f"kernel_{i}": w for i, w in enumerate(w for w in model.weights if len(w.shape) == 4)}

    def apply(image: Any, *values: Any) -> dict[str, Any]:
        with keras.StatelessScope(state_mapping=list(zip(kernels.values(), values, strict=True))):
            return {"logits": model(image, training=False)}

    shapes = {"image": (None, None, None, 3)} | {name: kernel.shape for name, kernel in kernels.items()}
    signature = [tf.TensorSpec(shape, tf.float32, name=name) for name, shape in shapes.items()]
    proto, _ = tf2onnx.convert.from_function(tf.function(apply, autograph=False), signature)
    for value in list(proto.graph.input):
        if value.name in kernels:
            proto.graph.input.remove(value)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(kernels[value.name]), value.name))
    return _fold_constants(proto)


def _fold_constants(proto: Any) -> Any:
    """`proto` with what depends on no input computed: that is how each kernel is turned round for its convolution."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    def with_graph(nodes: list[Any], inputs: Any, outputs: Any, tensors: Any) -> Any:
        graph = onnx.helper.make_graph(nodes, proto.graph.name, inputs, outputs, tensors)
        return onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)

    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    constant, nodes = set(tensors), {True: list[Any](), False: list[Any]()}
    for node in proto.graph.node:  # each comes after what it needs: the standard says so
        is_constant = len(node.input) > 0 and constant.issuperset(node.input)
        nodes[is_constant].append(node)
        constant.update(node.output if is_constant else ())
    needed = {name for node in nodes[False] for name in node.input}
    names = sorted(needed & constant - set(tensors))
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in names]
    found = ReferenceEvaluator(with_graph(nodes[True], [], values, tensors.values())).run(names, {})
    kept = [tensor for name, tensor in tensors.items() if name in needed]
    kept += [onnx.numpy_helper.from_array(array, name) for name, array in zip(names, found, strict=True)]
    return with_graph(nodes[False], proto.graph.input, proto.graph.output, kept)
