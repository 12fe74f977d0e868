"""Asks a server whether it serves, by grpc.health.v1, which any server of gRPC may have."""

from typing import cast

import grpc

from fuseline.serve.balancing.outcomes import Outcome

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
"""The method; an empty message asks about the server as a whole."""


def outcome_of_health(answer: bytes) -> Outcome:
    """Return what the answer to `HEALTH_CHECK` says about the server; one that doesn't serve says that it will not."""
    # Few clients ever ask.
    from grpc_health.v1.health_pb2 import HealthCheckResponse

    status = HealthCheckResponse.FromString(answer).status
    return Outcome.ANSWERED if status == HealthCheckResponse.SERVING else Outcome.DRAINING


def outcome_of_health_error(error: grpc.RpcError) -> Outcome:
    """Return what the failure of `HEALTH_CHECK` says about the server; one that has no such method does answer."""
    code = cast(grpc.Call, error).code()
    if code is grpc.StatusCode.UNAVAILABLE:
        return Outcome.UNREACHABLE
    return Outcome.FAILED if code is grpc.StatusCode.DEADLINE_EXCEEDED else Outcome.ANSWERED
