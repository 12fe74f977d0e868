"""Print a lock file without torch and what only torch built for CUDA needs; torch itself then comes from elsewhere.

`python without_cuda.py requirements.lock > without-cuda.lock`
"""

import re
import sys
from pathlib import Path

_CUDA = re.compile(r"(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==")


def without_cuda(lock: str) -> str:
    """`lock` without the requirements that `_CUDA` names, each with the hashes and comments that belong to it."""
    requirements = re.split(r"^(?=[^\s#])", lock, flags=re.MULTILINE)
    return "".join(requirement for requirement in requirements if not _CUDA.match(requirement))


if __name__ == "__main__":
    sys.stdout.write(without_cuda(Path(sys.argv[1]).read_text(encoding="utf-8")))
