"""Files that are no PyTorch checkpoint: their format, by their content, and what to give instead."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

from fuseline.export.checkpoint.protobuf_messages import is_core_ml, is_graph_def, is_onnx, is_saved_model

STATE_DICT = "torch.save(model.state_dict(), PATH)"

_MAX_UNPACKED = 1024
_LEVELDB_MAGIC = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # the end of a LevelDB table, such as TensorFlow's .index
_OTHER_FRAMEWORK = (
    "Fuseline reads PyTorch's weights: ask for the PyTorch checkpoint, or build the same network in PyTorch, fill it "
    "with these weights (kernels as out x in x height x width) and save it: " + STATE_DICT
)
_OF_PYTORCH = (
    f"it can't be turned back into the network: give the PyTorch checkpoint that it was made from, {STATE_DICT}"
)


@dataclass(frozen=True, slots=True)
class _Format:
    what: str
    cure: str
    is_it: Callable[[mmap], object]


def foreign_format(data: mmap, path: Path) -> str | None:
    """Return what the file at `path` is, with the cure, if its format is known but isn't read; else None.

    At most the first kilobyte of a compressed file is unpacked.
    """
    for known in _FORMATS:
        if known.is_it(data):
            target = path.with_name(f"{path.stem}.state_dict.pt")
            cure = known.cure.format(path=str(path), quoted=repr(str(path)), target=repr(str(target)))
            return f"{path} is {known.what}; {cure}"
    return None


def foreign_archive(names: Sequence[str], path: Path) -> str | None:
    """Return what a zip archive that holds `names` is, with the cure, as `foreign_format` does."""
    for sign, what, cure in _ARCHIVES:
        if any(sign(name) for name in names):
            target = path.with_name(f"{path.stem}.state_dict.pt")
            return f"{path} is {what}; {cure.format(path=str(path), quoted=repr(str(path)), target=repr(str(target)))}"
    inner = [name for name in names if name.endswith((".pt", ".pth", ".th", ".ckpt", ".safetensors", ".bin"))]
    if inner:
        return f"{path} is a zip archive with {', '.join(inner[:3])} in it; unpack it (unzip {path}) and give that file"
    return None


def foreign_folder(names: Sequence[str]) -> str | None:
    """Return what a folder with files of these `names` is, with the cure, if it is another framework's or in parts."""
    known = set(names)
    if "saved_model.pb" in known or "keras_metadata.pb" in known:
        return f"a TensorFlow SavedModel; {_OTHER_FRAMEWORK}"
    if any(name.endswith(".distcp") for name in names):
        return (
            "a checkpoint in parts, of torch.distributed.checkpoint; join them and give the one file: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt"
        )
    if "zero_to_fp32.py" in known or any("zero_pp_rank" in name for name in names):
        return (
            "a checkpoint in parts, of DeepSpeed; join them and give the one file: "
            "python zero_to_fp32.py FOLDER model.pt"
        )
    if {"data.pkl", "data"} <= known:
        return (
            "a checkpoint's archive that was unpacked; give the file that it was unpacked from, or pack it again, not "
            "compressed: zip -0 -r model.pt FOLDER"
        )
    if {"Manifest.json", "Data"} <= known or any(name.endswith((".mlpackage", ".mlmodel")) for name in names):
        return f"a Core ML model; {_OF_PYTORCH}"
    if any(name.endswith(".index") for name in names) and any(".data-" in name for name in names):
        return f"a TensorFlow checkpoint; {_OTHER_FRAMEWORK}"
    if any(
        name in ("tf_model.h5", "flax_model.msgpack") or name.endswith((".h5", ".keras", ".msgpack")) for name in names
    ):
        return f"weights of TensorFlow, Keras or Flax; {_OTHER_FRAMEWORK}"
    if any(name.endswith(".onnx") for name in names):
        return f"an ONNX model; {_OF_PYTORCH}"
    return None


def _starts(*signs: bytes) -> Callable[[mmap], bool]:
    return lambda data: any(data[: len(sign)] == sign for sign in signs)


def _text(data: mmap) -> str:
    return data[:400].decode("utf-8", "replace").lstrip("\ufeff \t\r\n").lower()


def _is_hdf5(data: mmap) -> bool:
    """Return whether HDF5's signature is at the beginning, or behind a user block of 512, 1024 or 2048 bytes."""
    return any(data[offset : offset + 8] == b"\x89HDF\r\n\x1a\n" for offset in (0, 512, 1024, 2048))


def _is_tar(data: mmap) -> bool:
    return data[257:262] == b"ustar"


def _unpacked(data: mmap) -> bytes:
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data[:65536], _MAX_UNPACKED)
    except zlib.error:
        return b""


