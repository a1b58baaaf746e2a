"""The network for ONNX Runtime and OpenVINO: fcn_ray's export, uint8 images in, and the argmax behind it."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.peers.shared import LabelFunction


def write_onnx(bundle: str, out: Path) -> None:
    """uint8 RGB (N, H, W, 3) "pixels" in, uint8 (N, H, W) "mask" out, unless it is there already."""
    import onnx
    from onnx import TensorProto, helper

    from fcn_ray.inference.export import export

    if out.exists():
        return
    logits_file = out.with_name("logits.onnx")
    logits_file.unlink(missing_ok=True)
    export(bundle, str(logits_file))
    model = onnx.load(logits_file)
    graph = model.graph
    image, logits = graph.input[0].name, graph.output[0].name
    axes = ["batch", "height", "width"]
    graph.node.insert(0, helper.make_node("Cast", ["pixels"], [image], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("ArgMax", [logits], ["ids"], axis=3, keepdims=0))
    graph.node.append(helper.make_node("Cast", ["ids"], ["mask"], to=TensorProto.UINT8))
    del graph.input[0], graph.output[0]
    graph.input.insert(0, helper.make_tensor_value_info("pixels", TensorProto.UINT8, [*axes, 3]))
    graph.output.append(helper.make_tensor_value_info("mask", TensorProto.UINT8, axes))
    onnx.save(model, out)


def load_session(path: Path | str) -> LabelFunction:
    """It in ONNX Runtime, on all cores."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["mask"], {"pixels": images})[0]
