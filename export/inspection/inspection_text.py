"""The figures of an inspection as text, the same on a terminal and on a page."""

from collections.abc import Sequence

from fuseline.export.inspection.inspected import Inspection, Layer
from fuseline.serve.model_package import Manifest


def field_text(layer: Layer) -> str:
    """Return a layer's receptive field: `35`, `35x17`, `35 + all` with a gate that sees everything, or `all`."""
    if layer.receptive_field_pixels is None:
        return "all"
    height, width = layer.receptive_field_pixels
    size = str(height) if height == width else f"{height}x{width}"
    return f"{size} + all" if layer.sees_whole_input else size


def tensors_text(manifest: Manifest) -> str:
    """Return what a package's graphs take and give, by the names that clients use, and who normalises."""
    spec, normalization = manifest.input, manifest.normalization
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (normalization.mean, normalization.std))
    by = "pixels, which the graph normalises by" if normalization.folded else "(pixel / 255 - mean) / std, with"
    return (
        f"takes {spec.name}, {spec.datatype} {spec.layout} [images, {', '.join(map(str, spec.row_shape))}]: {by} mean "
        f"{mean} and std {std}; gives logits as {manifest.output_name}, FP32 [images, {manifest.classes}]"
    )


def window_text(layer: Layer) -> str:
    """Return a layer's kernel, with dilation and groups where they are not 1: `3x3 dilation 2 groups 32`."""
    if layer.kernel is None:
        return ""
    parts = ["x".join(map(str, layer.kernel))]
    if layer.dilation != (1, 1):
        parts.append(f"dilation {_pair_text(layer.dilation)}")
    if layer.groups > 1:
        parts.append(f"groups {layer.groups}")
    return " ".join(parts)


def stride_text(layer: Layer) -> str:
    """Return a layer's stride: `2`, or `2x1` where the axes differ; "" if it has none."""
    return "" if layer.stride is None else _pair_text(layer.stride)


def parameters_text(inspection: Inspection) -> str:
    """Return how many parameters there are, and where."""
    in_layers = sum(layer.parameters for layer in inspection.layers)
    weighted = sum(1 for layer in inspection.layers if layer.multiply_adds)
    parts = [f"{in_layers:,} in {weighted} convolutions and linear layers"]
    if inspection.batchnorms:
        norms = sum(facts.parameters for facts in inspection.batchnorms)
        parts.append(f"{norms:,} in {len(inspection.batchnorms)} BatchNorms")
    if inspection.other_parameters:
        parts.append(f"{inspection.other_parameters:,} elsewhere")
    return f"{inspection.parameters:,} parameters: {', '.join(parts)}"


def fp16_risk_text(inspection: Inspection) -> str:
    """Return how many risks FP16 has, or that none was seen."""
    risks = sum(len(facts.risks) for facts in inspection.fp16.layers)
    if risks:
        return f"{risks} at risk"
    return "no weight at risk" if inspection.fp16.images is None else "nothing at risk"


def short_count(count: int) -> str:
    """Return a count in at most 7 characters: `1,728`, `2.36 M`, `4.09 G`."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.{2 if count < 100 * size else 1 if count < 1000 * size else 0}f} {unit}"
    return f"{count:,}"


def figure(value: float) -> str:
    """Return a number with three significant digits, as short as possible."""
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")


def _pair_text(pair: Sequence[int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else "x".join(map(str, pair))
