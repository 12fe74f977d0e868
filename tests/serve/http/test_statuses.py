"""The table from gRPC's statuses to HTTP's, and what an error's answer tells."""

import json

from fuseline.serve import errors
from fuseline.serve.http.http_answers import error_answer
from fuseline.serve.services.statuses import HTTP_STATUS_OF_CODE, STATUS_CODE_OF_ERROR, status_from_error


def test_every_status_of_an_error_has_one_of_http() -> None:
    assert set(STATUS_CODE_OF_ERROR.values()) <= set(HTTP_STATUS_OF_CODE)
    assert {error.__name__: status_from_error(error("why")).http_status.value for error in STATUS_CODE_OF_ERROR} == {
        "RequestError": 400,
        "ImageError": 400,
        "UnknownModelError": 404,
        "UnknownRegionError": 404,
        "RegionExistsError": 409,
        "SharedMemoryUnavailableError": 400,
        "UnauthenticatedError": 401,
        "ForbiddenError": 403,
        "ModelControlError": 400,
        "OverloadedError": 429,
        "DeadlineError": 504,
        "ShuttingDownError": 503,
        "BackendLostError": 503,
        "BackendError": 500,
    }


def test_an_overloaded_servers_answer_tells_when_there_is_likely_to_be_room() -> None:
    for seconds, whole, milliseconds in ((0.0124, "1", "13"), (1.2, "2", "1200"), (0.0, "1", "1")):
        answer = error_answer(status_from_error(errors.OverloadedError("full", seconds)))
        assert (answer.status_code, json.loads(answer.body)) == (429, {"error": "full"})
        assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == (whole, milliseconds)
    assert "retry-after" not in error_answer(status_from_error(errors.OverloadedError("full"))).headers


def test_an_unexpected_error_is_told_by_an_id_only() -> None:
    answer = error_answer(status_from_error(KeyError("secret")))
    assert answer.status_code == 500
    assert "secret" not in bytes(answer.body).decode()
