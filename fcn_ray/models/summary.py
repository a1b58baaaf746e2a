"""What a network is in figures: weights, arithmetic, what a cell sees. Counted on the network itself."""

from __future__ import annotations

from collections.abc import Iterator

from fcn_ray.config import ModelSpec
from fcn_ray.models.coordinates import count_multiply_adds, halo, receptive_field
from fcn_ray.models.fcn import SCORE_NAMES, build_fcn, count_parameters


def summarize(spec: ModelSpec, height: int, width: int) -> Iterator[tuple[str, str]]:
    """(figure, value) of the network of `spec` for images of `height` x `width` pixels.

    Multiply-adds are those of all convolutions and deconvolutions; a FLOP count is twice as large.
    """
    model = build_fcn(spec, seed=None)
    yield "network", f"FCN-{spec.variant} on {spec.backbone}, {spec.num_classes} classes, geometry {spec.geometry}"
    yield "parameters", f"{count_parameters(model):,}"
    yield f"multiply-adds of {width}x{height} pixels", f"{count_multiply_adds(model, height, width) / 1e9:.1f} G"
    for layer in SCORE_NAMES.values():
        if layer in {found.name for found in model.layers}:
            try:
                seen = f"{receptive_field(model.input, model.get_layer(layer).output)} pixels"
            except ValueError:
                seen = "the whole image"
            yield f"a cell of {layer} sees", seen
    try:
        yield "margin of a tile", f"{halo(model)} pixels"
    except ValueError as reason:
        yield "margin of a tile", f"no tiles: {reason}"
