"""Files of other formats are refused by the format's name, with what to give instead.

Where its library is installed the file is made by it. h5py, TensorFlow, Core ML's tools and others aren't: their files
here are the smallest beginnings that their formats' descriptions allow.
"""

import bz2
import gzip
import io
import lzma
import pickle
import sys
import tarfile
import types
import warnings
import zipfile

import joblib
import numpy as np
import onnx
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from tests.export.checkpoint.refusals import refusal
from tests.export.small_graph import small_graph
from tests.export.small_weights import assert_same, small_network, without_counters


def varint(value: int) -> bytes:
    found = bytearray()
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tar_of(name: str, content: bytes, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def numpy_bytes(save, *arrays, **named) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def joblib_bytes(content: object) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(content, buffer)
    return buffer.getvalue()


def checkpoint_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save(small_network().state_dict(), buffer)
    return buffer.getvalue()


HDF5 = b"\x89HDF\r\n\x1a\n"
NODE = field(1, field(1, b"input") + field(2, b"Placeholder"))
FILES = {
    "onnx": (lambda: small_graph("fp32"), "is an ONNX model", "the PyTorch checkpoint that it was made from"),
    "onnx-cut": (lambda: small_graph("fp32")[:-100], "is an ONNX model", "checkpoint"),
    "keras-h5": (
        lambda: HDF5 + bytes(200) + b"keras_version",
        "is a Keras file (HDF5)",
        "ask for the PyTorch checkpoint",
    ),
    "hdf5": (lambda: HDF5 + bytes(200), "is an HDF5 file", "h5py.File("),
    "hdf5-behind-a-block": (lambda: bytes(512) + HDF5 + b"\1" * 5000, "is an HDF5 file", "h5py.File("),
    "keras": (
        lambda: zip_of("config.json", "metadata.json", "model.weights.h5"),
        "is a Keras file (.keras)",
        "PyTorch",
    ),
    "saved-model": (lambda: field(1, 1) + field(2, b"graph" * 50), "is a TensorFlow SavedModel", "ask for"),
    "graph-def": (lambda: NODE + NODE + field(4, field(1, 27)), "is a TensorFlow graph", "ask for"),
    "tensorflow-index": (
        lambda: b"\0\0\1" + bytes(90) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
        "TensorFlow checkpoint",
        "PyTorch",
    ),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(90), "is a TensorFlow Lite model", "ask for"),
    "core-ml": (
        lambda: field(1, 4) + field(2, b"description") + field(500, b"network"),
        "is a Core ML model",
        "checkpoint",
    ),
    "ml-package": (lambda: zip_of("Data/com.apple.CoreML/model.mlmodel"), "is a Core ML model", "checkpoint"),
    "openvino": (
        lambda: b'<?xml version="1.0"?>\n<net name="Model0" version="11">',
        "is an OpenVINO network",
        "checkpoint",
    ),
    "executorch": (lambda: b"\x1c\0\0\0ET12" + bytes(90), "is an ExecuTorch program", "checkpoint"),
    "inductor": (
        lambda: zip_of("m/archive_format", "m/data/aotinductor/model/a.so"),
        "compiled by AOTInductor",
        "checkpoint",
    ),
    "gzip": (lambda: gzip.compress(checkpoint_bytes()), "is compressed by gzip", "gzip -dc"),
    "tar-gz": (
        lambda: tar_of("model.pt", checkpoint_bytes(), "w:gz"),
        "is a tar archive compressed by gzip",
        "tar -xzf",
    ),
    "tar": (lambda: tar_of("model.pt", checkpoint_bytes()), "is a tar archive", "tar -xf"),
    "old-torch-tar": (lambda: tar_of("storages", b"x"), "that PyTorch wrote before 0.2", "torch.load("),
    "bzip2": (lambda: bz2.compress(checkpoint_bytes()), "is compressed by bzip2", "bzip2 -dc"),
    "xz": (lambda: lzma.compress(checkpoint_bytes()), "is compressed by xz", "xz -dc"),
    "npz": (lambda: numpy_bytes(np.savez, conv1=np.ones(3)), "is a NumPy archive (.npz)", "numpy.load("),
    "npy": (lambda: numpy_bytes(np.save, np.ones(3)), "is a NumPy file (.npy), a single array", "model.state_dict()"),
    "npy-objects": (lambda: numpy_bytes(np.save, {"conv1": np.ones(3)}), "holds Python objects", "allow_pickle=True"),
    "joblib": (lambda: joblib_bytes({"conv1": np.ones(3)}), "is a joblib pickle", "joblib.load("),
    "scikit-learn": (lambda: pickle.dumps(LogisticRegression()), "is a pickle of scikit-learn", "no network"),
    "paddle": (lambda: pickle.dumps({"StructuredToParameterName@@": {}}), "is a PaddlePaddle checkpoint", "PyTorch"),
    "pickle": (
        lambda: pickle.dumps({"conv1": np.ones(3)}),
        "a pickle that torch.save did not write",
        "pickle.loads(",
    ),
    "html": (
        lambda: b"\n <!DOCTYPE html><html><title>Log in</title>",
        "is a page of a web site (HTML)",
        "download the file",
    ),
    "denied": (
        lambda: b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code>',
        "that refused the download",
        "download it again",
    ),
    "index": (lambda: b'{"metadata": {}, "weight_map": {"a": "b"}}', "is an index of shards", "ends in .index.json"),
    "json": (lambda: b'{\n  "architectures": ["ResNet"]\n}', "is a text in JSON", "the file of weights beside it"),
    "python": (lambda: b"import torch\n\nclass Net:\n", "is a program in Python", "--factory package.module:function"),
    "mar": (lambda: zip_of("MAR-INF/MANIFEST.json", "model.pt"), "is an archive of TorchServe", "unzip"),
    "zip": (lambda: zip_of("run/model.pth", "run/log.txt"), "is a zip archive with run/model.pth in it", "unzip"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(90), "is a picture", "checkpoint"),
    "apple-double": (lambda: b"\x00\x05\x16\x07" + bytes(90), "what macOS keeps beside a file", "without `._`"),
    "zeros": (lambda: bytes(10_000), "nothing but zeros", "download it again"),
}


