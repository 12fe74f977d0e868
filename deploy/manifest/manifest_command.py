"""`fuseline manifest kubernetes|kserve|ray|helm PACKAGE`."""

import hashlib
import reprlib
from pathlib import Path
from typing import Annotated

import typer

from fuseline.deploy.manifest.helm import FOLDER as CHART
from fuseline.deploy.manifest.helm import helm_values
from fuseline.deploy.manifest.kserve import kserve_documents
from fuseline.deploy.manifest.kubernetes import AUTOSCALERS, Autoscaler, Deployed, kubernetes_documents
from fuseline.deploy.manifest.measurement import Measurement, read_measurement
from fuseline.deploy.manifest.names import (
    checked_gpu,
    checked_storage_uri,
    image_from_text,
    instance_name,
    replicas_from_text,
)
from fuseline.deploy.manifest.output import MARK, check_output, write_chart, write_text
from fuseline.deploy.manifest.ray import ray_config
from fuseline.deploy.manifest.sizing import sizes_from
from fuseline.deploy.manifest.yaml_text import yaml_text
from fuseline.serve.errors import InputError
from fuseline.serve.model_package import MANIFEST_NAME, ModelPackage, is_there, load_package
from fuseline.serve.precision import listed

TARGETS = ("kubernetes", "kserve", "ray", "helm")


def manifest(
    target: Annotated[str, typer.Argument(metavar="TARGET", help=f"{listed(TARGETS)}.")],
    folder: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Model package that `fuseline export` wrote.")],
    replicas: Annotated[
        str, typer.Option(help="N, or MIN:MAX, between which an autoscaler chooses by the rows that wait.")
    ] = "2",
    image: Annotated[
        str | None,
        typer.Option(
            help="Container image; default: fuseline-NAME:VERSION, the serving image with the package in it; of kserve "
            "fuseline, which gets the package from --storage-uri."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What names of objects begin with; default: the package's, made a DNS label.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Resource of the GPU of a replica, such as nvidia.com/gpu; default: none.")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, max=4096, help="CPUs of a replica; default: those of this machine.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Seconds of load while it is measured.")] = 5.0,
    measured: Annotated[
        Path | None,
        typer.Option(help="File with a measurement: taken if it is there, else measured and written to it."),
    ] = None,
    autoscaler: Annotated[str, typer.Option(help=f"{listed(AUTOSCALERS)}; counts if --replicas is MIN:MAX.")] = "hpa",
    monitor: Annotated[
        bool | None,
        typer.Option(
            "--monitor/--no-monitor",
            help="A ServiceMonitor for the Prometheus operator; default: if --replicas is MIN:MAX.",
        ),
    ] = None,
    package_path: Annotated[
        str | None, typer.Option(help="ray: where the package is on every node; default: /models/PACKAGE.")
    ] = None,
    storage_uri: Annotated[
        str | None, typer.Option(help="kserve: where the package is; default: pvc://fuseline-models/PACKAGE.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; of helm a folder, which gets the chart. Default: stdout, of helm the values."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out if this command wrote it.")] = False,
) -> None:
    """Write what Kubernetes, KServe, Ray or Helm needs to run a package, sized by its measured memory and times.

    A real server of the package is started on loopback and loaded for some seconds; nothing is sent elsewhere.
    """
    if target not in TARGETS:
        raise InputError(f"there is no manifest for {reprlib.repr(target)}; expected {listed(TARGETS)}")
    chosen: Autoscaler | None = next((known for known in AUTOSCALERS if known == autoscaler), None)
    if chosen is None:
        raise InputError(f"--autoscaler was given {reprlib.repr(autoscaler)}; expected {listed(AUTOSCALERS)}")
    if storage_uri is not None and target != "kserve":
        raise InputError(f"--storage-uri is for kserve, and {target} was asked for; leave it out")
    if package_path is not None and target != "ray":
        raise InputError(f"--package-path is for ray, and {target} was asked for; leave it out")
    if package_path is not None and not (package_path.startswith("/") and package_path.isprintable()):
        raise InputError(f"--package-path was given {reprlib.repr(package_path)}; expected an absolute path")
    count = replicas_from_text(replicas)
    package = load_package(folder)
    instance = instance_name(package.manifest.name, name)
    default_image = "fuseline" if target == "kserve" else f"fuseline-{instance}:{package.manifest.version}"
    named_image = image_from_text(default_image if image is None else image)
    uri = checked_storage_uri(f"pvc://fuseline-models/{package.manifest.name}" if storage_uri is None else storage_uri)
    if gpu is not None:
        checked_gpu(gpu)
    check_output(out, folder=target == "helm", force=force)
    figures = _measured(package, measured, seconds=seconds, cpus=cpus)
    if (gpu is None) != figures.on_cpu:
        asked = "a replica with a GPU" if gpu else "a replica without a GPU"
        raise InputError(
            f"{asked} was asked for, and what was measured ran on {figures.device}; measure on such a machine, with "
            "--measured FILE, and take that file here"
        )
    deployed = Deployed(
        instance=instance,
        image=named_image,
        replicas=count,
        sizes=sizes_from(figures),
        gpu=gpu,
        autoscaler=chosen,
        monitor=count.scales if monitor is None else monitor,
    )
    head = [f"{MARK.removeprefix('# ')} {target}`.", *figures.lines]
    if target == "kubernetes":
        write_text(yaml_text(kubernetes_documents(deployed), head), out, force=force)
    elif target == "kserve":
        write_text(yaml_text(kserve_documents(deployed, uri), head), out, force=force)
    elif target == "ray":
        config = ray_config(deployed, package_path or f"/models/{package.manifest.name}", package.manifest.name)
        write_text(yaml_text([config], head), out, force=force)
    else:
        values = yaml_text([helm_values(deployed)], head)
        if out is None:
            write_text(values, None, force=force)
        else:
            write_chart(CHART, {"values.yaml": values}, out, force=force)


def _measured(package: ModelPackage, file: Path | None, *, seconds: float, cpus: int | None) -> Measurement:
    """Return what `file` holds, or what is measured now, which is then written to it."""
    try:
        known = file is not None and is_there(file)
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror}") from error
    if file is not None and known:
        found = read_measurement(file)
        digest = hashlib.sha256((package.folder / MANIFEST_NAME).read_bytes()).hexdigest()
        if found.manifest_sha256 != digest:
            raise InputError(
                f"{file} was measured with another package than {package.folder} ({found.package}, version "
                f"{found.version}); name the file of this one, or one that isn't there yet"
            )
        if cpus not in (None, found.cpus):
            raise InputError(f"--cpus was given {cpus}, and {file} was measured with {found.cpus}; leave --cpus out")
        return found
    check_output(file, folder=False, force=False, flag="--measured")
    from fuseline.deploy.manifest.measuring import measure

    typer.echo(f"measuring {package.manifest.name} on this machine, {seconds:g} s of load", err=True)
    figures = measure(package, seconds=seconds, cpus=cpus)
    if file is not None:
        write_text(figures.model_dump_json(indent=2) + "\n", file, force=False)
    return figures
