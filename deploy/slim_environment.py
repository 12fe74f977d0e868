"""Take out of an image's environment what its image never loads, and compile the rest.

`PYTHON slim_environment.py IMAGE`, with the environment's own PYTHON, at build: the container test then runs what is
left. It says what each removal was worth, and which of them found nothing to remove.
"""

import compileall
import py_compile
import shutil
import sys
import sysconfig
from pathlib import Path

_TESTS = ("**/tests",)

_OPENVINO = (
    # OpenVINO computes on the CPU here, and reads ONNX only.
    "openvino/libs/libopenvino_intel_gpu_plugin.so",
    "openvino/libs/cache.json",
    "openvino/libs/libopenvino_intel_npu_plugin*.so",
    "openvino/libs/libopenvino_tensorflow_frontend.so*",
    "openvino/libs/libopenvino_tensorflow_lite_frontend.so*",
    "openvino/libs/libopenvino_pytorch_frontend.so*",
    "openvino/libs/libopenvino_paddle_frontend.so*",
    "openvino/libs/libopenvino_jax_frontend.so*",
    "openvino/libs/libopenvino_gguf_frontend.so*",
    # For compiling C++ programs.
    "openvino/include",
)

_ONNXRUNTIME_TOOLS = (
    # For preparing models; `export` has its own.
    "onnxruntime/transformers",
    "onnxruntime/quantization",
    "onnxruntime/tools",
)

_ONNXRUNTIME_FOR_C = (
    # The library for C programs; the Python module has all of it in itself.
    "onnxruntime/capi/libonnxruntime.so.*",
)

_NUMPY_BUILDERS = ("numpy/f2py", "numpy/distutils")

_TORCH_COMPILERS = (
    # For building C++ extensions, for torch.compile on a GPU, and torch's own tests.
    "torch/include",
    "torch/bin/protoc*",
    "torch/bin/test_*",
    "torch/test",
    "triton",
)

_REMOVED = {
    "serve-cpu": (*_TESTS, *_OPENVINO, *_ONNXRUNTIME_TOOLS, *_ONNXRUNTIME_FOR_C, *_NUMPY_BUILDERS),
    "serve-gpu": (*_TESTS, *_ONNXRUNTIME_TOOLS, *_NUMPY_BUILDERS),
    "export": (*_TESTS, *_OPENVINO, *_ONNXRUNTIME_FOR_C, *_TORCH_COMPILERS),
}
"""Image: what is removed, as patterns below site-packages."""


def slim_environment(image: str, site_packages: Path) -> None:
    """Remove what `image` never loads from `site_packages`, compile the rest, and print what each pattern was worth."""
    for pattern in _REMOVED[image]:
        freed_bytes = 0
        for path in list(site_packages.glob(pattern)):
            # One below another is gone with it.
            if path.exists():
                freed_bytes += _bytes_of(path)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _say(f"{freed_bytes / 1e6:8.1f} MB  {pattern}")
    # A read-only root can't keep what Python compiles. The sources can't change either, so nothing checks them.
    compiled = compileall.compile_dir(
        site_packages, quiet=2, workers=0, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    if not compiled:
        _say("some files can't be compiled by this Python, as templates and other versions' code can't")
    _say(f"{_bytes_of(site_packages) / 1e6:8.1f} MB  are left")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _bytes_of(path: Path) -> int:
    if path.is_dir():
        return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
    return path.lstat().st_size


if __name__ == "__main__":
    slim_environment(sys.argv[1], Path(sysconfig.get_path("purelib")))
