import inspect
import typing
from pathlib import Path

import pytest
from pydantic import ValidationError

from fuseline.serve.backends import BACKENDS
from fuseline.serve.commands import serve_command as cli
from fuseline.serve.errors import InputError
from fuseline.serve.settings import Settings, settings_from_flags

_NAMES = ", ".join(map(repr, BACKENDS[:-1]))


def test_it_listens_on_the_loopback_unless_told_otherwise() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.http_port) == ("127.0.0.1", 8001, 8002)
    assert settings.max_message_bytes == 64 * 2**20


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_batch": 0}, "--max-batch was given 0: input should be greater than or equal to 1"),
        ({"port": 65536}, "--port was given 65536: input should be less than or equal to 65535"),
        ({"backend": "caffe"}, f"--backend was given 'caffe': input should be 'auto', {_NAMES} or {BACKENDS[-1]!r}"),
        ({"max_message_mb": 2048}, "--max-message-mb was given 2048: .*2047"),
        ({"max_delay_ms": float("nan")}, "--max-delay-ms was given nan"),
        ({"drain_timeout_s": 0.0}, "--drain-timeout-s was given 0.0: input should be greater than 0"),
        ({"max_images_per_request": 9, "max_queue_rows": 8}, r"max_images_per_request \(9\) is above max_queue_rows"),
        ({"lanes": 0}, "--lanes was given 0: input should be greater than or equal to 1"),
        ({"lanes": 17}, "--lanes was given 17: input should be less than or equal to 16"),
        ({"shared_memory": "maybe"}, "--shared-memory was given 'maybe': input should be 'auto', 'on' or 'off'"),
        ({"port": -1, "max_batch": 0}, "--port.*; --max-batch"),
    ],
)
def test_a_wrong_value_is_an_input_error_that_names_flag_value_and_rule(flags: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_from_flags(**flags)


def test_the_message_about_wrong_values_is_bounded_however_long_and_many_they_are() -> None:
    wrong = [f"{n}={'a' * 100_000}" for n in range(500)]
    with pytest.raises(InputError, match="and 1490 more$") as caught:
        settings_from_flags(set=wrong, alias=wrong, version_policy=wrong)
    assert len(str(caught.value)) < 5000
    with pytest.raises(InputError) as caught:
        settings_from_flags(set=["a"] * 500)
    assert str(caught.value).count("--set") == 1


@pytest.mark.parametrize(
    ("host", "chosen", "shares"),
    [
        ("127.0.0.1", "auto", True),
        ("127.1.2.3", "auto", True),
        ("::1", "auto", True),
        ("::ffff:127.0.0.1", "auto", True),
        ("localhost", "auto", True),
        ("0.0.0.0", "auto", False),
        ("::", "auto", False),
        ("::ffff:10.0.0.1", "auto", False),
        ("10.0.0.1", "auto", False),
        ("localhost.example.org", "auto", False),
        ("127.0.0.1.example.org", "auto", False),
        ("127.0.0.1", "off", False),
        ("0.0.0.0", "on", True),
    ],
)
def test_memory_is_shared_where_only_this_machine_can_reach_the_server_unless_told_otherwise(
    host: str, chosen: str, shares: bool
) -> None:
    reason = Settings(host=host, shared_memory=chosen).why_no_shared_memory  # type: ignore[arg-type]
    assert (reason is None) == shares
    if reason is not None:
        assert "--shared-memory" in reason
        assert (host in reason) == (chosen == "auto")


def test_flags_left_out_keep_their_defaults() -> None:
    assert settings_from_flags(port=None, decode_threads=None) == Settings()


def test_every_setting_is_a_flag_and_an_environment_variable_with_its_default() -> None:
    parameters = inspect.signature(cli.serve).parameters
    assert set(parameters) - {"context", "packages"} == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        option = typing.get_args(parameters[name].annotation)[1]
        assert option.envvar == f"FUSELINE_{name.upper()}"
        if name != "decode_threads":
            # A flag that may be given several times is None where it is not given.
            assert parameters[name].default == (None if field.default == () else field.default)


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "/home/me"}, "/home/me/.cache/fuseline/engines"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "/caches"}, "/caches/fuseline/engines"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "relative"}, "/home/me/.cache/fuseline/engines"),
        ({}, "/.cache/fuseline/engines"),
    ],
)
def test_built_engines_go_to_the_users_cache_folder_unless_told_otherwise(
    environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings().engine_cache_folder == Path(folder)
    assert settings_from_flags(engine_cache=Path("mine")).engine_cache_folder == Path("mine")


def test_a_wrong_address_to_listen_on_is_one_complaint() -> None:
    with pytest.raises(InputError, match=r"^--listen was given 'nonsense': expected HOST:PORT[^;]*$"):
        settings_from_flags(listen=["nonsense"])


def test_settings_reach_another_process_as_they_are() -> None:
    for settings in (Settings(), Settings(latency_target=50, workers=2), settings_from_flags(latency_target="50ms")):
        assert Settings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("flags", "has_console"),
    [
        ({}, True),
        ({"host": "::1"}, True),
        ({"host": "localhost"}, True),
        ({"console": False}, False),
        ({"host": "0.0.0.0"}, False),
        ({"host": "fuseline.example"}, False),
        ({"host": "0.0.0.0", "console": True}, True),
        ({"http_port": 0, "console": True}, False),
    ],
)
def test_the_page_is_on_where_only_this_machine_can_reach_it(flags: dict[str, typing.Any], has_console: bool) -> None:
    assert Settings(**flags).has_console is has_console
