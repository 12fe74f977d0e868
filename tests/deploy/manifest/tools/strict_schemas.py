"""Holds documents against published schemas, strictly: run with build/manifest-tools' Python.

    strict_schemas.py KUBERNETES_VERSION...

For each line of stdin, a JSON list of documents, it prints a line of JSON: what is wrong, and the versions of the
schemas. What a schema doesn't know is wrong.
"""

import json
import sys
from importlib.metadata import version

import kubernetes_validate
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

CUSTOM = {"keda.sh/v1alpha1/ScaledObject": ScaledObject, "monitoring.coreos.com/v1/ServiceMonitor": ServiceMonitor}


def problems_of(document, versions):
    kind = f"{document['apiVersion']}/{document['kind']}"
    if kind in CUSTOM:
        try:
            read = CUSTOM[kind].model_validate(document).model_dump(by_alias=True, exclude_unset=True, mode="json")
        except ValueError as error:
            return [f"{kind}: {error}"]
        return [] if read == document else [f"{kind}: a field is not known; of {document} it reads {read}"]
    found = []
    for its in versions:
        try:
            kubernetes_validate.validate(document, its, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            found.append(f"{kind} in Kubernetes {its}: {error}")
    return found


packages = ("cloudcoil-models-keda", "cloudcoil-models-prometheus-operator", "kubernetes-validate")
versions = {name: version(name) for name in packages}
for line in sys.stdin:
    problems = [problem for document in json.loads(line) for problem in problems_of(document, sys.argv[1:])]
    print(json.dumps({"problems": problems, "versions": versions}), flush=True)
