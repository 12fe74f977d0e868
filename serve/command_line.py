"""How every command ends: errors are one line on stderr and an exit code, never a traceback."""

import sys
from collections.abc import Callable

from serve.errors import FuselineError

_EXTRA_OF_MODULE = {
    **dict.fromkeys(("torch", "torchvision", "onnx", "onnxscript", "safetensors", "jinja2"), "export"),
    **dict.fromkeys(("matplotlib", "pytest", "pytest_benchmark", "sklearn"), "bench"),
}


def run_command_line(command: Callable[[], object]) -> None:
    """Run `command`; exit with 2 for wrong input or a missing extra, 1 for failed work, 130 for Ctrl-C.

    Errors outside the tree of `serve.errors` are defects and keep their traceback.
    """
    try:
        command()
    except FuselineError as error:
        _end(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF_MODULE.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _end(f"{error.name} is not installed; pip install 'fuseline[{extra}]'", 2)
    except KeyboardInterrupt:
        _end("interrupted", 130)


def _end(message: str, exit_code: int) -> None:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(exit_code)
