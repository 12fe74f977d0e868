"""Where the servers of a client are: one address, several, or a name that stands for several."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from fuseline.serve.client.http_stub import is_http
from fuseline.serve.errors import InputError
from fuseline.serve.listening.addresses import join_address, split_address
from fuseline.serve.listening.unix_sockets import is_unix

Addresses = str | Sequence[str]
"""One address, several separated by commas, or a sequence of them."""

_NAME = re.compile(r"dns:(?:///)?(?!/)(.*)", re.IGNORECASE | re.DOTALL)
_HOST_AND_PORT = re.compile(r"(?:ipv4:|ipv6:)?(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:/\[\],]+):([0-9]{1,5})", re.ASCII)
_EXPECTED = "expected HOST:PORT, unix:PATH, dns:///NAME:PORT or http://HOST:PORT"


class Target(NamedTuple):
    """One of the addresses that a client was given."""

    address: str
    name: tuple[str, int] | None
    """The name and the port of `dns:///NAME:PORT`, each of whose addresses is a server; None: it is one server."""


def targets_of(addresses: Addresses) -> tuple[Target, ...]:
    """Return the servers, or names of servers, that `addresses` are.

    A single address that is no such name is taken as it is: gRPC has more forms of it.

    Raises:
        InputError: there is none, one of several can't be one, is there twice, or some are of HTTP and others of gRPC.
    """
    listed = _listed(addresses)
    if len(listed) == 1 and _NAME.fullmatch(listed[0]) is None:
        return (Target(listed[0], None),)
    targets = tuple(map(_target, listed))
    for position, each in enumerate(listed):
        if each in listed[:position]:
            raise InputError(f"the address {each} is given twice; give each server once")
    schemes = {each.partition("://")[0].lower() if is_http(each) else "gRPC" for each in listed}
    if len(schemes) > 1:
        raise InputError(
            f"the addresses {', '.join(listed)} are of {' and '.join(sorted(schemes))}; give those of one kind"
        )
    return targets


def check_one(address: str, purpose: str) -> None:
    """Raise `InputError` if `address` is several where one server is to be called, for `purpose`."""
    if len(listed := _listed(address)) > 1:
        raise InputError(f"{address} are {len(listed)} addresses; {purpose}, so give one at a time")


def _listed(addresses: Addresses) -> list[str]:
    if not isinstance(addresses, str):
        listed = list(addresses)
        for each in listed:
            if not isinstance(each, str):
                raise InputError(f"{each!r} is no address; {_EXPECTED}")
    elif is_unix(addresses) and not all(map(_looks_like_one, addresses.split(","))):
        listed = [addresses]  # a path may hold commas
    else:
        listed = [each.strip() for each in addresses.split(",")] if "," in addresses else [addresses]
    if not listed or listed == [""]:
        raise InputError(f"no address was given; {_EXPECTED}, or several of them")
    return listed


def _looks_like_one(text: str) -> bool:
    return is_unix(text) or is_http(text) or _HOST_AND_PORT.fullmatch(text.strip()) is not None


def _target(address: str) -> Target:
    named = _NAME.fullmatch(address)
    if named is None and (is_unix(address) or is_http(address)):
        return Target(address, None)
    place = address if named is None else named[1]
    found = _HOST_AND_PORT.fullmatch(place)
    if found is None or not 0 < int(found[1]) <= 65535:
        raise InputError(f"{address!r} is no address of a server; {_EXPECTED}")
    if named is None:
        return Target(address, None)
    host, port = split_address(place)
    return Target(f"dns:///{join_address(host, port)}", (host, port))
