"""A naming composed from a checkpoint's own names, where no row of `SCHEMES` has them.

It reads names of known parts in any combination: `stem.0`, `blocks.3.conv_a`, `blocks.3.skip`, `head`. What repeats in
them tells the blocks, and `roles_in` the parts of a block. Where something isn't told, above all whether blocks without
any projection have shortcuts at all, the names are refused with the reason.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from fuseline.export.recognition.naming.block_lists import BlockList, Layer, block_lists, layers_of
from fuseline.export.recognition.naming.block_roles import BlockRoles, described, roles_in
from fuseline.export.recognition.naming.name_order import in_order, index_of, leaves_room
from fuseline.export.recognition.naming.naming_schemes import COMPOSED, NamingScheme, ProjectionInput
from fuseline.export.recognition.naming.placement import DEEP_STEM, Placement

_STAGE = re.compile(r"(layer|stage|stack)_?N|N_?(layer|stage|stack)", re.IGNORECASE)
_HEADS = ("fc", "linear", "classifier", "head")


@dataclass(frozen=True)
class Composition:
    """What names by themselves tell about a checkpoint."""

    placements: tuple[Placement, ...]
    """Readings in which every layer is a part of the network; shapes may still contradict them."""
    reason: str | None = None
    """A sentence on what the nearest reading can't tell, where there is no placement."""


def compose(weights: Mapping[str, Tensor]) -> Composition:
    """Return every reading of the names of `weights` as a ResNet's."""
    placements: list[Placement] = []
    reasons: list[tuple[tuple[bool, int, int], str]] = []
    for blocks in block_lists(layers_of(weights)):
        roles = roles_in(blocks)
        found = roles if isinstance(roles, str) else _placements(blocks, roles)
        if isinstance(found, str):
            # Stages and blocks tell more than a list of blocks, many blocks more than few, whole ones more than parts.
            reasons.append(((not blocks.nested, -len(blocks.blocks), len(blocks.pattern)), found))
        else:
            placements += found
    return Composition(tuple(placements), min(reasons)[1] if reasons and not placements else None)


def _placements(blocks: BlockList, roles: BlockRoles) -> list[Placement] | str:
    staged = _staged(blocks, roles)
    if isinstance(staged, str):
        return staged
    outer = _outer_modules(blocks, roles)
    if isinstance(outer, str):
        return outer
    modules = dict(outer)
    for (stage, number), block in staged.items():
        ours = f"layer{stage + 1}.{number}"
        for k, conv in enumerate(roles.convs, start=1):
            modules[f"{ours}.conv{k}"] = block[conv].name
        for k, norm in enumerate(roles.norms, start=1):
            modules[f"{ours}.bn{k}"] = block[norm].name
        for k, part in enumerate(roles.shortcut):
            if part in block:
                place = "downsample" if roles.family == "pre-activation" else f"downsample.{k}"
                modules[f"{ours}.{place}"] = block[part].name
    deep = "conv1.0" in modules
    places = frozenset(staged)
    if roles.family == "residual":
        return [Placement(_scheme(COMPOSED[0], blocks, roles, modules, "activated"), places, modules, deep)]
    if len(roles.shortcut) > 1:
        return f"the pre-activation blocks `{blocks.pattern}` have a BatchNorm in their shortcuts"
    inputs: tuple[tuple[str, ProjectionInput], ...] = ((COMPOSED[1], "activated"), (COMPOSED[2], "raw"))
    return [
        Placement(_scheme(name, blocks, roles, modules, takes), places, modules, deep)
        for name, takes in inputs[: 2 if roles.shortcut else 1]
    ]


def _scheme(
    name: str, blocks: BlockList, roles: BlockRoles, modules: Mapping[str, str], takes: ProjectionInput
) -> NamingScheme:
    parts = ", ".join(f"`{part}`" for part in (*roles.convs, *roles.shortcut[:1]))
    return NamingScheme(
        name=name,
        description=f"hand-written ResNets with blocks `{blocks.pattern}` of {parts}",
        family=roles.family,
        block=blocks.pattern,
        final_norm=modules.get("bn"),
        classifier=_container_of(modules["fc"]),
        projection_input=takes,
    )


def _container_of(classifier: str) -> str:
    """Return `head` for `head.1`; an assumption is made later about what comes before it in the Sequential."""
    container = classifier.rpartition(".")[0]
    return container if container and index_of(classifier) else classifier


