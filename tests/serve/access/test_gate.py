"""Who is let in, as tokens come, expire and go."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fuseline.serve.access import gate as gate_module
from fuseline.serve.access.gate import Gate, Identity
from fuseline.serve.access.roles import Role
from fuseline.serve.access.token_file import add_line, new_token, token_line
from fuseline.serve.errors import ForbiddenError, InputError, UnauthenticatedError
from tests.fakes.clock import Clock
from tests.serve.access.token_files import TokenFile, written_token_file


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return written_token_file(tmp_path)


def test_each_token_of_the_file_tells_who_comes_and_the_scheme_is_read_in_any_case(file: TokenFile) -> None:
    gate = Gate(file.path)
    assert gate.identify([f"Bearer {file.infer}"]) == Identity("shop", Role.INFER)
    assert gate.identify([f"bearer  {file.admin} "]) == Identity("deployer", Role.ADMIN)
    assert Identity("shop", Role.INFER).client == "token:shop"


def test_whoever_has_no_known_token_is_refused_and_counted_and_no_token_is_told(file: TokenFile) -> None:
    counted: list[str] = []
    gate = Gate(file.path, counted.append)
    stranger = new_token()
    refused = (
        [],
        [f"Bearer {stranger}"],
        [f"Basic {file.infer}"],
        [file.infer],
        ["Bearer"],
        [f"Bearer {file.infer}", f"Bearer {file.infer}"],
        [f"Bearer {file.infer}x"],
        ["Bearer " + "x" * 10_000],
    )
    for authorization in refused:
        with pytest.raises(UnauthenticatedError) as caught:
            gate.identify(list(authorization))
        assert stranger not in str(caught.value)
        assert file.infer not in str(caught.value)
        assert len(str(caught.value)) < 300
    assert counted == ["unauthenticated"] * len(refused)


def test_a_token_is_compared_with_every_line_whichever_it_is(file: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    class Hmac:
        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            compared.append(other)
            return one == other

    monkeypatch.setattr(gate_module, "hmac", Hmac)
    gate = Gate(file.path)
    for token in (file.infer, file.admin):
        gate.identify([f"Bearer {token}"])
    with pytest.raises(UnauthenticatedError):
        gate.identify([f"Bearer {new_token()}"])
    assert len(compared) == 3 * 2
    assert compared[:2] == compared[2:4] == compared[4:]


def test_an_admin_may_all_and_infer_may_not_change_the_server(file: TokenFile) -> None:
    counted: list[str] = []
    gate = Gate(file.path, counted.append)
    shop, deployer = Identity("shop", Role.INFER), Identity("deployer", Role.ADMIN)
    for identity, role in ((shop, Role.INFER), (shop, None), (deployer, Role.INFER), (deployer, Role.ADMIN)):
        gate.check(identity, role, "it")
    assert counted == []
    with pytest.raises(ForbiddenError, match="LogSettings needs .* role admin; that of 'shop' has .* infer"):
        gate.check(shop, Role.ADMIN, "LogSettings")
    assert counted == ["forbidden"]


@pytest.fixture
def guest(tmp_path: Path) -> tuple[Path, str]:
    """A file with one token, which expires at midnight, and that token."""
    token, path = new_token(), tmp_path / "guests"
    add_line(path, token_line(token, name="guest", role="infer", expires=datetime(2027, 1, 31, tzinfo=UTC)))
    return path, f"Bearer {token}"


BEFORE_MIDNIGHT = datetime(2027, 1, 30, 23, 59, 59, tzinfo=UTC).timestamp()
EXPIRED = "of 'guest' expired at 2027-01-31T00:00:00"


@pytest.mark.parametrize("state", ["as it was", "broken", "gone"])
def test_a_token_ends_when_it_expires_though_the_file_is_not_read_again(guest: tuple[Path, str], state: str) -> None:
    path, bearer = guest
    clock, now = Clock(), Clock(BEFORE_MIDNIGHT)
    gate = Gate(path, clock=clock, now=now)
    gate.identify([bearer])
    if state == "broken":
        path.write_text("guest")
        clock.now += 2
    elif state == "gone":
        path.unlink()
        clock.now += 2
    else:
        # Less than a second: it is not looked at.
        path.write_text(f"{token_line(bearer.split()[1], name='guest', role='infer')}\n")
        clock.now += 0.9
    now.now += 1
    with pytest.raises(UnauthenticatedError, match=EXPIRED):
        gate.identify([bearer])


def test_a_token_that_has_expired_stays_so_though_the_wall_clock_is_set_back(
    guest: tuple[Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    path, bearer = guest
    clock, now = Clock(), Clock(BEFORE_MIDNIGHT)
    gate = Gate(path, clock=clock, now=now)
    # Set back before it expires: time goes on from what it was.
    now.now -= 86_400
    clock.now += 0.5
    for _ in range(2):
        gate.identify([bearer])
    assert caplog.text.count("the wall clock was set back by 86400 s") == 1
    clock.now += 0.5
    with pytest.raises(UnauthenticatedError, match=EXPIRED):
        gate.identify([bearer])
    # Right again, and set back a second time.
    now.now += 86_401
    with pytest.raises(UnauthenticatedError, match=EXPIRED):
        gate.identify([bearer])
    now.now -= 3600
    with pytest.raises(UnauthenticatedError, match=EXPIRED):
        gate.identify([bearer])
    assert caplog.text.count("the wall clock was set back by") == 2


def test_a_wall_clock_that_is_set_forward_or_runs_on_while_the_machine_sleeps_counts(guest: tuple[Path, str]) -> None:
    path, bearer = guest
    clock, now = Clock(), Clock(BEFORE_MIDNIGHT - 86_400)
    gate = Gate(path, clock=clock, now=now)
    gate.identify([bearer])
    now.now += 86_401
    with pytest.raises(UnauthenticatedError, match=EXPIRED):
        gate.identify([bearer])


def test_a_changed_file_holds_within_a_second_without_a_restart(file: TokenFile) -> None:
    clock, following = Clock(), new_token()
    gate = Gate(file.path, clock=clock)
    add_line(file.path, token_line(following, name="shop", role="infer"))
    clock.now += 1
    # For a while both are taken: the client changes over when it likes.
    assert gate.identify([f"Bearer {following}"]) == gate.identify([f"Bearer {file.infer}"])
    file.path.write_text("".join(file.path.read_text().splitlines(keepends=True)[1:]))
    clock.now += 1
    gate.identify([f"Bearer {following}"])
    with pytest.raises(UnauthenticatedError, match="withdrawn"):
        gate.identify([f"Bearer {file.infer}"])


@pytest.mark.parametrize("broken", ["shop infer sha256:0", "", None])
def test_a_broken_or_missing_file_leaves_the_old_tokens_and_is_logged_and_counted_once(
    file: TokenFile, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    clock, counted = Clock(), list[str]()
    gate = Gate(file.path, counted.append, clock=clock)
    sound = file.path.read_text()
    if broken is None:
        file.path.unlink()
    else:
        file.path.write_text(broken)
    for _ in range(3):
        clock.now += 1
        gate.identify([f"Bearer {file.infer}"])
    assert counted == ["token_file_broken"]
    assert caplog.text.count("the tokens that were known before are still taken") == 1
    # It is mended, with other tokens than before: those hold.
    following = new_token()
    file.path.write_text(f"{token_line(following, name='shop', role='infer')}\n")
    clock.now += 1
    gate.identify([f"Bearer {following}"])
    with pytest.raises(UnauthenticatedError):
        gate.identify([f"Bearer {file.infer}"])
    file.path.write_text(sound)
    clock.now += 1
    gate.identify([f"Bearer {file.infer}"])
    assert counted == ["token_file_broken", "unauthenticated"]


def test_the_log_of_a_change_holds_no_token_and_no_hash(file: TokenFile, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    clock = Clock()
    gate = Gate(file.path, clock=clock)
    add_line(file.path, token_line(new_token(), name="shop", role="infer"))
    clock.now += 1
    gate.identify([f"Bearer {file.infer}"])
    assert "has changed; it has 3 tokens" in caplog.text
    assert "fuseline_" not in caplog.text
    assert "sha256" not in caplog.text


def test_a_server_does_not_start_with_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "hashes").write_text("shop")
    with pytest.raises(InputError, match="line 1"):
        Gate(tmp_path / "hashes")
