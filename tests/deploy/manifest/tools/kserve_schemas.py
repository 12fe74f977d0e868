"""Holds documents against KServe's own types, strictly: run with .venv-kserve's Python.

For each line of stdin, a JSON list of documents, it prints a line of JSON: what is wrong, and KServe's version.
The types are made of KServe's published OpenAPI document.
"""

import json
import sys
from importlib.metadata import version

from kserve import models
from kubernetes import client

TYPES = {
    "serving.kserve.io/v1alpha1/ClusterServingRuntime": "V1alpha1ClusterServingRuntime",
    "serving.kserve.io/v1beta1/InferenceService": "V1beta1InferenceService",
}


def lost(ours, kind, path):
    """What of `ours` the type `kind` has no place for."""
    # KServe writes list[V1Pod] and dict(str, str), Kubernetes' client List[V1Pod] and Dict[str, str].
    kind = kind.replace("List[", "list[").replace("Dict[", "dict[").replace("dict(", "dict[").replace(")", "]")
    if kind.startswith("list["):
        if not isinstance(ours, list):
            return [f"{path} is no list"]
        return [it for n, one in enumerate(ours) for it in lost(one, kind[5:-1], f"{path}[{n}]")]
    if kind.startswith("dict["):
        its = kind[5:-1].partition(", ")[2]
        return [it for name, one in ours.items() for it in lost(one, its, f"{path}.{name}")]
    plain = {"str": str, "bool": bool, "int": int, "object": object, "ResourceQuantity": str}
    if kind in plain:
        return [] if isinstance(ours, plain[kind]) else [f"{path} is {type(ours).__name__}, not {kind}"]
    made = getattr(models, kind, None) or getattr(client, kind, None)
    if made is None:
        return [f"{path}: the type {kind} is not known"]
    names = {theirs: name for name, theirs in made.attribute_map.items()}
    found = [f"{path}.{name} is not known" for name in ours if name not in names]
    try:
        # It raises where what is required is missing.
        made(**{names[name]: value for name, value in ours.items() if name in names})
    except ValueError as error:
        found.append(f"{path}: {error}")
    for name, value in ours.items():
        if name in names:
            found += lost(value, made.openapi_types[names[name]], f"{path}.{name}")
    return found


for line in sys.stdin:
    problems = []
    for document in json.loads(line):
        kind = f"{document['apiVersion']}/{document['kind']}"
        problems += lost(document, TYPES[kind], document["kind"]) if kind in TYPES else [f"{kind} is not known"]
    print(json.dumps({"problems": problems, "version": version("kserve")}), flush=True)
