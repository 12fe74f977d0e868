"""Aliases, splits and shadows of real servers, over both protocols and both doors."""

import asyncio
import json
import re
import shutil
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import fuseline.serve.model
import fuseline.serve.model_source
from fuseline.protos import open_inference_pb2 as oip
from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, GetModelRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.backends.base import Backend
from fuseline.serve.batching.policy import CpuBatching
from fuseline.serve.client import AsyncClient, Client
from fuseline.serve.commands.classify_command import classify_files
from fuseline.serve.errors import InputError, RequestError, UnknownModelError
from fuseline.serve.model import load_model
from fuseline.serve.server import Server
from tests.fakes.backends import SteeredBackend, opening
from tests.fakes.colours import encoded, expected_logits, noise, plain
from tests.serve.conftest import settings
from tests.serve.processes import FAST, finished, free_port, get, own_channel, server_process

SPLIT = "prod=stable:3@0.5,canary:4@0.5"
GREENER = np.array([0, 0.5, 0, 0])
"""What the canary adds to the logits of `stable`."""
VERSION_OF = {"stable": "3", "canary": "4"}


class Routed:
    """A server of two models with aliases, and stubs of it."""

    def __init__(self, server: Server, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.address = f"127.0.0.1:{server.port}"
        self.http_address = f"127.0.0.1:{server.http_port}"
        self.classifier = ClassifierStub(channel)
        self.inference = GRPCInferenceServiceStub(channel)

    async def http(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        """The status of an answer over HTTP, and its JSON."""

        def call() -> tuple[int, Any]:
            request = urllib.request.Request(f"http://{self.http_address}{path}", body, headers)
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    return response.status, json.loads(response.read())
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.loads(error.read())

        return await asyncio.to_thread(call)

    async def metric(self, name: str, **labels: str) -> float:
        """The value of a metric that /metrics shows; 0 where it shows none."""
        _, text = await asyncio.to_thread(get, self.http_address, "/metrics")
        return metric_in(text, name, **labels)


def metric_in(text: str, name: str, **labels: str) -> float:
    shown = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    found = re.search(rf"^{name}{{{re.escape(shown)}}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.fixture
async def routed(packages: Path) -> AsyncIterator[Routed]:
    its_settings = settings(
        alias=(SPLIT, "best=stable", "last=canary:4"), shadow=("best=canary:4@1",), http_port=free_port()
    )
    server = Server.for_packages([packages / "stable", packages / "canary"], its_settings)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        try:
            yield Routed(server, channel)
        finally:
            await server.drain()


def classify_request(model: str = "", version: str = "", **fields: Any) -> ClassifyRequest:
    return ClassifyRequest(model=model, model_version=version, images=[Image(raw=plain("red").tobytes())], **fields)


def infer_request(model: str, version: str = "") -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name="image", datatype="UINT8", shape=(1, 8, 8, 3))
    request.raw_input_contents.append(plain("red").tobytes())
    return request


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_an_answer_has_the_name_that_was_asked_for_and_the_model_and_version_that_answered(
    routed: Routed,
) -> None:
    asked: list[tuple[str, str, str, str]] = [
        ("stable", "", "3", ""),
        ("stable", "3", "3", ""),
        ("last", "", "4", "canary"),
        ("best", "3", "3", "stable"),
        ("prod", "3", "3", "stable"),
        ("prod", "4", "4", "canary"),
    ]
    for name, version, answered, served in asked:
        response = await routed.classifier.Classify(classify_request(name, version))
        assert (response.model, response.model_version, response.served_model) == (name, answered, served)
        inferred = await routed.inference.ModelInfer(infer_request(name, version))
        assert (inferred.model_name, inferred.model_version) == (name, answered)
        assert inferred.parameters["served_model"].string_param == served
    for wrong in (("stable", "4"), ("prod", "5"), ("last", "3"), ("nothing", "")):
        for call in (
            routed.classifier.Classify(classify_request(*wrong)),
            routed.inference.ModelInfer(infer_request(*wrong)),
            routed.classifier.GetModel(GetModelRequest(model=wrong[0], version=wrong[1])),
        ):
            assert (await code_of(call))[0] is grpc.StatusCode.NOT_FOUND, wrong


async def test_requests_of_a_split_are_answered_by_both_models_in_calls_and_streams(routed: Routed) -> None:
    pixels = plain("red")
    logits = {"3": expected_logits(pixels[np.newaxis])[0]}
    logits["4"] = logits["3"] + GREENER
    answers = [await routed.classifier.Classify(classify_request("prod", return_logits=True)) for _ in range(40)]

    async def requests() -> AsyncIterator[ClassifyRequest]:
        for number in range(40):
            yield classify_request("prod", id=str(number), return_logits=True)

    answers += [response async for response in routed.classifier.ClassifyStream(requests())]
    given = Counter((answer.served_model, answer.model_version) for answer in answers)
    # 80 fair draws are all alike once in 2**79.
    assert set(given) == set(VERSION_OF.items())
    for answer in answers:
        (result,) = answer.results
        assert np.frombuffer(result.logits, "<f4") == pytest.approx(logits[answer.model_version], abs=1e-4)
    for (name, version), count in given.items():
        assert await routed.metric("fuseline_alias_requests_total", alias="prod", model=name, version=version) == count


async def test_versions_and_aliases_are_asked_for_over_rest(routed: Routed) -> None:
    picture = encoded(plain("red"))
    for path, expected in [
        ("/v1/models/stable/versions/3/classify", ("stable", "3", None)),
        ("/v1/models/stable/classify?version=3", ("stable", "3", None)),
        ("/v1/classify?model=prod&version=4", ("prod", "4", "canary")),
        ("/v1/models/last/classify", ("last", "4", "canary")),
        ("/v1/models/prod/versions/3/classify", ("prod", "3", "stable")),
    ]:
        status, answer = await routed.http(path, picture, **{"Content-Type": "image/png"})
        assert status == 200, answer
        assert (answer["model"], answer["model_version"], answer.get("served_model")) == expected
    for path in ("/v1/models/stable/versions/4/classify", "/v1/classify?model=prod&version=9"):
        assert (await routed.http(path, picture, **{"Content-Type": "image/png"}))[0] == 404
    refused = await routed.http("/v1/models/stable/versions/3/classify?version=3", picture)
    assert refused[0] == 400
    assert "'version' is not known here" in refused[1]["error"]
    message = classify_request("nothing", "9").SerializeToString()

    def protobuf() -> ClassifyResponse:
        request = urllib.request.Request(
            f"http://{routed.http_address}/v1/models/prod/versions/4/classify",
            message,
            {"Content-Type": "application/x-protobuf"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return ClassifyResponse.FromString(response.read())

    # What the path says counts, not what the message does.
    assert (await asyncio.to_thread(protobuf)).served_model == "canary"
    raw = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}

    def infer(path: str) -> bytes:
        request = urllib.request.Request(f"http://{routed.http_address}{path}", plain("red").tobytes(), raw)
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.read()

    answer = await asyncio.to_thread(infer, "/v2/models/prod/versions/4/infer")
    head = json.JSONDecoder().raw_decode(answer.decode("latin-1"))[0]
    assert (head["model_name"], head["model_version"]) == ("prod", "4")
    assert head["parameters"]["served_model"] == "canary"


async def test_an_alias_is_described_under_its_own_name(routed: Routed) -> None:
    described = await routed.classifier.GetModel(GetModelRequest(model="prod"))
    assert (described.name, described.version, described.served_model) == ("prod", "3", "stable")
    described = await routed.classifier.GetModel(GetModelRequest(model="prod", version="4"))
    assert (described.name, described.version, described.served_model) == ("prod", "4", "canary")
    metadata = await routed.inference.ModelMetadata(oip.ModelMetadataRequest(name="prod"))
    assert (metadata.name, list(metadata.versions)) == ("prod", ["3", "4"])
    assert [tensor.name for tensor in metadata.inputs] == ["image"]
    config = await routed.inference.ModelConfig(oip.ModelConfigRequest(name="last"))
    assert config.config.name == "last"
    for name, version, ready in (("prod", "", True), ("prod", "4", True), ("prod", "5", False), ("no", "", False)):
        answer = await routed.inference.ModelReady(oip.ModelReadyRequest(name=name, version=version))
        assert answer.ready is ready
    await routed.inference.ModelInfer(infer_request("prod", "4"))
    statistics = await routed.inference.ModelStatistics(oip.ModelStatisticsRequest(name="prod"))
    counted = {(its.name, its.version): its.inference_stats.success.count for its in statistics.model_stats}
    assert counted == {("prod", "3"): 0, ("prod", "4"): 1}
    everything = await routed.inference.ModelStatistics(oip.ModelStatisticsRequest())
    assert {its.name for its in everything.model_stats} == {"stable", "canary"}
    index = await routed.inference.RepositoryIndex(oip.RepositoryIndexRequest())
    assert [(row.name, row.version, row.state, row.reason) for row in index.models] == [
        ("stable", "3", "READY", ""),
        ("canary", "4", "READY", ""),
        ("prod", "3", "READY", "alias of stable:3, 0.5 of the requests"),
        ("prod", "4", "READY", "alias of canary:4, 0.5 of the requests"),
        ("best", "3", "READY", "alias of stable"),
        ("last", "4", "READY", "alias of canary:4"),
    ]
    assert await routed.http("/v1/models") == (
        200,
        {"models": ["stable", "canary"], "aliases": ["prod", "best", "last"]},
    )
    assert (await routed.http("/v2/models/prod/ready"))[1] == {"name": "prod", "ready": True}
    assert (await routed.http("/v1/models/prod/versions/4"))[1]["served_model"] == "canary"
    assert (await routed.http("/v1/models/prod/versions/5"))[0] == 404


async def test_clients_ask_for_versions_and_aliases(routed: Routed) -> None:
    def with_client(address: str) -> None:
        with Client(address) as client:
            for asked, expected in [
                (("stable", "3"), ("stable", "3", "")),
                (("prod", "4"), ("prod", "4", "canary")),
                (("last", ""), ("last", "4", "canary")),
            ]:
                name, version = asked
                answer = client.classify(plain("red"), model=name, version=version)
                assert (answer.model, answer.model_version, answer.served_model) == expected
                (streamed,) = client.classify_stream([plain("red")], model=name, version=version)
                assert streamed.answer is not None
                assert streamed.answer.model_version == expected[1]
            assert client.model("prod", "4").served_model == "canary"
            with pytest.raises(UnknownModelError, match="no version '4' of stable"):
                client.classify(b"", model="stable", version="4")

    for address in (routed.address, f"http://{routed.http_address}"):
        await asyncio.to_thread(with_client, address)
    async with AsyncClient(routed.address) as client:
        answer = await client.classify(plain("red"), model="prod", version="4")
        assert answer.served_model == "canary"
        assert (await client.model("prod", "3")).served_model == "stable"
        streamed = [its async for its in client.classify_stream([plain("red")], model="prod", version="4")]
        assert streamed[0].answer is not None
        assert streamed[0].answer.model_version == "4"


async def test_clients_describe_a_model_anew_whose_version_takes_other_pixels_than_the_last(routed: Routed) -> None:
    def with_client() -> None:
        with Client(routed.address) as client:
            client._known_models["stable", ""] = replace(client.model("stable"), height=9)
            assert client.classify(plain("red"), model="stable").model_version == "3"
            with pytest.raises(RequestError, match=r"stable takes uint8 \(8, 8, 3\)"):
                client.classify(plain("red", 9), model="stable")

    await asyncio.to_thread(with_client)
    async with AsyncClient(routed.address) as client:
        client._known_models["stable", ""] = replace(await client.model("stable"), height=9)
        assert (await client.classify(plain("red"), model="stable")).model_version == "3"


async def test_the_command_classifies_by_a_version_and_says_which_model_answered(
    routed: Routed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "red.png").write_bytes(encoded(plain("red")))

    def classify(model: str) -> int:
        return classify_files([tmp_path], address=routed.address, model=model, top_k=None, as_json=True)

    assert await asyncio.to_thread(classify, "prod:4") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["model"], answer["model_version"], answer["served_model"]) == ("prod", "4", "canary")
    with pytest.raises(UnknownModelError, match="there is no version '5' of stable here"):
        await asyncio.to_thread(classify, "stable:5")


async def test_a_shadow_compares_and_changes_no_answer(routed: Routed) -> None:
    pictures = [encoded(pixels) for pixels in noise(6)]
    request = ClassifyRequest(model="best", images=[Image(encoded=picture) for picture in pictures], return_logits=True)
    answered = await routed.classifier.Classify(request)
    assert (answered.served_model, answered.model_version) == ("stable", "3")
    logits = np.stack([np.frombuffer(result.logits, "<f4") for result in answered.results])
    expected = expected_logits(noise(6))
    assert logits == pytest.approx(expected, abs=1e-4)
    await routed.inference.ModelInfer(infer_request("best"))
    # Another name for the same model, whose requests have no shadow.
    await routed.classifier.Classify(classify_request("stable"))
    labels = {"shadowed": "best", "model": "canary", "version": "4"}
    agreeing = int((expected.argmax(axis=1) == (expected + GREENER).argmax(axis=1)).sum())

    async def compared() -> float:
        outcomes = [
            await routed.metric("fuseline_shadow_requests_total", **labels, outcome=outcome)
            for outcome in ("agrees", "differs")
        ]
        return sum(outcomes)

    async with asyncio.timeout(30):
        while await compared() < 2:  # noqa: ASYNC110 what is waited for lies in the server, which tells no one
            await asyncio.sleep(0)
    assert await compared() == 2
    assert await routed.metric("fuseline_shadow_images_total", **labels, outcome="agrees") == agreeing + 1
    assert await routed.metric("fuseline_shadow_images_total", **labels, outcome="differs") == 6 - agreeing
    assert await routed.metric("fuseline_shadow_logit_difference_sum", **labels) == pytest.approx(1.0, abs=1e-3)
    # Neither statistics nor requests of the shadow count what it computed.
    requests = {"method": "Classify", "code": "OK"}
    assert await routed.metric("fuseline_requests_total", **requests, model="canary", version="4") == 0
    assert await routed.metric("fuseline_requests_total", **requests, model="stable", version="3") > 0


async def test_a_shadow_that_hangs_or_fails_holds_up_no_answer(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backends: list[SteeredBackend] = []

    def steered(real: Backend) -> SteeredBackend:
        backends.append(SteeredBackend(real))
        return backends[-1]

    monkeypatch.setattr(fuseline.serve.model, "open_backend", opening(steered))
    # A backend that a test holds must not hold the test's event loop too.
    load = partial(load_model, cpu=CpuBatching(inline_below_ms=0.0))
    monkeypatch.setattr(fuseline.serve.model_source, "load_model", load)
    its_settings = settings(shadow=("stable=canary@1",), max_images_per_request=4)
    server = Server.for_packages([packages / "stable", packages / "canary"], its_settings)
    await server.start()
    _, canary = backends

    def count(outcome: str) -> float:
        labels = {"shadowed": "stable", "model": "canary", "version": "4", "outcome": outcome}
        return server._metrics.registry.get_sample_value("fuseline_shadow_requests_total", labels) or 0.0

    def fail(_: object) -> Any:
        raise ValueError("broken")

    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = ClassifierStub(channel)
        canary.hold()
        for _ in range(20):
            answer = await stub.Classify(classify_request("stable"), timeout=10)
            assert answer.model_version == "3"
        # Four wait or hang, as many as a request may have images.
        assert count("dropped") == 16
        canary.replacement = fail
        canary.release()
        async with asyncio.timeout(30):
            while count("failed") < 4:  # noqa: ASYNC110 what is waited for lies in the server, which tells no one
                await asyncio.sleep(0)
        canary.replacement = None
        canary.hold()
        await stub.Classify(classify_request("stable"), timeout=10)
        drain = asyncio.create_task(server.drain())
        async with asyncio.timeout(30):
            while count("dropped") < 17:  # noqa: ASYNC110
                await asyncio.sleep(0)
        canary.release()
        await drain


async def test_targets_that_come_and_go_are_heeded_from_one_request_to_the_next(
    packages: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = tmp_path / "models"
    shutil.copytree(packages / "stable", models / "paint" / "3")
    shutil.copytree(packages / "turned", models / "best" / "1")
    its_settings = settings(
        alias=("prod=paint:3@0.5,paint:4@0.5", "best=paint"),
        shadow=("paint:4@1",),
        model_repository=(models,),
        model_control_mode="explicit",
        load_model=("paint",),
        version_policy=("all",),
    )
    server = Server.for_packages([], its_settings)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        routed = Routed(server, channel)

        async def answered(name: str, version: str = "") -> set[str]:
            """The versions that answer 40 requests."""
            asked = [routed.classifier.Classify(classify_request(name, version)) for _ in range(40)]
            return {response.model_version for response in await asyncio.gather(*asked)}

        async def load(name: str) -> None:
            await routed.inference.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name=name))

        async def compared() -> float:
            labels = {"shadowed": "paint", "model": "paint", "version": "4"}
            value = server._metrics.registry.get_sample_value(
                "fuseline_shadow_requests_total", labels | {"outcome": "agrees"}
            )
            return value or 0.0

        assert "--alias prod=paint:4: there is no version '4' of paint here" in caplog.text
        assert await answered("prod") == {"3"}
        assert await answered("best") == {"3"}
        shutil.copytree(packages / "canary", models / "paint" / "4")
        await load("paint")
        assert await answered("prod") == {"3", "4"}
        assert await answered("best") == {"4"}
        metadata = await routed.inference.ModelMetadata(oip.ModelMetadataRequest(name="prod"))
        assert list(metadata.versions) == ["3", "4"]
        # The shadow answers these itself now.
        assert await answered("paint") == {"4"}
        assert await compared() == 0
        assert await answered("paint", "3") == {"3"}
        async with asyncio.timeout(30):
            while await compared() < 1:  # noqa: ASYNC110 what is waited for lies in the server, which tells no one
                await asyncio.sleep(0)
        shutil.rmtree(models / "paint" / "3")
        await load("paint")
        assert await answered("prod") == {"4"}
        assert "alias prod: paint:3 is not served; its requests go to paint:4" in caplog.text
        code, reason = await code_of(routed.classifier.Classify(classify_request("prod", "3")))
        assert (code, "not served in version '3' now" in reason) == (grpc.StatusCode.NOT_FOUND, True)
        code, reason = await code_of(load("best"))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "--alias best leads to other models" in reason
        await routed.inference.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="paint"))
        for name in ("prod", "best"):
            code, _ = await code_of(routed.classifier.Classify(classify_request(name)))
            assert code is grpc.StatusCode.NOT_FOUND
    await server.drain()


