"""Chooses the ONNX graph of a package that a runtime is given."""

from typing import Literal

from fuseline.serve.errors import BackendUnavailableError
from fuseline.serve.model_package import Artifact, ModelPackage
from fuseline.serve.precision import PRECISIONS, PrecisionName, chosen_unasked
from fuseline.serve.process.memory_guard import check_room, memory_limit_bytes

Reader = Literal["cpu", "cuda", "tensorrt"]
"""Reader of a graph: ONNX Runtime or OpenVINO on a CPU, ONNX Runtime on a GPU, TensorRT of either kind."""
READ_BY = "read_by"
"""Key in the details of an ONNX artifact for the one reader that it is written for, as CPUs and TensorRT read different
INT8 graphs. Without it all read the artifact."""


def onnx_artifact(package: ModelPackage, precision: str, *, reader: Reader) -> Artifact:
    """Return the ONNX artifact that `precision` is computed from by `reader`; for `auto` on a GPU FP16 if there is one,
    else FP32.

    Raises:
        BackendUnavailableError: the package has no graph of that precision for `reader`.
    """
    graphs = [artifact for artifact in package.manifest.artifacts if artifact.format == "onnx"]
    wanted = chosen_unasked("cpu" if reader == "cpu" else "gpu") if precision == "auto" else (precision,)
    for name in wanted:
        graph = PRECISIONS[name].graph if name in PRECISIONS else name
        for artifact in graphs:
            if artifact.precision == graph and artifact.details.get(READ_BY, reader) == reader:
                return artifact
    name = package.manifest.name
    if others := [str(graph.details[READ_BY]) for graph in graphs if graph.precision == precision]:
        raise BackendUnavailableError(
            f"package {name} has its {precision} ONNX graph for {', '.join(others)} only, none for {reader}; "
            "report.html in it says why"
        )
    held = ", ".join(dict.fromkeys(graph.precision for graph in graphs))
    raise BackendUnavailableError(
        f"package {name} has no {precision} ONNX graph, only {held}; export it with --{precision}"
    )


def why_unwanted(package: ModelPackage, name: PrecisionName) -> str | None:
    """Return why `--precision auto` doesn't take precision `name` for `package` on any machine; None if it may."""
    row, manifest = PRECISIONS[name], package.manifest
    if package.find("onnx", row.asked_by) is None:
        return f"{manifest.name} was exported without --{row.asked_by}"
    for verified in manifest.verification:
        if verified.precision == name and not verified.passed:
            return (
                f"the export of {manifest.name} found {verified.agreement_on} agreement of {verified.agreement:.2%} "
                f"with PyTorch by {verified.backend}, which misses the bar"
            )
    return None


def why_no_graph(package: ModelPackage | None, precision: str, *, reader: Reader) -> str | None:
    """Return why `onnx_artifact` finds no graph in `package`; None if it finds one, or there is no package to judge."""
    if package is None:
        return None
    try:
        onnx_artifact(package, precision, reader=reader)
    except BackendUnavailableError as error:
        return str(error)
    return None


def read_graph(package: ModelPackage, artifact: Artifact) -> bytes:
    """Return the bytes of a graph, for a runtime that makes its own weights of them.

    Raises:
        InputError: this process may not take as much memory as both need.
        PackageError: the file is missing or damaged.
    """
    check_room(2 * artifact.bytes, memory_limit_bytes())
    return package.read(artifact)