@pytest.mark.parametrize("name", ["model.pt", "model.bin"])
@pytest.mark.parametrize("case", FILES)
def test_a_file_of_another_format_is_named_whatever_it_is_called(tmp_path, case, name):
    make, said, cure = FILES[case]
    path = tmp_path / name
    path.write_bytes(make())
    message = refusal(path)
    assert said in message
    assert cure in message


def test_an_onnx_file_of_torchs_own_exporter_is_named(tmp_path):
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),), path, dynamo=False)
    onnx.checker.check_model(str(path))
    assert "is an ONNX model" in refusal(path)


def test_a_torch_package_is_named(tmp_path):
    path = tmp_path / "model.pt"
    with torch.package.PackageExporter(path) as exporter:
        exporter.save_pickle("model", "model.pkl", {"a": 1})
    assert "is an archive of torch.package" in refusal(path)


def test_the_lines_for_a_program_of_torch_export_lead_to_a_checkpoint(tmp_path):
    network = small_network().eval()
    network.fc = nn.Identity()
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), tmp_path / "model.pt2")
    message = refusal(tmp_path / "model.pt2")
    assert "is a program saved by torch.export" in message
    run_cure(message)
    assert_same(read_checkpoint(tmp_path / "model.state_dict.pt").tensors, without_counters(network.state_dict()))


def run_cure(message: str) -> None:
    """The lines that a message gives to run, run."""
    lines = [line.removeprefix("    ") for line in message.splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})


@pytest.mark.parametrize("case", ["npz", "npy-objects", "pickle", "pickled-tensors"])
def test_the_lines_that_a_message_gives_lead_to_a_checkpoint(tmp_path, case):
    state = small_network().state_dict()
    arrays = {name: tensor.numpy() for name, tensor in state.items() if tensor.is_floating_point()}
    content = {
        "npz": lambda: numpy_bytes(np.savez, **arrays),
        "npy-objects": lambda: numpy_bytes(np.save, arrays),
        "pickle": lambda: pickle.dumps(arrays),
        "pickled-tensors": lambda: pickle.dumps({name: state[name] for name in arrays}),
    }[case]()
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    run_cure(refusal(path))
    found = read_checkpoint(tmp_path / "model.state_dict.pt").tensors
    assert_same(found, {name: state[name] for name in arrays})


def test_arrays_in_a_checkpoint_are_named(tmp_path):
    torch.save({"state_dict": {"conv1.weight": np.ones((2, 3))}}, tmp_path / "model.pt")
    assert "holds NumPy arrays where tensors were expected" in refusal(tmp_path / "model.pt")


FOLDERS = {
    "saved-model": (["saved_model.pb", "variables/variables.index"], "is a TensorFlow SavedModel"),
    "tensorflow": (
        ["checkpoint", "model.ckpt-9.index", "model.ckpt-9.data-00000-of-00001"],
        "is a TensorFlow checkpoint",
    ),
    "distributed": ([".metadata", "__0_0.distcp"], "dcp_to_torch"),
    "deepspeed": (
        ["zero_to_fp32.py", "latest", "a_zero_pp_rank_0.pt", "mp_rank_00_model_states.pt"],
        "zero_to_fp32.py",
    ),
    "core-ml": (["Manifest.json", "Data/a"], "is a Core ML model"),
    "keras": (["config.json", "tf_model.h5"], "Keras"),
    "flax": (["config.json", "flax_model.msgpack"], "Flax"),
    "onnx": (["config.json", "model.onnx"], "is an ONNX model"),
    "unpacked": (["data.pkl", "version", "data/0"], "zip -0 -r"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_another_format_is_named(tmp_path, case):
    names, said = FOLDERS[case]
    folder = tmp_path / "model"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert said in refusal(folder)


def test_weights_beside_other_formats_are_taken(tmp_path):
    state = small_network().state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert "conv1.weight" in read_checkpoint(tmp_path).tensors


def test_a_learner_of_fastai_gives_its_models_weights(tmp_path, monkeypatch):
    """`Learner.export` is torch.save of the learner: its model, with its loaders, metrics and functions beside it."""
    module = types.ModuleType("fastai_learner")
    module.Learner = type("Learner", (), {"__module__": "fastai_learner"})
    monkeypatch.setitem(sys.modules, "fastai_learner", module)
    learner = module.Learner()
    network = small_network()
    vars(learner).update(model=network, dls=module.Learner(), lr=0.1, metrics=[], opt_func=torch.optim.SGD)
    path = tmp_path / "export.pkl"
    torch.save(learner, path)
    monkeypatch.delitem(sys.modules, "fastai_learner")
    found = read_checkpoint(path)
    assert found.tensors.keys() == {name for name in network.state_dict() if "num_batches" not in name}
    assert any("weights taken from `model`" in note for note in found.notes)
    assert "fastai_learner" not in sys.modules
