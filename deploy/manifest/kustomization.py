"""Kustomizations, as far as `deploy/kubernetes` uses them, built as `kubectl kustomize` builds them.

What this can't do it refuses, so that no field is passed over; a test holds it against kubectl.
https://kubectl.docs.kubernetes.io/references/kustomize/kustomization
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

FILE_NAME = "kustomization.yaml"

_KNOWN = {
    "apiVersion",
    "kind",
    "namePrefix",
    "labels",
    "resources",
    "components",
    "configurations",
    "patches",
    "images",
}
_MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
"""Lists whose elements a strategic merge finds by a field (`x-kubernetes-patch-merge-key` in Kubernetes' OpenAPI)."""

_SELECTORS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "Service": (("spec", "selector"),),
    "Deployment": (("spec", "selector", "matchLabels"), ("spec", "template", "metadata", "labels")),
    "PodDisruptionBudget": (("spec", "selector", "matchLabels"),),
    "NetworkPolicy": (("spec", "podSelector", "matchLabels"),),
}
"""Where kinds have labels that find pods, besides their own."""


@dataclass(frozen=True)
class Kustomization:
    """One kustomization: its fields, the folder that its paths start from, and patches that no file holds."""

    folder: Path
    fields: Document
    more_patches: tuple[Document, ...] = field(default=())

    @classmethod
    def read(cls, folder: Path) -> "Kustomization":
        """Return the kustomization in `folder`."""
        return cls(folder, read_one(folder / FILE_NAME))

    def changed(self, changes: Document, patches: Iterable[Document] = ()) -> "Kustomization":
        """Return this kustomization with other fields, and with patches after its own."""
        return Kustomization(self.folder, self.fields | changes, (*self.more_patches, *patches))


def build(kustomization: Kustomization) -> list[Document]:
    """Return the documents that a kustomization makes."""
    return _named(kustomization, _patched(kustomization, []))


def read_one(path: Path) -> Document:
    """Return the one document in a file of ours."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict), f"{path} holds no mapping"
    return document


def _patched(its: Kustomization, documents: list[Document]) -> list[Document]:
    """Return `documents` with what a kustomization adds to them and changes of them, but for names and labels."""
    unknown = its.fields.keys() - _KNOWN
    assert not unknown, f"{its.folder}: {sorted(unknown)} is not understood"
    for resource in its.fields.get("resources", ()):
        path = its.folder / resource
        documents = [*documents, *(build(Kustomization.read(path)) if path.is_dir() else [read_one(path)])]
    for component in its.fields.get("components", ()):
        documents = _patched(Kustomization.read(its.folder / component), documents)
    files = [read_one(its.folder / patch["path"]) for patch in its.fields.get("patches", ())]
    for patch in (*files, *its.more_patches):
        (at,) = [n for n, document in enumerate(documents) if identity(document) == identity(patch)]
        documents[at] = merged(documents[at], patch)
    for document in documents:
        _set_images(document, its.fields.get("images", ()))
    return documents


def identity(document: Document) -> tuple[str, str]:
    """Return kind and name of a document."""
    return document["kind"], document["metadata"]["name"]


def merged(document: Any, patch: Any) -> Any:
    """Return `document` with a strategic merge patch applied; fields that are null in `patch` go."""
    if not isinstance(document, dict) or not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(document)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif name in _MERGE_KEYS and isinstance(value, list) and name in result:
            result[name] = _merged_list(result[name], value, _MERGE_KEYS[name])
        else:
            result[name] = merged(result.get(name), value)
    return result


def _merged_list(elements: list[Document], patches: list[Document], key: str) -> list[Document]:
    result, new = list(elements), []
    for patch in patches:
        at = next((n for n, element in enumerate(result) if element[key] == patch[key]), None)
        if at is None:
            new.append(copy.deepcopy(patch))
        else:
            result[at] = merged(result[at], patch)
    # As kubectl has it.
    return new + result


def _set_images(document: Document, images: Iterable[Document]) -> None:
    if document["kind"] != "Deployment":
        return
    pod = document["spec"]["template"]["spec"]
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        for image in images:
            if container["image"] == image["name"]:
                tag, digest = image.get("newTag"), image.get("digest")
                name = str(image.get("newName", image["name"]))
                container["image"] = name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")


def _named(its: Kustomization, documents: list[Document]) -> list[Document]:
    documents = copy.deepcopy(documents)
    for entry in its.fields.get("labels", ()):
        assert entry.get("includeSelectors") is True, f"{its.folder}: labels are for selectors too"
        for document in documents:
            _label(document, entry["pairs"], entry.get("fields", ()))
    prefix = its.fields.get("namePrefix", "")
    for document in documents:
        document["metadata"]["name"] = prefix + document["metadata"]["name"]
        if "scaleTargetRef" in document.get("spec", {}):
            target = document["spec"]["scaleTargetRef"]
            target["name"] = prefix + target["name"]
    return documents


def _label(document: Document, pairs: Mapping[str, str], fields: Iterable[Document]) -> None:
    paths = [("metadata", "labels"), *_SELECTORS.get(document["kind"], ())]
    paths += [tuple(its["path"].split("/")) for its in fields if its["kind"] == document["kind"]]
    for path in paths:
        place = document
        for part in path:
            place = place.setdefault(part, {})
        place.update(pairs)
    if document["kind"] == "Deployment":
        for constraint in document["spec"]["template"]["spec"].get("topologySpreadConstraints", ()):
            constraint["labelSelector"]["matchLabels"].update(pairs)
