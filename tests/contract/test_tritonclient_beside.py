"""One process that uses both tritonclient and Fuseline's client, whose messages protobuf keeps in one pool."""

import subprocess
import sys

import pytest

from tests.contract.test_tritonclient import PYTHON
from tests.fakes.colours import write_colours_package
from tests.serve.processes import FAST, ROOT, server_process

_IMPORTS = ("from fuseline import Client", "import tritonclient.grpc as triton")

_CALLS = """
import numpy as np

pixels = np.zeros((1, 8, 8, 3), np.uint8)
with Client(ADDRESS) as client, triton.InferenceServerClient(ADDRESS) as triton_client:
    ours = client.classify(pixels[0], return_logits=True).results[0].logits
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    theirs = triton_client.infer("colours", [tensor]).as_numpy("logits")[0]
assert ours.tolist() == theirs.tolist(), (ours, theirs)
"""


@pytest.mark.parametrize("imports", [_IMPORTS, _IMPORTS[::-1]], ids=["fuseline first", "tritonclient first"])
def test_both_clients_work_in_one_process(imports: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    if not PYTHON.is_file():
        pytest.fail(f"there is no {PYTHON}; run `make setup`")
    (packages,) = PYTHON.parents[1].glob("lib/python*/site-packages")
    package = write_colours_package(tmp_path_factory.mktemp("packages") / "colours")
    with server_process(package, *FAST) as server:
        # Last: everything that both need, protobuf above all, is this environment's.
        lines = ("import sys", f"sys.path.append({str(packages)!r})", *imports, f"ADDRESS = {server.address!r}", _CALLS)
        command = [sys.executable, "-c", "\n".join(lines)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