@pytest.mark.parametrize(
    ("routes", "reason"),
    [
        ({"alias": ("prod=stable:4",)}, "--alias prod=stable:4: there is no version '4' of stable here; served: '3'"),
        ({"alias": ("stable=canary",)}, "a model of that name is served already"),
        ({"shadow": ("stable@0.5",)}, "stable:3 answers these requests itself"),
    ],
)
async def test_a_route_that_leads_nowhere_ends_the_start(
    packages: Path, routes: dict[str, tuple[str]], reason: str
) -> None:
    server = Server.for_packages([packages / "stable", packages / "canary"], settings(**routes))
    with pytest.raises(InputError, match=reason):
        await server.start()
    await server.drain()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_route_that_leads_nowhere_ends_the_process_with_the_reason(packages: Path, workers: int) -> None:
    flags = ("--alias", "prod=stable:4", "--workers", workers)
    code, _, stderr = finished(packages / "stable", packages / "canary", *FAST, *flags)
    assert code == 2
    assert "--alias prod=stable:4: there is no version '4' of stable here; served: '3'" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
async def test_workers_route_alike_and_their_counts_are_summed(packages: Path) -> None:
    flags = ("--alias", SPLIT, "--shadow", "stable=canary:4@1", "--workers", 2)
    http = ("--port", 0, "--http-port", free_port(), "--backend", "onnxruntime", "--threads", 1)
    with server_process(packages / "stable", packages / "canary", *http, *flags) as server:
        assert "prod leads to stable:3 (0.5), canary:4 (0.5)\ncanary:4 shadows 1 of the requests to stable\n" in (
            server.announcement
        )
        assert server.http_address is not None
        answers: list[ClassifyResponse] = []
        for _ in range(8):
            async with own_channel(server) as channel:
                stub = ClassifierStub(channel)
                answers += [await stub.Classify(classify_request("prod")) for _ in range(10)]
                await stub.Classify(classify_request("stable"))
        given = Counter(answer.served_model for answer in answers)
        assert set(given) == {"stable", "canary"}

        async def metric(name: str, **labels: str) -> float:
            _, text = await asyncio.to_thread(get, server.http_address or "", "/metrics")
            return metric_in(text, name, **labels)

        for name, count in given.items():
            labels = {"alias": "prod", "model": name, "version": VERSION_OF[name]}
            assert await metric("fuseline_alias_requests_total", **labels) == count
        labels = {"shadowed": "stable", "model": "canary", "version": "4", "outcome": "agrees"}
        async with asyncio.timeout(30):
            # What is waited for lies in other processes.
            while await metric("fuseline_shadow_requests_total", **labels) < 8:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert await metric("fuseline_shadow_requests_total", **labels) == 8
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
        assert code == 0, stderr
