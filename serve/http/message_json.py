"""Protobuf messages as the JSON that Triton makes of them: the fields' own names, enums by name, integers as numbers.

protobuf's own JSON mapping differs in the last: it writes 64-bit integers as strings, which clients don't expect here.
"""

from typing import Any

from google.protobuf.message import Message


def members_of(message: Message) -> dict[str, Any]:
    """Return the members of `message`: every field, but those with presence only where they are set."""
    return {
        field.name: _value_of(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def scalar_of(message: Any, oneof: str) -> Any:
    """Return the value of the field that is set of a message's `oneof`; None where none is."""
    name = message.WhichOneof(oneof)
    return None if name is None else getattr(message, name)


def _value_of(field: Any, value: Any) -> Any:
    message_type = field.message_type
    if message_type is not None and message_type.GetOptions().map_entry:
        of_entry = message_type.fields_by_name["value"]
        return {key: _plain(of_entry, entry) for key, entry in value.items()}
    return [_plain(field, item) for item in value] if field.is_repeated else _plain(field, value)


def _plain(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return members_of(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value
