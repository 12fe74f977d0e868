"""/openapi.json is true to what is served."""

import re
from typing import Any

from fuseline.serve.http.app import OPERATIONS
from fuseline.serve.http.console_routes import EVENTS
from fuseline.serve.http.http_services import HttpServices
from fuseline.serve.http.openapi import documented_path
from fuseline.serve.http.operations import routes_of
from fuseline.serve.settings import Settings
from tests.fakes.colours import encoded, noise, plain
from tests.serve.conftest import StartServer
from tests.serve.http.calls import binary_body, call, get

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """What `schema` refers to, or itself."""
    if "$ref" not in schema:
        return schema
    target: Any = document
    for name in schema["$ref"].removeprefix("#/").split("/"):
        target = target[name]
    return target


def check(document: dict[str, Any], schema: dict[str, Any], value: object, place: str = "$") -> None:
    """Hold `value` against `schema`; a member that the schema doesn't have is refused too."""
    schema = resolved(document, schema)
    names = schema.get("type", list(TYPES))
    types = tuple(TYPES[name] for name in ([names] if isinstance(names, str) else names))
    assert any(isinstance(value, of) for of in types), f"{place} is {value!r}, not {names}"
    assert not (isinstance(value, bool) and bool not in types), place
    assert value in schema.get("enum", [value]), f"{place} is {value!r}"
    if isinstance(value, dict) and ("properties" in schema or "additionalProperties" in schema):
        properties = schema.get("properties", {})
        for name in schema.get("required", []):
            assert name in value, f"{place} has no {name}"
        for name, member in value.items():
            assert properties == {} or name in properties or "additionalProperties" in schema, f"{place}.{name}"
            of_member = properties.get(name, schema.get("additionalProperties", {}))
            check(document, of_member, member, f"{place}.{name}")
    if isinstance(value, list):
        for number, item in enumerate(value):
            check(document, schema.get("items", {}), item, f"{place}[{number}]")


async def test_every_route_is_documented_and_every_documented_path_is_a_route(start_http: StartServer) -> None:
    served = await start_http()
    document = (await get(served, "/openapi.json")).json
    assert document["openapi"].startswith("3.1")

    async def no_metrics() -> bytes:
        return b""

    routes = routes_of(OPERATIONS, HttpServices(None, None, no_metrics, lambda: True, Settings()))
    assert set(document["paths"]) == {documented_path(route.path) for route in routes}
    for path, methods in document["paths"].items():
        named = re.sub(r"\{\w+\}", "x", path)
        answer = await call(served, "DELETE", named)
        assert answer.status == 405, path
        assert {method.upper() for method in methods} == set(answer.headers["allow"].split(", ")) - {"HEAD"}, path
        for operation in methods.values():
            in_path = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
            assert in_path == set(re.findall(r"\{(\w+)\}", path))


async def test_real_answers_are_as_their_schemas_say(start_http: StartServer) -> None:
    served = await start_http()
    document = (await get(served, "/openapi.json")).json
    image = encoded(plain("red"))
    values = {"model": "colours", "version": "1", "index": "0", "file": "index.html"}
    checked = 0
    for operation in OPERATIONS:
        for template in operation.paths:
            if template == EVENTS:
                continue  # which has no end
            path = re.sub(r"\{(\w+)(:\w+)?\}", lambda match: values.get(match[1], "x"), template)
            body, headers = b"", {}
            if path.endswith("/infer"):
                body, headers = binary_body(noise(2), id="1")
            elif path.endswith("/classify"):
                body, path = image, f"{path}?top_k=2&return_logits=1&id=1"
            answer = await call(served, operation.method, path, body, headers)
            if re.search("sharedmemory|trace|logging|load$|report$", path):
                continue
            assert answer.status == 200, path
            described = document["paths"][documented_path(template)][operation.method.lower()]
            content = described["responses"]["200"].get("content")
            if content is None:
                assert answer.body == b""
                continue
            media_type = answer.headers["content-type"].partition(";")[0]
            assert media_type in content, path
            if media_type == "application/json":
                check(document, content[media_type]["schema"], answer.json)
                checked += 1
    assert checked >= 15
    refused = await get(served, "/v2/models/cats")
    reference = document["paths"]["/v2/models/{model}"]["get"]["responses"]["404"]
    schema = resolved(document, reference)["content"]["application/json"]["schema"]
    check(document, schema, refused.json)


async def test_the_root_says_what_is_there(start_http: StartServer) -> None:
    served = await start_http()
    root = (await get(served, "/")).json
    assert f"http://127.0.0.1:{served.server.http_port}/v1/classify" in root["classify"]
    for name in ("models", "open_inference_protocol", "openapi", "metrics", "live", "ready"):
        assert (await get(served, root[name])).status == 200
