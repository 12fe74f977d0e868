"""Assumptions settled by the user's images: input size, classes, and which of the values in use fit."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fuseline.export.assumptions.alternatives import Findings, Witnesses
from fuseline.export.assumptions.assumptions import check_assumed, is_by_flag, settled
from fuseline.export.assumptions.training_statistics import USUAL_MISFIT
from fuseline.export.assumptions.trials import same_logits
from fuseline.export.checkpoint.checkpoint import Checkpoint
from fuseline.export.class_folders import KEY as FOLDERS
from fuseline.export.class_folders import ClassFolders, class_folders
from fuseline.export.eager import eager_logits
from fuseline.export.facts.model_facts import SIZE, TASK, ModelFacts, size_assumption, with_input_size
from fuseline.export.network import TrainedNetwork
from fuseline.export.progress import Progress
from fuseline.export.recognition.architectures import Recognised, with_values
from fuseline.export.sample import ImageFolder, generated_sample
from fuseline.serve.errors import InputError, VerificationError
from fuseline.serve.model_package import Assumption

_PROBE_IMAGES = 8
_LEAST_JUDGED = 20
"""Smallest number of labelled images that can tell a poor network from chance."""
_DEVIATIONS = 3.0


@dataclass(frozen=True, slots=True)
class Settled:
    """What is known once the assumptions were tried on the images."""

    facts: ModelFacts
    truth: NDArray[np.int64] | None
    """Class of each image, (n,); None if nothing tells it."""
    doubts: tuple[str, ...]
    """Sentences that the user should know."""
    findings: Findings | None
    """What the witnesses say; None where none can speak."""


def settle(
    trained: TrainedNetwork,
    facts: ModelFacts,
    checkpoint: Checkpoint,
    images: ImageFolder | None,
    assumed: Mapping[str, str],
    command: str,
    progress: Progress,
) -> Settled:
    """Try everything that is still open in `facts` on the images.

    Args:
        trained: the network as it was assumed to be.
        facts: facts with all assumptions; those that a flag or the file settled are not tried.
        checkpoint: what `facts` came from.
        images: the user's images; None: there are none, and only what can't matter is settled.
        assumed: what `--assume` says.
        command: the user's command line; the error's message repeats it with the flag that takes what fits better.
        progress: where each step is reported.

    Raises:
        VerificationError: another value in use fits clearly better than the assumed one; the message has the figures of
            both, and the command that takes it.
        InputError: `assumed` has a key or value that this network hasn't; or it has `folders=classes`, and the folders
            of the images can't be the classes.
    """
    check_assumed({key: value for key, value in assumed.items() if key != FOLDERS}, facts.assumptions)
    if images is None:
        if FOLDERS in assumed:
            raise InputError(
                f"--assume {FOLDERS}={assumed[FOLDERS]} says what the folders of --images DIR are; give it"
            )
        return Settled(_without_what_cannot_matter(trained, facts), None, (), None)
    folders, why_not = _folders(images, facts, assumed)
    doubts = [f"the folders of {images.folder}: {why_not}"] if why_not else []
    if folders is not None:
        doubts += folders.doubts
        facts = replace(facts, labels=folders.labels or facts.labels, labels_known=True)
    if folders is not None or FOLDERS in assumed:
        facts = replace(facts, assumptions=(*facts.assumptions, _folders_assumption(folders, assumed)))
    truth = None if folders is None else folders.truth
    witnesses = Witnesses(trained, facts, checkpoint, images, truth)
    facts = _with_shared_size(witnesses)
    with progress.step("Asking the images about what was assumed") as step:
        findings = replace(witnesses, facts=facts).ask(step.advance_to)
        came = f"{len(findings.tried)} alternatives tried: {findings.best.described}" if findings else "they can't tell"
        step.done(f"{came}; input {facts.described_input}")
    if findings is not None:
        if findings.changes:
            raise VerificationError(_fits_better(findings, command))
        facts = replace(facts, assumptions=settled(facts.assumptions, findings.settled))
        doubts += findings.leanings
        if findings.best.misfit is not None and findings.best.misfit > USUAL_MISFIT:
            doubts += _doubts_of_flags(replace(witnesses, facts=facts, doubt_flags=True))
    enlarged = images.enlarged_for(facts.input)
    if 2 * enlarged > len(images.files) and not any(a.key == SIZE and is_by_flag(a) for a in facts.assumptions):
        doubts.append(
            f"{enlarged} of {len(images.files)} images are smaller than the input, {facts.described_input}, and were "
            "enlarged; if the training took them as they are, --input-size N says so"
        )
    return Settled(facts, truth, tuple(doubts), findings)


def check_accuracy(
    logits: NDArray[np.float32],
    truth: NDArray[np.int64],
    assumptions: Sequence[Assumption],
    doubts: Sequence[str] = (),
) -> tuple[Assumption, ...]:
    """Return `assumptions`, settled that the folders are the classes if enough of the logits are right.

    Args:
        logits: eager PyTorch's (n, classes).
        truth: the folders' class of each image, (n,).
        doubts: sentences for the error's message.

    Raises:
        VerificationError: no more images are right than by guessing, and no flag says that this is as it should be.
    """
    right = float((logits.argmax(1) == truth).mean())
    chance = max(1 / logits.shape[1], float(np.bincount(truth).max() / len(truth)))
    found = f"{right:.1%} of {len(truth)} images are of their folder's class"
    if right > chance + _DEVIATIONS * np.sqrt(chance * (1 - chance) / len(truth)):
        return settled(assumptions, {FOLDERS: f"images: {found}", TASK: "images: each lies in the folder of one class"})
    if len(truth) < _LEAST_JUDGED or any(a.key == FOLDERS and is_by_flag(a) for a in assumptions):
        return tuple(assumptions)
    raise VerificationError(
        f"only {found}, and guessing gets {chance:.1%}: the network isn't used as it was trained, or the folders' "
        f"sorted names aren't its classes, so nothing was written. {''.join(f'{doubt}. ' for doubt in doubts)}"
        "--labels FILE gives the classes' names in order, --mean and --std, --input-size or --assume KEY=VALUE what "
        "the training had; --assume folders=other leaves the folders out, --assume folders=classes takes them, and "
        "this accuracy, as they are"
    )


def _folders(images: ImageFolder, facts: ModelFacts, assumed: Mapping[str, str]) -> tuple[ClassFolders | None, str]:
    flag = assumed.get(FOLDERS)
    if flag not in (None, "classes", "other"):
        raise InputError(f"--assume {FOLDERS}={flag}: classes or other was expected")
    if facts.task == "multi-label" and flag == "classes":
        raise InputError(
            f"--assume {FOLDERS}=classes: a folder tells one class of a picture, which may have several of a "
            "multi-label network's; leave it out"
        )
    if flag == "other" or facts.task == "multi-label":
        return None, ""
    found, why_not = class_folders(images, facts.labels if facts.labels_known else None, len(facts.labels))
    if found is None and flag == "classes":
        raise InputError(f"--assume {FOLDERS}=classes: {why_not or 'the images lie in no folders of their own'}")
    return found, why_not


def _folders_assumption(folders: ClassFolders | None, assumed: Mapping[str, str]) -> Assumption:
    value = "other" if folders is None else "classes"
    are = "aren't the classes of the network" if folders is None else "are the classes, in the order of their names"
    return Assumption(
        key=FOLDERS,
        value=value,
        meaning=f"the folders of --images {are}",
        alternatives=("classes" if folders is None else "other",),
        flag=f"--labels FILE or --assume {FOLDERS}=VALUE",
        settled_by=f"--assume {FOLDERS}={value}" if FOLDERS in assumed else None,
    )


def _with_shared_size(witnesses: Witnesses) -> ModelFacts:
    """Return the facts with the size that all images have, where the size is open and nothing speaks against theirs."""
    facts, shared = witnesses.facts, witnesses.images.shared_size
    if shared is None or not any(a.key == SIZE and a.is_open for a in facts.assumptions):
        return facts
    if shared != (facts.input.height, facts.input.width):
        if max(shared) >= max(facts.input.height, facts.input.width) or not witnesses.prefers_shared_size(shared):
            return facts
        facts = with_input_size(facts, witnesses.checkpoint, shared)
    others = (a for a in facts.assumptions if a.key != SIZE)
    size = size_assumption(shared, witnesses.trained, "images: all of them have this size")
    return replace(facts, assumptions=(size, *others))


def _without_what_cannot_matter(trained: TrainedNetwork, facts: ModelFacts) -> ModelFacts:
    """Return `facts` with eps settled if a few generated images show that no other value changes an answer."""
    values = next((a.alternatives for a in facts.assumptions if a.key == "eps" and a.is_open), ())
    if not isinstance(trained, Recognised) or not values:
        return facts
    pixels = generated_sample(facts.input, _PROBE_IMAGES).pixels
    logits = eager_logits(trained.module, pixels, facts.normalization, lambda _: None)
    others = [
        eager_logits(with_values(trained, {"eps": eps}), pixels, facts.normalization, lambda _: None) for eps in values
    ]
    if not all(same_logits(logits, other) for other in others):
        return facts
    reason = {"eps": f"generated images: {' or '.join(values)} changes no logit by more than 0.1 % of their range"}
    return replace(facts, assumptions=settled(facts.assumptions, reason))


def _doubts_of_flags(witnesses: Witnesses) -> Iterator[str]:
    """Yield a sentence where the images fit something else clearly better than what flags say, which still holds."""
    findings = witnesses.ask()
    if findings is not None and findings.changes:
        flags = ", ".join(f"{key}={findings.assumed.values[key]}" for key in findings.changes)
        better = ", ".join(f"{key}={value}" for key, value in findings.changes.items())
        yield (
            f"the images fit {better} clearly better ({findings.best.described}) than what a flag says, {flags} "
            f"({findings.assumed.described})"
        )


def _fits_better(findings: Findings, command: str) -> str:
    changes = findings.changes
    flags = ",".join(f"{key}={value}" for key, value in changes.items())
    kept = ",".join(f"{key}={findings.assumed.values[key]}" for key in changes)
    return (
        f"the images fit {flags} clearly better ({findings.best.described}) than what was assumed, {kept} "
        f"({findings.assumed.described}), so nothing was written. This takes it:\n    {command} --assume "
        f"{shlex.quote(flags)}\nand --assume {shlex.quote(kept)} what was assumed"
    )
