"""The model package: a folder with a manifest. This is its specification and its only validator.

    resnet18/
      manifest.json       this module's `Manifest`, as JSON
      model.onnx          FP32: `image` uint8 NHWC in, or normalised NCHW floats; `logits` float32 out
      model.fp16.onnx     the same in strongly typed FP16
      model.int8.onnx     the same with QDQ pairs, for CPUs; model.int8.tensorrt.onnx for TensorRT
      engines/*.plan      TensorRT engines; disposable
      reference.npz       a few images and eager PyTorch's logits for them
      report.json, report.html

A package is complete when its manifest is; `fuseline.serve.package_destination` puts a whole one in its place.
"""

import errno
import hashlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fuseline.serve.broken_rules import broken_rules
from fuseline.serve.errors import PackageError
from fuseline.serve.input_format import INPUT_FORMATS, InputDtype, InputFormat, InputLayout, input_format_of
from fuseline.serve.precision import GraphPrecision, PrecisionName

if TYPE_CHECKING:
    import numpy as np

MANIFEST_NAME = "manifest.json"
INPUT_NAME = INPUT_FORMATS["uint8-nhwc"].input_name
OUTPUT_NAME = INPUT_FORMATS["uint8-nhwc"].output_name
_MOST_RULES = 30
"""Broken rules of a manifest that are told."""

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_INPUT_SIDE = 4096
MAX_PIXELS = 50_000_000
"""Default bound on a picture's pixels, before and after resizing. Decoding a pixel takes 4 (JPEG, PNG) to 16 (WebP)
bytes."""

AGREEMENT_ON = {"single-label": "top-1", "multi-label": "label-set"}
"""Subject of the agreement with PyTorch, by task: the most probable class, or all labels of probability 0.5 or more."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
TENSOR_NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._/:-]{0,127}$"
TensorName = Annotated[str, Field(pattern=TENSOR_NAME_PATTERN)]
CropOffset = Literal["rounded", "floored"]
Task = Literal["single-label", "multi-label"]
"""Meaning of the logits: an image has one of the labels, by softmax over them, or any number, each by its own
sigmoid."""


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Preprocessing(_Spec):
    """What turns a decoded RGB image into the network's pixels, uint8: torchvision's Resize, then a centre crop."""

    resize_shorter_side: Annotated[int, Field(ge=1, le=2 * MAX_INPUT_SIDE)]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_offset: CropOffset = "rounded"
    """Rule for where the crop begins if an odd number of pixels is left over: half of it `rounded` to even, as in
    torchvision's CenterCrop, or `floored`, as in transformers' image processors."""


class InputSpec(_Spec):
    """The graphs' input: RGB images (or one grey channel) as uint8 NHWC pixels, or as normalised NCHW floats."""

    height: Annotated[int, Field(ge=1, le=MAX_INPUT_SIDE)]
    width: Annotated[int, Field(ge=1, le=MAX_INPUT_SIDE)]
    channels: Literal[1, 3] = 3
    name: TensorName = INPUT_NAME
    """Name of the graphs' input, by which clients of the Open Inference Protocol send it."""
    dtype: InputDtype = "uint8"
    layout: InputLayout = "NHWC"
    preprocessing: Preprocessing

    @property
    def format(self) -> InputFormat:
        """What the graphs take, and what other software calls it."""
        found = input_format_of(self.dtype, self.layout)
        assert found is not None, "a spec of another pair is not valid"
        return found

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one image's pixels, whatever the graphs take."""
        return self.height, self.width, self.channels

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Shape of one image in the graphs' input: (height, width, channels), or (channels, height, width) in NCHW."""
        return (self.channels, self.height, self.width) if self.layout == "NCHW" else self.pixel_shape

    @property
    def row_dtype(self) -> "np.dtype[Any]":
        """Type of the elements of one image in the graphs' input."""
        import numpy as np

        return np.dtype(self.dtype)

    @property
    def datatype(self) -> str:
        """Type of the elements in the Open Inference Protocol: `UINT8`, `FP32` or `FP16`."""
        return self.format.datatype

    @model_validator(mode="after")
    def _is_a_format(self) -> Self:
        if input_format_of(self.dtype, self.layout) is None:
            known = ", ".join(f"{row.dtype} {row.layout}" for row in INPUT_FORMATS.values())
            raise ValueError(f"no graph takes {self.dtype} {self.layout}; one of {known} was expected")
        return self


class Normalization(_Spec):
    """Per-channel mean and std of pixels scaled to 0..1, as in training."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    folded: Annotated[bool, Field(strict=True)] = True
    """Whether the graph normalises, so that callers don't."""

    @model_validator(mode="after")
    def _std_divides(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means but {len(self.std)} standard deviations")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"every std must be above 0, got {self.std}")
        return self


class PackageFile(_Spec):
    """One file of the package, with the size and sha256 that its bytes must have."""

    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(gt=0)]

    @field_validator("path")
    @classmethod
    def _path_stays_inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if not value or path.is_absolute() or ".." in path.parts or "\\" in value or str(path) != value:
            raise ValueError(f"path {value!r} must be relative and stay inside the package")
        return value


