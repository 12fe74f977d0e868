"""JSON Schemas (of OpenAPI 3.1) of what is taken and answered over HTTP."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Schema = dict[str, Any]


def json_content(schema: Schema) -> dict[str, Any]:
    """Return the content of a JSON body."""
    return {"application/json": {"schema": schema}}


def binary_content(media_type: str = "application/octet-stream") -> dict[str, Any]:
    """Return the content of a body of bytes."""
    return {media_type: {}}


def array_of(items: Schema) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items}


def object_schema(properties: dict[str, Schema], *, required: Sequence[str] = ()) -> Schema:
    """Return the schema of an object."""
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


def schema_of(message: type[Message]) -> Schema:
    """Return the schema of the JSON that `message_json.members_of` makes of messages of this class."""
    return _of_message(message.DESCRIPTOR)


def _of_message(message: Any) -> Schema:
    return object_schema(
        {field.name: _of_field(field) for field in message.fields},
        required=[field.name for field in message.fields if not field.has_presence],
    )


def _of_field(field: Any) -> Schema:
    of_message = field.message_type
    if of_message is not None and of_message.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _of_value(of_message.fields_by_name["value"])}
    return array_of(_of_value(field)) if field.is_repeated else _of_value(field)


def _of_value(field: Any) -> Schema:
    if field.message_type is not None:
        return _of_message(field.message_type)
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    return dict(_SCALARS[field.cpp_type])


_SCALARS: dict[int, Schema] = {
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer"},
    FieldDescriptor.CPPTYPE_INT64: {"type": "integer"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "integer", "minimum": 0},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
}

ERROR: Schema = object_schema({"error": {"type": "string"}}, required=("error",))

_PARAMETERS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["boolean", "number", "string"]},
}
_SHAPE = array_of({"type": "integer"})
_TENSOR: dict[str, Schema] = {
    "name": {"type": "string"},
    "datatype": {"type": "string"},
    "shape": _SHAPE,
    "parameters": _PARAMETERS,
    "data": {"type": "array", "description": "Elements, row-major: flat, or nested as the shape says."},
}

INFER_REQUEST: Schema = object_schema(
    {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": array_of(object_schema(_TENSOR, required=("name", "datatype", "shape"))),
        "outputs": array_of(object_schema({"name": {"type": "string"}, "parameters": _PARAMETERS}, required=("name",))),
    },
    required=("inputs",),
)

INFER_RESPONSE: Schema = object_schema(
    {
        "id": {"type": "string"},
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "parameters": _PARAMETERS,
        "outputs": array_of(object_schema(_TENSOR, required=("name", "datatype", "shape"))),
    },
    required=("model_name", "model_version", "outputs"),
)
