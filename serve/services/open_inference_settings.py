"""The trace and logging extensions of the Open Inference Protocol: what can be set is set, the rest is refused."""

import reprlib
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from fuseline.protos.open_inference_pb2 import LogSettingsRequest, LogSettingsResponse
from fuseline.serve.errors import RequestError
from fuseline.serve.process.server_log import LogSettings, server_log

LogValue = bool | int | str

_LOG_FILE = "log_file"

_FIELD_OF_TYPE = {bool: "bool_param", int: "uint32_param", str: "string_param"}

_TRACE_SETTINGS = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_file": ("",),
    "trace_mode": ("triton",),
}
"""What Triton answers while nothing is traced; nothing ever is by this extension."""


def trace_settings(changes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the settings of tracing, of every model and of the server alike: it is off.

    A change to what a setting is already, or without a value, which clears it, is taken.

    Raises:
        RequestError: any other change.
    """
    for name, values in changes.items():
        present = _TRACE_SETTINGS.get(name)
        if present is None:
            raise RequestError(
                f"there is no trace setting {reprlib.repr(name)}; there are {', '.join(_TRACE_SETTINGS)}"
            )
        if values and tuple(values) != present:
            raise RequestError(
                f"{name} can't be set to {reprlib.repr(list(values))}: Fuseline traces no requests this way, so "
                "trace_level stays OFF. /metrics and the statistics extension tell the time that requests take, and "
                "OTEL_* in the server's environment asks for OpenTelemetry's traces"
            )
    return {name: list(values) for name, values in _TRACE_SETTINGS.items()}


def log_settings(changes: Mapping[str, LogValue | None]) -> dict[str, LogValue]:
    """Change the log of all processes of the server, all of `changes` or none, and return its settings then.

    Raises:
        RequestError: a setting is unknown, can't be changed, or has a value that it can't have.
    """
    log = server_log()
    settings = LogSettings() if log is None else log.settings
    if changes:
        changed = _changed(settings, changes)
        if log is None:
            raise RequestError("the log belongs to the program that this server runs in, which alone can change it")
        if changed != settings:
            log.change(changed)
        settings = changed
    return {_LOG_FILE: "", **settings.model_dump()}


def log_changes(request: LogSettingsRequest) -> dict[str, LogValue | None]:
    """Return the settings that `request` changes; None: it gives no value."""
    return {name: _value_of(setting) for name, setting in request.settings.items()}


def log_settings_response(settings: Mapping[str, LogValue]) -> LogSettingsResponse:
    """Return the message that holds `settings`."""
    value = LogSettingsResponse.SettingValue
    return LogSettingsResponse(
        settings={name: value(**{_FIELD_OF_TYPE[type(its)]: its}) for name, its in settings.items()}  # type: ignore[arg-type]
    )


def _value_of(setting: LogSettingsRequest.SettingValue) -> LogValue | None:
    field = setting.WhichOneof("parameter_choice")
    return None if field is None else getattr(setting, field)


def _changed(settings: LogSettings, changes: Mapping[str, LogValue | None]) -> LogSettings:
    if _LOG_FILE in changes:
        raise RequestError("log_file can't be changed while the server runs; its log goes to stderr")
    try:
        return LogSettings.model_validate(settings.model_dump() | dict(changes))
    except ValidationError as error:
        broken = error.errors(include_url=False)[0]
        name = broken["loc"][0]
        if broken["type"] == "extra_forbidden":
            known = (*LogSettings.model_fields, _LOG_FILE)
            raise RequestError(f"there is no log setting {reprlib.repr(name)}; there are {', '.join(known)}") from error
        rule = broken["msg"]
        raise RequestError(
            f"{name} can't be set to {reprlib.repr(broken['input'])}: {rule[:1].lower()}{rule[1:]}"
        ) from error