def _staged(blocks: BlockList, roles: BlockRoles) -> dict[tuple[int, int], Mapping[str, Layer]] | str:
    """Return the blocks by (stage, block), or why that can't be told.

    In a list of blocks, a stage begins where the width doubles, or changes at all if the list is one of named stages.
    """
    projecting = {place for place, block in blocks.blocks.items() if roles.shortcut[:1] and roles.shortcut[0] in block}
    if (fault := _unprojected(blocks, roles, projecting)) is not None:
        return fault
    if blocks.nested:
        return dict(blocks.blocks)
    staged: dict[tuple[int, int], Mapping[str, Layer]] = {}
    stage, number, width = 0, 0, None
    named_as_stages = _STAGE.search(blocks.pattern) is not None
    for place, block in blocks.blocks.items():
        out = block[roles.convs[-1]].shape[0]
        begins = width is not None and out != width
        if (begins and out != 2 * (width or 0) and not named_as_stages) or (
            width is not None and not begins and place in projecting
        ):
            return (
                f"block {place[1]} of `{blocks.pattern}`, counted from 0, has a projection and gives {out} channels "
                f"after {width}: stages of a list of blocks are taken to begin where the width doubles, and whether "
                "this block strides nothing tells"
            )
        if begins:
            stage, number = stage + 1, 0
        staged[stage, number] = block
        number, width = number + 1, out
    return staged


def _unprojected(blocks: BlockList, roles: BlockRoles, projecting: set[tuple[int, int]]) -> str | None:
    """Return a sentence on a block that changes the width without a projection, where option A isn't customary."""
    widths = {
        place: (block[roles.convs[0]].shape[1], block[roles.convs[-1]].shape[0])
        for place, block in blocks.blocks.items()
    }
    bare = [place for place, (taken, made) in widths.items() if taken != made and place not in projecting]
    if not bare:
        return None
    first = widths[0, 0][0]
    outs = [made for (_, block), (_, made) in widths.items() if block == 0]
    if not projecting and len(roles.convs) == 2 and outs == [first, 2 * first, 4 * first]:
        return None
    taken, made = widths[bare[0]]
    stage = f" of stage {bare[0][0]}" if blocks.nested else ""
    return (
        f"block {bare[0][1]}{stage} in `{blocks.pattern}`, counted from 0, goes from {taken} to {made} channels "
        "without a convolution in a shortcut: whether it has a shortcut no tensor tells, nor what that does. Shortcuts "
        "without parameters are known only of three stages that double, as He et al. have them for CIFAR-10"
    )


def _outer_modules(blocks: BlockList, roles: BlockRoles) -> dict[str, str] | str:
    """Return our module name -> the checkpoint's for stem, last BatchNorm and classifier, or what can't be told."""
    outside = blocks.outside
    linear = [layer for layer in outside if layer.kind == "linear"]
    convs = [layer for layer in outside if layer.kind == "convolution"]
    norms = [layer for layer in outside if layer.kind == "batchnorm"]
    if odd := [layer for layer in outside if layer.kind == "other"]:
        return f"beside the blocks `{blocks.pattern}` there is {described(odd[0])}"
    if not linear and (heads := [conv for conv in convs if _is_conv_head(conv)]):
        linear, convs = heads, [conv for conv in convs if conv not in heads]
    if len(linear) > 1:
        named = ", ".join(layer.name for layer in linear[:4])
        return f"there are {len(linear)} linear layers ({named}); one classifier was expected"
    if len(convs) not in (1, 3):
        named = ", ".join(conv.name for conv in convs[:4])
        return (
            f"there are {len(convs)} convolutions beside the blocks `{blocks.pattern}`"
            f"{f' ({named})' if named else ''}; one of the stem was expected, or three, and what stands between them "
            "no tensor tells"
        )
    final = roles.family == "pre-activation"
    wanted = 0 if not roles.norms else len(convs) - 1 if final else len(convs)
    stem = _stem(convs, norms[:wanted] if final else norms, wanted)
    if stem is None or len(norms) > wanted + final:
        named = ", ".join(layer.name for layer in (*convs, *norms)[:6])
        return f"beside the blocks `{blocks.pattern}` there are {named}, which is no stem that names and shapes tell"
    last = {"bn": norms[-1].name} if final and len(norms) > wanted else {}
    return stem | last | {"fc": linear[0].name if linear else "fc"}


def _stem(convs: list[Layer], norms: list[Layer], wanted: int) -> dict[str, str] | None:
    ordered = in_order([conv.alias for conv in convs])
    if ordered is None or len(norms) != wanted:
        return None
    by_alias = {layer.alias: layer for layer in (*convs, *norms)}
    names = list(ordered.names)
    if any(after.shape[1] != before.shape[0] for before, after in pairwise(by_alias[name] for name in names)):
        return None
    if wanted:
        norm_order = in_order([norm.alias for norm in norms])
        if norm_order is None:
            return None
        for conv, norm in zip(ordered.names, norm_order.names, strict=False):
            if by_alias[norm].shape != by_alias[conv].shape[:1]:
                return None
        names = [name for pair in zip(ordered.names, norm_order.names, strict=False) for name in pair]
        names += ordered.names[len(norm_order.names) :]
    if not leaves_room(names, {norm.alias for norm in norms}):
        return None
    modules: tuple[str, ...] = DEEP_STEM if len(convs) == 3 else ("conv1", "bn1")
    if not wanted:
        modules = modules[::2]
    return {module: by_alias[name].name for module, name in zip(modules, names, strict=False)}


def _is_conv_head(conv: Layer) -> bool:
    return conv.shape[2:] == (1, 1) and conv.biased and any(word in conv.alias for word in _HEADS)
