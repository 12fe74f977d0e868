"""Errors of torch's exporters in a sentence for the network's owner: what failed, where in their code, what to do."""

import os
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx

_LIBRARIES = Path(torch.__file__).parent.parent
_NOT_THE_USERS = (
    "<",
    f"{Path(__file__).parents[1]}{os.sep}",
    *(f"{_LIBRARIES / name}{os.sep}" for name in ("torch", "onnx", "onnxscript", "onnx_ir")),
)
_OPERATOR = re.compile(r"(?:OpOverload for |target=torch\.ops\.|OpOverload\(op='|^)((?:aten|prims|torchvision)\.\w+)")
_CODE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)[ \t]*\n[ \t]*(\S[^\n]*)')
_SHOWN = 120
_OTHERWISE = "write that part of its forward with other operators of torch that compute the same"
# Pattern in the error's text -> what helps; the first that fits counts.
_CURES = (
    (
        r"data-dependent|DataDependent|\.item\(|aten\._local_scalar_dense",
        "its forward must not branch on values of the images, nor read them (if, .item(), float(), .tolist()): compute "
        "with tensors, as torch.where does",
    ),
    (
        r"Constraints violated|specializ|ConstraintViolation",
        "its forward must not build in the number of rows: write -1 or x.shape[0] for it, and no loop over rows",
    ),
    (
        r"\.numpy\(\)|numpy array|Can't call numpy",
        "its forward must not leave torch: what it does by NumPy, do with torch's operators",
    ),
    (
        r"fake tensor in the exported program|lifted_tensor|elem.device.type must be",
        "its forward copies a tensor behind torch's back (.data, copy.copy, a tensor that it keeps from an earlier "
        "call): use the tensor itself, or .clone()",
    ),
    (r"fake_quantize|quantize_per|dequantize", "export the float network, before quantisation"),
    (r"vmap|functorch|_add_batch_dim", "compute on all rows at once instead of by torch.vmap or torch.func"),
    (
        r"compatible OpOverload|INTERNAL ASSERT|No ONNX function|translating node|No decompositions|UnsupportedOperator"
        r"|Failed to decompose|requires_grad|Cannot view|must have a last dimension",
        f"{_OTHERWISE}: without in-place and out= variants, on float32",
    ),
)
_OTHER_CURE = (
    "its forward must not branch on values of the images, nor build in the number of rows (write -1 or x.shape[0]), "
    "nor leave torch's operators"
)


def explained(error: BaseException, graph: fx.Graph | None = None) -> str:
    """Return an error of torch.export or torch.onnx in one line: operator and user's line, if known, and the cure.

    Args:
        graph: the exported graph, whose nodes know the lines that they come from where `error` doesn't.
    """
    chain = list(_chain(error))
    texts = [str(one) for one in chain]
    operator = next((match[1] for text in texts if (match := _OPERATOR.search(text))), None)
    place = next((place for text in texts if (place := _place_in(text))), None)
    if graph is not None:
        place = place or (operator and _place_in_graph(operator, graph))
    else:  # the user's code ran, so their frames are on the stack
        place = place or next((place for one in chain if (place := _place_of(one))), None)
    joined = "\n".join((*texts, *(type(one).__name__ for one in chain)))
    cure = next((cure for pattern, cure in _CURES if re.search(pattern, joined)), _OTHER_CURE)
    return f"{f'{operator}: ' if operator else ''}{reason_of(chain[0])}{f', at {place}' if place else ''}; {cure}"


def reason_of(error: BaseException) -> str:
    """Return the first line of `error`, whose others are advice to torch's own developers."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    shown = line if len(line) <= 2 * _SHOWN else f"{line[: 2 * _SHOWN]}..."
    return f"{type(error).__name__}{f': {shown.rstrip(chr(46))}' if shown else ''}"


def place_of_node(node: fx.Node) -> str | None:
    """Return the user's line that `node` comes from, or the layer that it belongs to."""
    if place := _place_in(str(node.meta.get("stack_trace", ""))):
        return place
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack", {})
    layers = [path for path, _ in stack.values() if path]
    return f"the layer {layers[-1]}" if layers else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, the innermost first."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__
    yield from reversed(found)


def _place_in(text: str) -> str | None:
    """Return the place of the last line of code in `text` that is neither torch's nor ours."""
    found = [match.groups() for match in _CODE.finditer(text) if _is_users(match[1])]
    return _described(*found[-1]) if found else None


def _place_of(error: BaseException) -> str | None:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if not frames:
        return None
    return _described(frames[-1].filename, str(frames[-1].lineno), frames[-1].name, frames[-1].line or "")


def _place_in_graph(operator: str, graph: fx.Graph) -> str | None:
    """Return the place of the first node that calls `operator`, or the one that it was decomposed from.

    `_linalg_svd`, for instance, comes from `linalg_svdvals`.
    """
    wanted = operator.rpartition(".")[2].strip("_")
    for node in graph.nodes:
        base = str(node.target).split(".")[1].strip("_") if str(node.target).startswith("aten.") else ""
        if base and (
            base == wanted or (len(base) > len("add_") and (base.startswith(wanted) or wanted.startswith(base)))
        ):
            return place_of_node(node)
    return None


def _is_users(file: str) -> bool:
    return not file.startswith(_NOT_THE_USERS) and Path(file).name != "contextlib.py"


def _described(file: str, line: str, function: str, code: str) -> str:
    code = code.strip()
    shown = code if len(code) <= _SHOWN else f"{code[:_SHOWN]}..."
    return f"{Path(file).name}, line {line}, in {function}{f': {shown}' if shown else ''}"
