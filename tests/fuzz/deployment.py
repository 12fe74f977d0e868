"""What a manifest for a cluster is made of, besides a package: a measurement that another machine has written."""

from fuseline.deploy.manifest.kubernetes import Deployed, kubernetes_documents
from fuseline.deploy.manifest.measurement import measurement_from_bytes
from fuseline.deploy.manifest.names import Image, Replicas
from fuseline.deploy.manifest.sizing import sizes_from
from fuseline.deploy.manifest.yaml_text import yaml_text
from fuseline.serve.errors import InputError
from tests.deploy.manifest.sample import measured
from tests.fuzz.target import Target, check_message


def _measurement(data: bytes) -> None:
    """A measurement that is read ends in documents whose comment is a comment, whatever its texts hold."""
    try:
        found = measurement_from_bytes(data, "measured.json")
    except InputError as error:
        _check_line(error)
        return
    assert all(len(line.splitlines()) == 1 for line in found.lines)
    deployed = Deployed("fuzzed", Image("fuseline", "1", ""), Replicas(1, 2), sizes_from(found))
    text = yaml_text(kubernetes_documents(deployed), found.lines)
    assert text.count("\nkind: Deployment\n") == 1


def _check_line(error: InputError) -> None:
    check_message(error)
    assert len(str(error).splitlines()) == 1, error


TARGETS = {
    "measurements": Target(
        _measurement,
        lambda: [
            measured().model_dump_json().encode(),
            measured(device="NVIDIA H100", cpus=64).model_dump_json().encode(),
        ],
    )
}