class Artifact(PackageFile):
    """A file that a runtime can load."""

    format: Literal["onnx", "tensorrt", "tensorrt_rtx"]
    precision: GraphPrecision
    details: dict[str, Any] = {}
    """Details of an engine: library version, compute capability, batch profile, sha256 of the graph it was built
    from."""


class Verification(_Spec):
    """How far an artifact's logits lie from eager PyTorch FP32 on the same images."""

    artifact: str
    backend: str
    precision: PrecisionName | None = None
    """Precision that the backend rounded to; None: the artifact's own."""
    images: Annotated[int, Field(gt=0)]
    image_source: str
    top1_agreement: Annotated[float, Field(ge=0, le=1)]
    """Share of images with the same top-1 class, ties counted as disagreement."""
    label_set_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of images with the same set of labels of probability 0.5 or more, ties as above; multi-label only."""
    ties: Annotated[int, Field(ge=0)]
    """Number of images with another top-1 class than eager's where the eager logits of the two classes differ by less
    than FP16 resolves.

    If multi-label, images with another set of labels where the eager logits of the labels that differ are that close to
    0.
    """
    max_abs_difference: Annotated[float, Field(ge=0)]
    mean_abs_difference: Annotated[float, Field(ge=0)]
    logit_range: Annotated[float, Field(ge=0)]
    bar: str
    passed: bool
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of these images whose top-1 class is that of their folder; None if nothing told their classes."""
    eager_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """That share for eager PyTorch FP32 on the same images."""

    @property
    def agreement(self) -> float:
        """Agreement that the bar is on: of label sets if the model is multi-label, else of top-1 classes."""
        return self.top1_agreement if self.label_set_agreement is None else self.label_set_agreement

    @property
    def agreement_on(self) -> str:
        """Subject of `agreement`, for people."""
        return AGREEMENT_ON["single-label" if self.label_set_agreement is None else "multi-label"]


class Assumption(_Spec):
    """A property of the network that changes answers and that no tensor tells."""

    key: str
    """Key in `--assume KEY=VALUE`: `shortcut`, `activation`, `size`, `normalization`."""
    value: str
    """Assumed value, as `--assume` takes it."""
    meaning: str
    """Sentence that says, for people, what was assumed."""
    alternatives: tuple[str, ...] = ()
    """Other values in use, as `--assume` takes them."""
    flag: str
    """Flag of `fuseline export` that settles it: `--assume shortcut=VALUE`."""
    settled_by: str | None = None
    """Source that settled it: a flag, the checkpoint's file, images; None while it is open."""

    @property
    def is_open(self) -> bool:
        """Whether nothing has settled it yet."""
        return self.settled_by is None

    @property
    def line(self) -> str:
        """Line for people: what was assumed, what else it could be, and the flag that settles it."""
        others = f"; it could also be {', '.join(self.alternatives)}" if self.alternatives else ""
        return f"assumed {self.key}={self.value}: {self.meaning}{others}; to settle it: {self.flag}"


