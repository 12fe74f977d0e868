"""JSON bodies at their limits, against a server with a tiny real model."""

from fuseline.serve.http.infer_request import MAX_JSON_BYTES
from tests.fakes.colours import noise
from tests.serve.conftest import StartServer
from tests.serve.http.calls import binary_body, call, logits_of

INFER = "/v2/models/colours/infer"


async def test_json_above_its_limit_is_413_before_it_is_parsed_and_the_next_request_is_answered(
    start_http: StartServer,
) -> None:
    served = await start_http()
    for body in (b" " * (MAX_JSON_BYTES + 1), b"[" * (MAX_JSON_BYTES + 1)):
        answer = await call(served, "POST", INFER, body)
        assert answer.status == 413
        assert f"{MAX_JSON_BYTES} bytes of JSON" in answer.error
    assert logits_of(await call(served, "POST", INFER, *binary_body(noise(1)))).shape == (1, 4)


async def test_the_json_of_other_requests_is_bounded_too(start_http: StartServer) -> None:
    served = await start_http()
    for path in ("/v2/repository/index", "/v2/logging", "/v2/systemsharedmemory/region/a/register"):
        answer = await call(served, "POST", path, b" " * (2**20 + 1))
        assert answer.status == 413, path
        assert "1048576 bytes" in answer.error
