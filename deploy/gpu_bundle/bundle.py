"""The parts of a bundle on disk, each with its manifest, the sums of all, and the scripts that travel along."""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.gpu_bundle.parts import CONTENT_BYTES, Chunk, lay_out
from deploy.gpu_bundle.roots import CORE, CUDA, PURPOSE
from deploy.gpu_bundle.wheels import unpacked_bytes

FORMAT = 1
MANIFEST, SUMS = "bundle.json", "SHA256SUMS"
TRAVELS = ("install.sh", "run.sh", "install.py")
_COPY_BYTES = 2**20

Files = Mapping[str, Sequence[Path]]
"""Group to its wheels and archives."""


def write_bundle(files: Files, out: Path, facts: Mapping[str, Any], limit: int = CONTENT_BYTES) -> dict[str, Any]:
    """Write the parts to `out`, in the place of older ones; return the manifest, which has `facts` too.

    The first group has parts of its own, so that they are small enough to go beside a checkout, and so has CUDA.
    """
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    chunks = _laid_out(files, limit)
    _write_chunks(files, chunks, staging)
    manifest = {"format": FORMAT, **facts, "purpose": PURPOSE, "files": _described(files, chunks)}
    _finish(staging, manifest)
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)
    return manifest


def _laid_out(files: Files, limit: int) -> list[Chunk]:
    sizes = {group: [(path.name, path.stat().st_size) for path in paths] for group, paths in files.items()}
    chunks = lay_out(sizes[CORE], "part", limit=limit)
    last = max(int(chunk.part.rpartition("-")[2]) for chunk in chunks)
    others = [size for group, of_group in sizes.items() if group not in (CORE, CUDA) for size in of_group]
    chunks += lay_out(others, "part", first=last + 1, limit=limit)
    return chunks + lay_out(sizes.get(CUDA, ()), "cuda-part", limit=limit)


def _write_chunks(files: Files, chunks: Sequence[Chunk], folder: Path) -> None:
    paths = {path.name: path for of_group in files.values() for path in of_group}
    for chunk in chunks:
        part = folder / chunk.part
        part.mkdir(parents=True, exist_ok=True)
        with paths[chunk.file].open("rb") as source, (part / chunk.stored_as).open("wb") as stored:
            source.seek(chunk.offset)
            left = chunk.size
            while left:
                data = source.read(min(_COPY_BYTES, left))
                stored.write(data)
                left -= len(data)


def _described(files: Files, chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
    of_file: dict[str, list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        of_file[chunk.file].append(chunk)
    return [
        {
            "name": path.name,
            "group": group,
            "size": path.stat().st_size,
            "unpacked": unpacked_bytes(path),
            "chunks": [[chunk.part, chunk.stored_as, chunk.size] for chunk in of_file[path.name]],
        }
        for group, paths in files.items()
        for path in paths
    ]


def _finish(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=1) + "\n"
    parts = sorted(folder.iterdir())
    for part in parts:
        (part / MANIFEST).write_text(text, encoding="utf-8")
        for name in TRAVELS:
            shutil.copy(Path(__file__).with_name(name), part / name)
    sums = "".join(f"{_sha256(path)}  {part.name}/{path.name}\n" for part in parts for path in sorted(part.iterdir()))
    # In each part, since any may come first; and above them, for `sha256sum -c` where all are.
    for place in (*parts, folder):
        (place / SUMS).write_text(sums, encoding="ascii")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
