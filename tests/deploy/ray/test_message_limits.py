import pytest

from fuseline.deploy.ray.message_limits import transport_warning

MOST = 64 * 2**20


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RAY_SERVE_PROXY_USE_GRPC": "0", "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"},
        {"RAY_SERVE_PROXY_USE_GRPC": "1", "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": f"{MOST}"},
        # Ray itself ends over it.
        {"RAY_SERVE_PROXY_USE_GRPC": "1", "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "much"},
    ],
)
def test_nothing_is_said_where_every_request_comes_through(environment: dict[str, str]) -> None:
    assert transport_warning(environment, MOST) is None


@pytest.mark.parametrize("switch", ["RAY_SERVE_PROXY_USE_GRPC", "RAY_SERVE_USE_GRPC_BY_DEFAULT"])
def test_rays_limit_between_proxy_and_replica_is_told_with_its_cure(switch: str) -> None:
    warning = transport_warning({switch: "1"}, MOST)
    assert warning is not None
    assert "at most 4194304 bytes" in warning
    assert f"set RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH={MOST} on every node" in warning
