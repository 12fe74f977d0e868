"""Settings that may differ from model to model: `serving` in a manifest, and `--set MODEL.SETTING=VALUE`."""

import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fuseline.serve.errors import InputError
from fuseline.serve.model_package import MANIFEST_NAME, Manifest
from fuseline.serve.settings import PER_MODEL, Settings, model_setting_from_text


def settings_of_model(settings: Settings, manifest: Manifest) -> Settings:
    """Return `settings` as they are for the model of `manifest`, whose name is the one that requests use.

    `--set` wins over the manifest's `serving`, and that over the server's flags.

    Raises:
        InputError: `serving` has what is no setting of a model, or a value breaks a rule; the message says which are.
    """
    name = manifest.name
    settings = _changed(settings, manifest.serving, f"`serving` in {MANIFEST_NAME} of {name}: ")
    chosen = [model_setting_from_text(text) for text in settings.set]
    return _changed(settings, {setting: value for model, setting, value in chosen if model == name}, f"--set {name}.")


def check_model_settings(settings: Settings) -> None:
    """Raise `InputError` if a `--set` breaks a rule of its setting, whatever model it is for."""
    for text in settings.set:
        model, setting, value = model_setting_from_text(text)
        _changed(settings, {setting: value}, f"--set {model}.")


def _changed(settings: Settings, changes: Mapping[str, Any], where: str) -> Settings:
    if not changes:
        return settings
    for setting, value in changes.items():
        if setting not in PER_MODEL:
            raise InputError(
                f"{where}{reprlib.repr(setting)} is no setting of a model; there are {', '.join(PER_MODEL)}"
            )
        # None of them is a switch, and a number may not be one.
        if isinstance(value, bool):
            raise InputError(
                f"{where}: {setting} was given {str(value).lower()}, which is no value of a model's setting"
            )
    try:
        return Settings.model_validate(settings.model_dump() | dict(changes))
    except ValidationError as error:
        broken = error.errors(include_url=False)[0]
        rule = broken["msg"].removeprefix("Value error, ")
        came = f" was given {reprlib.repr(broken['input'])}" if broken["loc"] else ""
        setting = ".".join(map(str, broken["loc"])) or ", ".join(changes)
        raise InputError(f"{where}{setting}{came}: {rule[:1].lower()}{rule[1:]}") from error
