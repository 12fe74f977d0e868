"""The regions that are registered, by name."""

import reprlib
import resource
from collections.abc import Iterator, Sequence
from typing import Any, cast

from numpy.typing import NDArray

from fuseline.serve.errors import RegionExistsError, RequestError, SharedMemoryUnavailableError, UnknownRegionError
from fuseline.serve.shared_memory.region import Region, RegionPart
from fuseline.serve.shared_memory.registration import RegionKind, Registration, SystemRegistration
from fuseline.serve.shared_memory.system_region import open_system_region

MOST_REGIONS = 1024
"""Largest number of regions. Each holds a descriptor, so it is less where a process may have few: connections need some
too."""


class SharedMemoryRegions:
    """The open regions of this process. System and CUDA regions share the names, as in Triton. No method waits.

    A name stands for one region from its registration until it is unregistered, whichever connection registers it. A
    request that uses a region ends well although the region is unregistered meanwhile.
    """

    def __init__(self, why_off: str | None = None) -> None:
        """Begin without regions. `why_off`: the reason why there are none, for clients; None: there may be."""
        self._why_off = why_off
        self._regions: dict[str, Region] = {}
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = MOST_REGIONS if files == resource.RLIM_INFINITY else min(MOST_REGIONS, files // 4)

    @property
    def is_on(self) -> bool:
        """Whether this server shares memory."""
        return self._why_off is None

    def check_on(self) -> None:
        """Raise `SharedMemoryUnavailableError` if this server shares no memory."""
        if self._why_off is not None:
            raise SharedMemoryUnavailableError(self._why_off)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register `byte_size` bytes at `offset` of the POSIX shared memory object `key`.

        Raises:
            SharedMemoryUnavailableError: this server shares no memory.
            RegionExistsError: the name is taken.
            RequestError: see `open_system_region`; or there are too many already.
        """
        self.check_room(name)
        self.add(open_system_region(SystemRegistration(name, key, offset, byte_size)))

    def check_room(self, name: str) -> None:
        """Raise as `add` would for a region called `name`."""
        self.check_on()
        if name in self._regions:
            raise RegionExistsError(
                f"the shared memory region {reprlib.repr(name)} is registered already; unregister it first, or take "
                "another name"
            )
        if len(self._regions) >= self._most:
            raise RequestError(f"{self._most} shared memory regions are registered, the most; unregister some")

    def add(self, region: Region) -> None:
        """Register an open region.

        Raises:
            SharedMemoryUnavailableError: this server shares no memory.
            RegionExistsError: the name is taken.
            RequestError: there are too many already.
        """
        self.check_room(region.registration.name)
        self._regions[region.registration.name] = region

    def unregister(self, name: str, kind: RegionKind = "system") -> bool:
        """Forget the region of that kind and name or, for an empty name, each of that kind.

        Return whether there was one; that there is none is no error, as in Triton. Raises
        `SharedMemoryUnavailableError` if this server shares no memory.
        """
        self.check_on()
        forgotten = [
            its_name
            for its_name, region in self._regions.items()
            if region.registration.kind == kind and name in {"", its_name}
        ]
        for its_name in forgotten:
            del self._regions[its_name]
        return bool(forgotten)

    def discard(self, region: Region) -> bool:
        """Forget `region` itself, not another one of its name; return whether it was registered."""
        name = region.registration.name
        if self._regions.get(name) is not region:
            return False
        del self._regions[name]
        return True

    def __iter__(self) -> Iterator[Region]:
        """Iterate over the regions of both kinds."""
        return iter(list(self._regions.values()))

    def status(self, name: str, kind: RegionKind = "system") -> Sequence[Registration]:
        """Return the registration of that kind and name or, for an empty name, each of that kind.

        Raises:
            SharedMemoryUnavailableError: this server shares no memory.
            UnknownRegionError: no region of that kind has the name.
        """
        self.check_on()
        found = [region.registration for region in self._regions.values() if region.registration.kind == kind]
        if not name:
            return found
        if not (found := [registration for registration in found if registration.name == name]):
            other = f"; it is {self._regions[name].registration.kind} shared memory" if name in self._regions else ""
            raise UnknownRegionError(f"no {kind} shared memory region {reprlib.repr(name)} is registered{other}")
        return found

    def read(self, name: str, offset: int, byte_size: int, out: bytearray | memoryview | NDArray[Any]) -> None:
        """Copy `byte_size` bytes at `offset` of a region into `out`, a writable buffer of that many.

        Raises:
            SharedMemoryUnavailableError: this server shares no memory.
            UnknownRegionError: no region has the name.
            RequestError: the bytes are not all within the region, or the client has shrunk its memory.
        """
        region = self._part_of(name, offset, byte_size)
        # numpy's arrays are buffers, which their types don't say for Python 3.11.
        view = memoryview(cast("bytearray", out)).cast("B")
        assert len(view) == byte_size
        region.read(offset, view)

    def writable(self, name: str, offset: int, byte_size: int) -> RegionPart:
        """Return a part of a region, to be written later. Raises as `read` does."""
        region = self._part_of(name, offset, byte_size)
        region.check_reaches(offset + byte_size)
        return RegionPart(region, offset, byte_size)

    def _part_of(self, name: str, offset: int, byte_size: int) -> Region:
        self.check_on()
        region = self._regions.get(name)
        if region is None:
            raise UnknownRegionError(
                f"the shared memory region {reprlib.repr(name)} is not registered; register it before a tensor is in it"
            )
        size = region.registration.byte_size
        if offset < 0 or byte_size < 1 or offset + byte_size > size:
            raise RequestError(
                f"shared_memory_offset {offset} and shared_memory_byte_size {byte_size} are not within {region.title}, "
                f"which has {size} bytes"
            )
        return region
