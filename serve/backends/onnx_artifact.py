"""Which ONNX graph of a package a runtime is given."""

from serve.errors import BackendUnavailableError
from serve.model_package import Artifact, ModelPackage


def onnx_artifact(package: ModelPackage, precision: str, *, prefer_fp16: bool) -> Artifact:
    """The ONNX artifact of `precision`; for `auto` the FP16 one if `prefer_fp16` and there is one, else FP32.

    Raises:
        BackendUnavailableError: the package has no graph of that precision.
    """
    wanted = [precision] if precision != "auto" else ["fp16", "fp32"] if prefer_fp16 else ["fp32"]
    for name in wanted:
        if (artifact := package.find("onnx", name)) is not None:
            return artifact
    held = ", ".join(a.precision for a in package.manifest.artifacts if a.format == "onnx")
    raise BackendUnavailableError(
        f"package {package.manifest.name} has no {precision} ONNX graph, only {held}; export it with --{precision}"
    )
