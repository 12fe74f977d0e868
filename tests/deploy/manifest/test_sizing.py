"""From what was measured to figures, and how long a pod may take to end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseline.deploy.manifest.grace import END_S, PRE_STOP_S, grace_period_s
from fuseline.deploy.manifest.kubernetes import DRAIN_TIMEOUT_S, FOLDER
from fuseline.deploy.manifest.kustomization import read_one
from fuseline.deploy.manifest.quantities import MIB, STEP_BYTES, bytes_of, memory_quantity
from fuseline.deploy.manifest.sizing import TAKEN_SHARE, sizes_from
from fuseline.serve import server, server_core
from fuseline.serve.process import memory_guard, stop_signals
from fuseline.serve.settings import Settings
from fuseline.serve.workers import supervisor
from tests.deploy.manifest.sample import measured


@given(st.integers(1, 2**45))
def test_memory_is_rounded_up_to_whole_steps(size: int) -> None:
    given_bytes = bytes_of(memory_quantity(size))
    assert size <= given_bytes < size + STEP_BYTES
    assert given_bytes % STEP_BYTES == 0


def test_memory_has_room_for_the_peak_and_a_full_queue() -> None:
    sizes = sizes_from(measured(peak_bytes=500 * MIB, max_queue_rows=1024, row_bytes=150_528))
    assert sizes.memory == "832Mi"
    assert bytes_of(sizes.memory) * TAKEN_SHARE >= 500 * MIB + 1024 * 150_528


def test_a_server_that_starts_as_measured_isn_t_ended_by_its_own_guard() -> None:
    assert TAKEN_SHARE <= memory_guard._TAKEN_SHARE


@pytest.mark.parametrize(("start_s", "failures"), [(0.2, 1), (3.5, 18), (120.0, 600)])
def test_a_start_may_take_ten_times_as_long(start_s: float, failures: int) -> None:
    assert sizes_from(measured(start_s=start_s)).startup_failures == failures


@pytest.mark.parametrize(("images", "rows"), [(1, 1), (1000, 20), (50_000, 1000)])
def test_rows_that_wait_are_a_tenth_of_a_second_s(images: int, rows: int) -> None:
    assert sizes_from(measured(images=images, load_s=5.0)).queued_rows == rows


def test_the_grace_period_covers_all_that_a_server_s_end_is_made_of() -> None:
    quiet = getattr(server, "_QUIET_S", None) or server_core._QUIET_S
    quiets = getattr(server, "_MOST_QUIETS", None) or server_core._MOST_QUIETS
    flush = getattr(server, "_FLUSH_S", None) or server_core._FLUSH_S
    # Beyond the drain's own time: as the server does it, and the bounds after which it is ended.
    assert quiets * quiet + flush <= END_S
    assert stop_signals._GRACE_S <= END_S
    assert supervisor._EXIT_TIMEOUT_S + stop_signals._GRACE_S <= END_S
    assert grace_period_s(DRAIN_TIMEOUT_S) == PRE_STOP_S + DRAIN_TIMEOUT_S + END_S
    assert Settings.model_fields["drain_timeout_s"].default == DRAIN_TIMEOUT_S


def test_the_deployment_has_those_figures() -> None:
    pod = read_one(FOLDER / "base" / "deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] == grace_period_s(DRAIN_TIMEOUT_S)
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == PRE_STOP_S
    # A hang is noticed first by the server, which may mend it.
    liveness = container["livenessProbe"]
    noticed_s = liveness["periodSeconds"] * liveness["failureThreshold"]
    assert noticed_s > Settings.model_fields["backend_timeout_s"].default


def test_kserve_s_pods_end_within_the_30_s_that_they_have() -> None:
    runtime = read_one(FOLDER.parent / "kserve" / "cluster-serving-runtime.yaml")
    (container,) = runtime["spec"]["containers"]
    env = {its["name"]: its["value"] for its in container["env"]}
    assert float(env["FUSELINE_DRAIN_TIMEOUT_S"]) + END_S <= 30
