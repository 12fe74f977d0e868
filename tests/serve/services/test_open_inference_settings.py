"""The trace and logging extensions of inference.GRPCInferenceService."""

import asyncio
import re
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from fuseline.protos.open_inference_pb2 import LogSettingsRequest, LogSettingsResponse, TraceSettingRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes.colours import noise
from tests.serve.conftest import StartServer
from tests.serve.failures import refusal
from tests.serve.processes import FAST, own_channel, server_process
from tests.serve.services.open_inference_requests import infer_request

OFF = {
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_file": [""],
    "trace_mode": ["triton"],
}
DEFAULT_LOG = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


def trace_request(model: str = "", **changes: list[str]) -> TraceSettingRequest:
    settings = {name: {"value": values} for name, values in changes.items()}
    return TraceSettingRequest(model_name=model, settings=settings)


def log_request(**changes: object) -> LogSettingsRequest:
    fields = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    return LogSettingsRequest(settings={name: {fields[type(value)]: value} for name, value in changes.items()})


def log_of(response: LogSettingsResponse) -> dict[str, object]:
    return {name: getattr(its, str(its.WhichOneof("parameter_choice"))) for name, its in response.settings.items()}


@pytest.mark.parametrize(
    "asked",
    [
        trace_request(),
        trace_request("colours"),
        trace_request(trace_level=["OFF"], trace_count=["-1"]),
        trace_request("colours", trace_level=[], trace_rate=[], trace_file=[]),
    ],
)
async def test_tracing_is_off_and_may_be_turned_off_or_cleared(
    start_server: StartServer, asked: TraceSettingRequest
) -> None:
    served = await start_server()
    response = await GRPCInferenceServiceStub(served.channel).TraceSetting(asked)
    assert {name: list(its.value) for name, its in response.settings.items()} == OFF


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (trace_request(trace_level=["TIMESTAMPS"]), "trace_level can't be set to .*TIMESTAMPS.*traces no requests"),
        (trace_request(trace_level=["OFF", "TENSORS"]), "trace_level can't be set"),
        (trace_request("colours", trace_level=["OFF"], trace_rate=["1"]), r"trace_rate can't be set to \['1'\]"),
        (trace_request(trace_file=["/tmp/trace"]), "trace_file can't be set"),
        (trace_request(trace_depth=["1"]), "no trace setting 'trace_depth'; there are trace_level, "),
        (trace_request(**{"n" * 2**16: ["v" * 2**16]}), "no trace setting 'nnn"),
        (trace_request(trace_level=["v" * 2**16] * 1000), "trace_level can't be set"),
    ],
)
async def test_tracing_that_is_turned_on_is_refused(
    start_server: StartServer, asked: TraceSettingRequest, message: str
) -> None:
    stub = GRPCInferenceServiceStub((await start_server()).channel)
    code, details = await refusal(stub.TraceSetting(asked))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(message, details)
    assert len(details) < 500


async def test_the_trace_settings_of_a_model_that_is_not_served_are_not_found(start_server: StartServer) -> None:
    stub = GRPCInferenceServiceStub((await start_server()).channel)
    assert (await refusal(stub.TraceSetting(trace_request("cats"))))[0] is grpc.StatusCode.NOT_FOUND


async def test_the_log_of_another_program_can_be_asked_for_and_not_changed(start_server: StartServer) -> None:
    stub = GRPCInferenceServiceStub((await start_server()).channel)
    assert log_of(await stub.LogSettings(LogSettingsRequest())) == DEFAULT_LOG
    code, details = await refusal(stub.LogSettings(log_request(log_info=False)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "belongs to the program that this server runs in" in details


async def test_the_log_of_a_server_is_changed_setting_by_setting(package: Path) -> None:
    with server_process(package, *FAST) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            for asked, message in (
                (log_request(log_info=1), "log_info can't be set to 1: input should be a valid boolean"),
                (log_request(log_verbose_level=True), "log_verbose_level can't be set to True: .*integer"),
                (log_request(log_format="x" * 2**16), "log_format can't be set to 'xxx.*'default' or 'ISO8601'"),
                (log_request(log_file="/tmp/log"), "log_file can't be changed while the server runs"),
                (log_request(colour=True), "no log setting 'colour'; there are log_info, .*log_file"),
                (LogSettingsRequest(settings={"log_error": {}}), "log_error can't be set to None"),
                (log_request(log_info=False, log_error="no"), "log_error can't be set"),
            ):
                code, details = await refusal(stub.LogSettings(asked))
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                assert re.search(message, details), details
                assert len(details) < 500
            await stub.ModelInfer(infer_request(noise(1), id="unlogged"))
            assert log_of(await stub.LogSettings(LogSettingsRequest())) == DEFAULT_LOG
            verbose = log_request(log_verbose_level=1, log_format="ISO8601")
            expected = DEFAULT_LOG | {"log_verbose_level": 1, "log_format": "ISO8601"}
            assert log_of(await stub.LogSettings(verbose)) == expected
            await stub.ModelInfer(infer_request(noise(1)))
            await refusal(stub.ModelInfer(infer_request(noise(1), model_name="cats")))
            await stub.LogSettings(log_request(log_info=False, log_verbose_level=0))
        server.process.send_signal(signal.SIGTERM)
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    first_change, *requests, second_change = stderr.splitlines()
    assert re.match(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO fuseline.serve.process.server_log: a client", first_change
    )
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    line = rf"{time} DEBUG fuseline\.serve\.services\.inference: ModelInfer of"
    for request, told in zip(requests, ["colours: OK", "no model: NOT_FOUND"], strict=True):
        assert re.fullmatch(rf"{line} {told} in \d+\.\d+ ms", request)
    # The drain's own lines, which are of level INFO, are left out.
    assert re.match(rf"{time} INFO fuseline.serve.process.server_log: a client", second_change)


async def test_the_log_is_changed_in_every_process_of_a_server_with_workers(package: Path) -> None:
    with server_process(package, *FAST, "--workers", 2) as server:
        async with AsyncExitStack() as stack:
            stubs = [GRPCInferenceServiceStub(await stack.enter_async_context(own_channel(server))) for _ in range(16)]
            await stubs[0].LogSettings(log_request(log_verbose_level=1))
            async with asyncio.timeout(30):
                for stub in stubs:
                    # The other worker is told by the supervisor, after the answer.
                    while not log_of(await stub.LogSettings(LogSettingsRequest()))["log_verbose_level"]:
                        pass
                    await stub.ModelInfer(infer_request(noise(1)))
                await stubs[0].LogSettings(log_request(log_info=False))
                for stub in stubs:
                    while log_of(await stub.LogSettings(LogSettingsRequest()))["log_info"]:
                        pass
        server.process.send_signal(signal.SIGTERM)
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    answered = re.findall(r"DEBUG \S+ \((worker \d)\): ModelInfer of colours: OK", stderr)
    assert len(answered) == 16
    assert set(answered) == {"worker 1", "worker 2"}
    assert "drain" not in stderr