class Manifest(_Spec):
    """The contents of manifest.json."""

    format_version: Literal[1] = 1
    name: Name
    version: Name = "1"
    architecture: str
    input: InputSpec
    normalization: Normalization
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    artifacts: Annotated[tuple[Artifact, ...], Field(min_length=1)]
    reference: PackageFile
    """A few images and eager PyTorch's logits for them: see `fuseline.serve.reference`."""
    provenance: dict[str, Any]
    verification: tuple[Verification, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    """All properties that change answers and that no tensor tells, settled or not."""
    task: Task = "single-label"
    output_name: TensorName = OUTPUT_NAME
    """Name of the graphs' output: logits, float32 (rows, classes)."""
    serving: dict[str, str | int | float | bool | None] = {}
    """Settings that the model is served with, in the place of the server's: see `fuseline.serve.model_settings`."""

    @property
    def classes(self) -> int:
        """Number of classes that the network tells apart."""
        return len(self.labels)

    @property
    def described_classes(self) -> str:
        """Number of classes, for people: `10 classes`, or `10 labels of which any number may hold`."""
        return described_classes(self.classes, self.task)

    @property
    def open_assumptions(self) -> tuple[Assumption, ...]:
        """Assumptions that nothing has settled."""
        return tuple(assumption for assumption in self.assumptions if assumption.is_open)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        paths = [artifact.path for artifact in self.artifacts]
        if len(set(paths)) != len(paths):
            raise ValueError(f"an artifact is listed twice: {sorted(paths)}")
        if not any(a.format == "onnx" and a.precision == "fp32" for a in self.artifacts):
            raise ValueError("no FP32 ONNX artifact is listed; every package carries one")
        if len(self.normalization.mean) != self.input.channels:
            raise ValueError(f"{len(self.normalization.mean)} means for {self.input.channels} channels")
        if self.normalization.folded == self.input.format.normalised:
            raise ValueError(
                f"the input is {self.input.format.name}, but normalization.folded is {self.normalization.folded}; "
                "graphs normalise pixels, and callers normalise floats"
            )
        if self.input.name == self.output_name:
            raise ValueError(f"input and output have one name, {self.input.name!r}")
        return self


class ModelPackage(_Spec):
    """A validated package on disk."""

    folder: Path
    manifest: Manifest

    def find(self, format: str, precision: str) -> Artifact | None:
        """Return the first artifact of that format and precision; None if there is none."""
        return next((a for a in self.manifest.artifacts if (a.format, a.precision) == (format, precision)), None)

    def checked_path(self, file: PackageFile) -> Path:
        """Return the path of `file`, after checking its bytes as `read` does, whose errors it raises.

        A server reads instead: what lies under a path may be another file by the time that it is opened.
        """
        self.read(file)
        return self.folder / file.path

    def read(self, file: PackageFile) -> bytes:
        """Return the bytes of `file`, whose size and sha256 are those of the manifest.

        They stay what they are, whatever becomes of the file. A runtime that maps a file would compute with what is
        written into it later, and SIGBUS would end the process once the file is cut short.

        Raises:
            PackageError: the file is missing, lies outside the package, or has other bytes than the manifest says.
        """
        path = self.folder / file.path
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise PackageError(f"{path} leads outside the package {self.folder}; export the model again")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise PackageError(
                f"{path} is listed in {MANIFEST_NAME} but can't be read: {why_unreadable(error)}"
            ) from error
        digest = hashlib.sha256(data).hexdigest()
        if len(data) != file.bytes or digest != file.sha256:
            raise PackageError(
                f"{path} has {len(data)} bytes with sha256 {digest}, {MANIFEST_NAME} says {file.bytes} bytes with "
                f"{file.sha256}; the file was changed or damaged, export the model again"
            )
        return data


def described_classes(count: int, task: Task) -> str:
    """Return, for people, `10 classes`, or `10 labels of which any number may hold` where `task` is multi-label."""
    return f"{count} labels of which any number may hold" if task == "multi-label" else f"{count} classes"


def load_package(folder: Path) -> ModelPackage:
    """Read and validate the package in `folder`; artifacts' bytes are checked when read.

    Raises:
        PackageError: `folder` is no package, or its manifest breaks a rule; the message names the broken rules.
    """
    path = folder / MANIFEST_NAME
    try:
        if not is_there(folder):
            raise PackageError(f"there is no folder {folder}; `fuseline export CHECKPOINT` makes a model package")
        if not is_there(path) or not path.is_file():
            raise PackageError(f"{folder} is no model package: it has no {MANIFEST_NAME}; `fuseline export` makes one")
        if (size := path.stat().st_size) > MAX_MANIFEST_BYTES:
            raise PackageError(f"{path} has {size} bytes; at most {MAX_MANIFEST_BYTES} are read")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PackageError(f"{path} can't be read: {why_unreadable(error)}") from error
    except UnicodeDecodeError as error:
        raise PackageError(f"{path} can't be read: {error}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        rules = broken_rules(error, whole="manifest", most=_MOST_RULES)
        raise PackageError(f"{path} is not a valid manifest of format 1: {rules}") from error
    return ModelPackage(folder=folder, manifest=manifest)


def is_there(path: Path) -> bool:
    """Return whether `path` leads to something; raise `OSError` where that can't be told.

    `Path.exists` says no where it can't be told, from Python 3.14 on.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    return True


def why_unreadable(error: OSError) -> str:
    """Return the system's reason and, if it is one of permissions, the cure; servers have a user of their own."""
    cure = "; `chmod -R a+rX` on the package lets every user read it" if isinstance(error, PermissionError) else ""
    return f"{error.strerror}{cure}"


def file_facts(folder: Path, path: str) -> dict[str, Any]:
    """Return `path`, `sha256` and `bytes` of the file `folder / path`, as `PackageFile` and `Artifact` hold them."""
    data = (folder / path).read_bytes()
    return {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder`; it is the last file that a writer writes."""
    (folder / MANIFEST_NAME).write_text(manifest_text(manifest), encoding="utf-8")


def manifest_text(manifest: Manifest) -> str:
    """Return what a package's file holds for `manifest`.

    Names of tensors that packages had before they could be chosen are left out, and so are settings that nobody chose,
    so that earlier servers read those too.
    """
    unsaid: dict[str, Any] = {}
    if manifest.input.name == INPUT_NAME:
        unsaid["input"] = {"name"}
    if manifest.output_name == OUTPUT_NAME:
        unsaid["output_name"] = True
    if not manifest.serving:
        unsaid["serving"] = True
    return manifest.model_dump_json(indent=2, exclude=unsaid) + "\n"
