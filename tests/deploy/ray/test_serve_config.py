from pathlib import Path

import pytest
import yaml

import fuseline.deploy.ray.servicers as servicers
from fuseline.deploy.ray.serve_config import serve_config
from fuseline.serve.errors import InputError

EXAMPLE = Path(__file__).resolve().parents[3] / "deploy/ray/resnet18.yaml"


def test_the_example_is_what_serve_config_writes() -> None:
    written = serve_config(
        "/models/resnet18", name="resnet18", min_replicas=1, max_replicas=8, cpus=2, memory_bytes=2**30
    )
    assert yaml.safe_load(EXAMPLE.read_text()) == written


def test_a_config_holds_what_was_asked_for_and_no_default() -> None:
    config = serve_config(
        "/models/a", name="a", cpus=1, gpus=0.25, max_ongoing_requests=300, min_replicas=2, max_batch=64
    )
    (application,) = config["applications"]
    assert application["args"] == {
        "package": "/models/a",
        "name": "a",
        "num_cpus": 1.0,
        "num_gpus": 0.25,
        "max_ongoing_requests": 300,
        "min_replicas": 2,
        "max_batch": 64,
    }


def test_a_config_survives_yaml() -> None:
    config = serve_config("/models/a", name="a", max_replicas=3)
    assert yaml.safe_load(yaml.safe_dump(config)) == config


def test_every_servicer_function_of_a_config_is_there() -> None:
    for path in serve_config("/models/a", name="a")["grpc_options"]["grpc_servicer_functions"]:
        module, _, name = path.partition(":")
        assert module == servicers.__name__
        assert callable(getattr(servicers, name))


def test_an_argument_out_of_range_is_refused_before_a_config_is_written() -> None:
    with pytest.raises(InputError, match=r"max_replicas was given 1: expected at least min_replicas, which is 4"):
        serve_config("/models/a", name="a", min_replicas=4, max_replicas=1)