def _is_object_array(data: mmap) -> bool:
    return data[:6] == b"\x93NUMPY" and b"'|O'" in data[:256]


def _is_pickle(data: mmap) -> bool:
    return data[:1] == b"\x80" and data[1:2] <= b"\x05" and data[-1:] == b"."


def _is_page(data: mmap) -> bool:
    return _text(data).startswith(("<!doctype html", "<html", "<head", "<script", "<body"))


_PICKLE_CURE = (
    "torch.save writes what is read here. If it is a dict of tensors or arrays with the names of a PyTorch state dict "
    "and you trust it, run\n    import pathlib, pickle, torch\n    "
    "state = pickle.loads(pathlib.Path({quoted}).read_bytes())\n    "
    "torch.save({{name: torch.as_tensor(value) for name, value in state.items()}}, {target})"
)
_UNPACK = "unpack it ({how}) and give the checkpoint that is in it"
_FORMATS = (
    _Format(
        "a Git LFS pointer, not the file itself",
        "run `git lfs pull` to fetch it",
        _starts(b"version https://git-lfs.github.com/spec/"),
    ),
    _Format(
        "a page of a web site (HTML), such as one that asks to log in or to confirm a download, and not the checkpoint",
        "log in, accept the terms there, and download the file itself (on GitHub and Hugging Face the address with "
        "/raw/ or /resolve/ in it)",
        _is_page,
    ),
    _Format(
        "the answer of a server (XML) that refused the download",
        "check the address and your rights, and download it again",
        lambda data: _text(data).startswith("<?xml") and "<error>" in _text(data),
    ),
    _Format(
        "an OpenVINO network (XML)",
        _OF_PYTORCH,
        lambda data: _text(data).startswith(("<?xml", "<net")) and "<net" in _text(data),
    ),
    _Format(
        "an index of shards under another name",
        "give it the name that it was made with, which ends in .index.json, beside its shards",
        lambda data: _text(data).startswith("{") and data.find(b'"weight_map"') >= 0,
    ),
    _Format(
        "a text in JSON, such as a configuration",
        "give the file of weights beside it, or the folder that has both",
        lambda data: _text(data).startswith(('{"', "{\n", "{ ")),
    ),
    _Format(
        "a program in Python",
        "give the file of weights; a program that builds the network goes to --factory package.module:function",
        lambda data: _text(data).startswith(("import ", "from ", "#!/usr/bin/env python", "class ", "def ")),
    ),
    _Format("an ONNX model", _OF_PYTORCH, is_onnx),
    _Format("a Core ML model", _OF_PYTORCH, is_core_ml),
    _Format("a TensorFlow SavedModel", _OTHER_FRAMEWORK, is_saved_model),
    _Format("a TensorFlow graph (GraphDef)", _OTHER_FRAMEWORK, is_graph_def),
    _Format("the index of a TensorFlow checkpoint", _OTHER_FRAMEWORK, lambda data: data[-8:] == _LEVELDB_MAGIC),
    _Format("a TensorFlow Lite model", _OTHER_FRAMEWORK, lambda data: data[4:8] == b"TFL3"),
    _Format("an ExecuTorch program", _OF_PYTORCH, lambda data: data[4:8] in (b"ET12", b"ET11")),
    _Format("a TensorRT engine", _OF_PYTORCH, _starts(b"ftrt", b"ptrt")),
    _Format(
        "a Keras file (HDF5)",
        _OTHER_FRAMEWORK,
        lambda data: (
            _is_hdf5(data)
            and any(data.find(sign) >= 0 for sign in (b"keras_version", b"layer_names", b"model_weights"))
        ),
    ),
    _Format(
        "an HDF5 file",
        "if its arrays have the names and the shapes of a PyTorch state dict, run\n    import h5py, torch\n    "
        "state = {{}}\n    h5py.File({quoted}).visititems(lambda name, item: state.update(\n        "
        "{{name.replace('/', '.'): torch.from_numpy(item[()])}}) if hasattr(item, 'shape') else None)\n    "
        "torch.save(state, {target})",
        _is_hdf5,
    ),
    _Format(
        "a NumPy file (.npy) that holds Python objects",
        "if it is a dict of arrays with the names and the shapes of a PyTorch state dict and you trust it, run\n    "
        "import numpy, torch\n    arrays = numpy.load({quoted}, allow_pickle=True).item()\n    "
        "torch.save({{name: torch.from_numpy(array) for name, array in arrays.items()}}, {target})",
        _is_object_array,
    ),
    _Format(
        "a NumPy file (.npy), a single array",
        f"a network has many tensors with names: give its checkpoint, {STATE_DICT}",
        _starts(b"\x93NUMPY"),
    ),
    _Format("a GGUF file, for language models", f"give the PyTorch checkpoint, {STATE_DICT}", _starts(b"GGUF")),
    _Format(
        "a tar archive compressed by gzip",
        _UNPACK.format(how="tar -xzf {path}"),
        lambda data: data[:2] == b"\x1f\x8b" and _unpacked(data)[257:262] == b"ustar",
    ),
    _Format(
        "compressed by gzip",
        "unpack it (gunzip -k -S '' {path}, or gzip -dc {path} > model.pt) and give what comes out",
        _starts(b"\x1f\x8b"),
    ),
    _Format("compressed by bzip2", "unpack it (bzip2 -dc {path} > model.pt) and give what comes out", _starts(b"BZh")),
    _Format(
        "compressed by xz", "unpack it (xz -dc {path} > model.pt) and give what comes out", _starts(b"\xfd7zXZ\x00")
    ),
    _Format(
        "compressed by Zstandard",
        "unpack it (zstd -dc {path} > model.pt) and give what comes out",
        _starts(b"\x28\xb5\x2f\xfd"),
    ),
    _Format(
        "a 7z or RAR archive",
        "unpack it and give the checkpoint that is in it",
        _starts(b"7z\xbc\xaf\x27\x1c", b"Rar!"),
    ),
    _Format(
        "a checkpoint in the tar format that PyTorch wrote before 0.2",
        "where you trust it, run\n    import torch\n    torch.save(torch.load({quoted}, weights_only=False), {target})",
        lambda data: _is_tar(data) and data[:8] in (b"storages", b"pickle\x00\x00", b"tensors\x00"),
    ),
    _Format("a tar archive", _UNPACK.format(how="tar -xf {path}"), _is_tar),
    _Format(
        "a joblib pickle",
        "where you trust it, run\n    import joblib, torch\n    torch.save(joblib.load({quoted}), {target})\n"
        "It must hold a PyTorch state dict; a classifier of scikit-learn is no network that Fuseline serves",
        lambda data: data[:1] == b"\x80" and b"joblib" in data[:4096],
    ),
    _Format(
        "a PaddlePaddle checkpoint",
        _OTHER_FRAMEWORK,
        lambda data: data[:1] == b"\x80" and data.find(b"StructuredToParameterName@@") >= 0,
    ),
    _Format(
        "a pickle of scikit-learn",
        "that is no network that Fuseline serves",
        lambda data: data[:1] == b"\x80" and b"sklearn." in data[:4096],
    ),
    _Format("a pickle that torch.save did not write", _PICKLE_CURE, _is_pickle),
    _Format("a picture", "give the network's checkpoint here", _starts(b"\x89PNG", b"\xff\xd8\xff", b"GIF8")),
    _Format(
        "what macOS keeps beside a file (AppleDouble)",
        "give the file of the same name without `._` before it",
        _starts(b"\x00\x05\x16\x07"),
    ),
    _Format(
        "nothing but zeros, an unfinished download",
        "download it again",
        lambda data: not data[:4096].strip(b"\0") and not data[-4096:].strip(b"\0"),
    ),
)
_ARCHIVES: tuple[tuple[Callable[[str], bool], str, str], ...] = (
    (lambda name: "/aotinductor/" in name, "a program compiled by AOTInductor", _OF_PYTORCH),
    (lambda name: name.endswith("model.weights.h5"), "a Keras file (.keras)", _OTHER_FRAMEWORK),
    (
        lambda name: name.startswith("MAR-INF/"),
        "an archive of TorchServe (.mar)",
        "unpack it (unzip {path}) and give the .pt or .pth file in it",
    ),
    (
        lambda name: name.endswith(".data/extern_modules"),
        "an archive of torch.package",
        "its code is never run here. Where you trust it, load it by torch.package.PackageImporter({quoted}) and save "
        "the model's state dict: " + STATE_DICT,
    ),
    (lambda name: "com.apple.CoreML" in name, "a Core ML model", _OF_PYTORCH),
    (lambda name: name.endswith("saved_model.pb"), "a zip archive with a TensorFlow SavedModel", _OTHER_FRAMEWORK),
    (
        lambda name: name.endswith(".npy"),
        "a NumPy archive (.npz)",
        "if its arrays have the names and the shapes of a PyTorch state dict, run\n    import numpy, torch\n    "
        "arrays = numpy.load({quoted})\n    "
        "torch.save({{name: torch.from_numpy(arrays[name]) for name in arrays.files}}, {target})",
    ),
)
