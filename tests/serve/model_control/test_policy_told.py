"""The configuration of a model tells by which policy its versions are served: real servers, over gRPC and REST."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from fuseline.protos.open_inference_pb2 import ModelConfigRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes.colours import write_colours_package
from tests.serve.model_control.repositories import put
from tests.serve.processes import FAST, ServerProcess, free_port, get, server_process

POLICIES = ("latest:3", "cats=all", "dogs=specific:2,10,77", "owls=specific:1.5,3,007,99999999999999999999")
TOLD = {
    "cats": {"all": {}},
    "dogs": {"specific": {"versions": [2, 10, 77]}},
    "hens": {"latest": {"num_versions": 3}},
    # Triton's versions are integers of 64 bits.
    "owls": {"specific": {"versions": [3]}},
    # Both packages that the command line names are served.
    "fixed": {"latest": {"num_versions": 2}},
    "alone": {"latest": {"num_versions": 1}},
    # An alias of dogs.
    "prod": {"specific": {"versions": [2, 10, 77]}},
}


def by_grpc(server: ServerProcess, name: str) -> dict[str, Any]:
    with grpc.insecure_channel(server.address) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelConfig(ModelConfigRequest(name=name), timeout=30)
    told: dict[str, Any] = MessageToDict(answer.config.version_policy, preserving_proto_field_name=True)
    if "specific" in told:
        told["specific"]["versions"] = list(answer.config.version_policy.specific.versions)
    return told


def by_rest(server: ServerProcess, name: str) -> dict[str, Any]:
    assert server.http_address is not None
    config: dict[str, Any] = json.loads(get(server.http_address, f"/v2/models/{name}/config")[1])
    return config


@pytest.mark.parametrize("workers", [1, 2])
def test_the_config_tells_the_policy_in_force(tmp_path: Path, workers: int) -> None:
    root = tmp_path / "models"
    for name, version in (("cats", 1), ("dogs", 2), ("hens", 1), ("owls", 3)):
        put(root, name, version)
    packages = [
        write_colours_package(tmp_path / folder, name=name, version=version)
        for folder, name, version in (("a", "fixed", "1"), ("b", "fixed", "2"), ("c", "alone", "1"))
    ]
    flags = [flag for policy in POLICIES for flag in ("--version-policy", policy)]
    repository = ("--model-repository", root, *flags, "--alias", "prod=dogs:2")
    with server_process(*packages, *FAST, *repository, "--workers", workers, "--http-port", free_port()) as server:
        assert {name: by_grpc(server, name) for name in TOLD} == TOLD
        configs = {name: by_rest(server, name) for name in TOLD}
    assert {name: config["version_policy"] for name, config in configs.items()} == TOLD
    whole = {name: its["parameters"]["version_policy"] for name, its in configs.items() if its["parameters"]}
    assert whole == {"owls": {"string_value": "specific:1.5,3,007,99999999999999999999"}}
