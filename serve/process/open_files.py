"""How many files and connections this process may have open."""

import logging
import resource

_log = logging.getLogger(__name__)


def raise_open_files_limit() -> None:
    """Raise the limit of open descriptors as far as this process may, for itself and the processes that it starts.

    Shells and service managers start programs with 1024, for the sake of old ones that use select(2), and leave it to
    the program to raise that (http://0pointer.net/blog/file-descriptor-limits.html). Each connection takes one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            _log.info("the limit of %d open files stays as it is: %s", soft, error)
