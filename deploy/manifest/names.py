"""Names that Kubernetes takes, and the texts of flags that lead to them."""

import re
import reprlib
from typing import NamedTuple

from fuseline.serve.errors import InputError

SUFFIX = "-fuseline-headless"
"""Longest text that a manifest puts behind an instance's name."""

MOST_LABEL = 63
"""Most characters of a DNS label (RFC 1123, 2.1), which names of Services are."""

MOST_NAME = MOST_LABEL - len(SUFFIX)
MOST_REPLICAS = 10_000

_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?"
_IMAGE = re.compile(
    rf"(?P<name>(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_GPU = re.compile(r"nvidia\.com/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_URI = re.compile(r"[a-z][a-z0-9+.-]{0,30}://[A-Za-z0-9._~:/?#@!$&()*+,;=%-]{1,2000}")
_COUNT = re.compile(r"[0-9]{1,9}")


class Replicas(NamedTuple):
    """How many replicas there are, or between which numbers an autoscaler chooses."""

    least: int
    most: int

    @property
    def scales(self) -> bool:
        """Whether their number changes by itself."""
        return self.most > self.least


class Image(NamedTuple):
    """The name of a container image."""

    name: str
    tag: str
    digest: str

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def instance_name(package_name: str, given: str | None) -> str:
    """Return the name that Kubernetes' objects begin with: `given`, or a package's name made valid.

    Raises `InputError` if `given` is no name for that, or the package's is too long to be made one.
    """
    if given is not None:
        if not _LABEL.fullmatch(given) or len(given) > MOST_NAME:
            raise InputError(
                f"--name was given {reprlib.repr(given)}; expected a DNS label: lower-case letters, digits and dashes, "
                f"a letter first and no dash last, at most {MOST_NAME} characters"
            )
        return given
    name = re.sub(r"[^a-z0-9]+", "-", package_name.lower()).strip("-")
    # Services' names begin with a letter (RFC 1035).
    name = name if name[:1].isalpha() else f"model-{name}".strip("-")
    if len(name) > MOST_NAME:
        raise InputError(
            f"the package's name {reprlib.repr(package_name)} makes a name of {len(name)} characters, and Kubernetes "
            f"has room for {MOST_NAME}; give a shorter one by --name"
        )
    return name


def image_from_text(text: str) -> Image:
    """Return the image that `--image` names. Raises `InputError` if it is no reference of one."""
    found = _IMAGE.fullmatch(text)
    if found is None:
        raise InputError(
            f"--image was given {reprlib.repr(text)}; expected an image's name, such as registry.example/resnet18:1"
        )
    return Image(found["name"], found["tag"] or "", found["digest"] or "")


def replicas_from_text(text: str) -> Replicas:
    """Return what `--replicas` says: `N`, or `MIN:MAX`. Raises `InputError` for anything else."""
    first, colon, second = text.partition(":")
    counts = [first, second] if colon else [first, first]
    if all(_COUNT.fullmatch(count) for count in counts):
        least, most = map(int, counts)
        if 1 <= least <= most <= MOST_REPLICAS:
            return Replicas(least, most)
    raise InputError(
        f"--replicas was given {reprlib.repr(text)}; expected a number from 1 to {MOST_REPLICAS}, or two that an "
        "autoscaler chooses between, such as 2:10"
    )


def checked_gpu(text: str) -> str:
    """Return `text` if it is the name of a resource of NVIDIA's device plugin; raise `InputError` if not."""
    if not _GPU.fullmatch(text):
        raise InputError(
            f"--gpu was given {reprlib.repr(text)}; expected the resource of one NVIDIA GPU, nvidia.com/gpu or such as "
            "nvidia.com/mig-1g.10gb"
        )
    return text


def checked_storage_uri(text: str) -> str:
    """Return `text` if it can be where KServe fetches a package from; raise `InputError` if not."""
    if not _URI.fullmatch(text):
        raise InputError(
            f"--storage-uri was given {reprlib.repr(text)}; expected where KServe finds the package's folder, such as "
            "pvc://fuseline-models/resnet18, s3://bucket/resnet18 or oci://registry.example/resnet18:1"
        )
    return text
