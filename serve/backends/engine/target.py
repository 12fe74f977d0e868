"""Chooses the library that builds an engine, and the compute capability that it builds for."""

import re
from dataclasses import dataclass

from fuseline.serve.backends.engine.key import Library
from fuseline.serve.backends.engine.library import INSTALL, NAMES, import_library, is_installed, title
from fuseline.serve.backends.gpu.cuda import open_cuda
from fuseline.serve.errors import BackendError, BackendUnavailableError, InputError

CURRENT, PORTABLE = "current", "portable"
"""Words in the place of a capability for the GPU at hand, though TensorRT for RTX may not list it. `CURRENT` names that
GPU to the library, `PORTABLE` leaves its default, an engine for several kinds of GPU."""


@dataclass(frozen=True, slots=True)
class Builder:
    """The library that would build an engine, and the compute capability that it would build for."""

    library: Library
    capability: str
    setting: str | None = None
    """Name of the `ComputeCapability` that TensorRT for RTX is given; None: it is given none."""


def available_builder(capability: str | None) -> Builder:
    """Return the library that would build for `capability`, or for the GPU at hand if that is None.

    `tensorrt` builds for the GPU at hand alone. `tensorrt_rtx` builds ahead of time, without a GPU, for the
    capabilities that it lists; for another GPU at hand it builds only if asked to try, by `CURRENT` or `PORTABLE`.

    Raises:
        InputError: neither does `tensorrt_rtx` list `capability` nor is it that of the GPU at hand.
        BackendUnavailableError: nothing can build; the message says why and what to install.
    """
    try:
        at_hand, no_gpu = open_cuda().gpu().capability, ""
    except (BackendUnavailableError, BackendError) as error:
        at_hand, no_gpu = None, str(error)
    target = at_hand if capability in (None, CURRENT, PORTABLE) else capability
    if target is None:
        raise BackendUnavailableError(
            f"no GPU to build for: {no_gpu}; name one to build ahead of time, as `fuseline engine PACKAGE --for sm89`"
        )
    if target == at_hand and capability != PORTABLE and is_installed("tensorrt"):
        return Builder("tensorrt", target)
    if not is_installed("tensorrt_rtx"):
        other = f", or TensorRT: {INSTALL['tensorrt']}" if target == at_hand else ""
        raise BackendUnavailableError(
            f"building for {target} takes {NAMES['tensorrt_rtx']}: {INSTALL['tensorrt_rtx']}{other}"
        )
    trt = import_library("tensorrt_rtx")
    offered = [name.lower() for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    if capability == PORTABLE:
        return Builder("tensorrt_rtx", target)
    if capability == CURRENT:
        return Builder("tensorrt_rtx", target, "CURRENT")
    if target in offered:
        return Builder("tensorrt_rtx", target, target.upper())
    if target == at_hand:
        raise BackendUnavailableError(
            f"{title(trt)} builds for {', '.join(offered)}, the GPU here is {target}: {INSTALL['tensorrt']}, or try "
            f"`fuseline engine PACKAGE --for {CURRENT}`"
        )
    raise InputError(
        f"{title(trt)} can't build for {capability!r}, it builds for {', '.join(offered)}; TensorRT builds for others, "
        "on a machine that has the GPU"
    )
