"""Registers regions with the server, whichever process of it holds them."""

import asyncio
from typing import Protocol

from fuseline.serve.shared_memory.cuda_region import open_cuda_region
from fuseline.serve.shared_memory.region import Region
from fuseline.serve.shared_memory.regions import SharedMemoryRegions
from fuseline.serve.shared_memory.registration import RegionKind, Registration, SystemRegistration
from fuseline.serve.shared_memory.system_region import open_system_region


class Registrar(Protocol):
    """Registers regions for all processes of a server. Of calls with the same name at the same time one succeeds."""

    regions: SharedMemoryRegions
    """Regions of this process, which are those of the server."""

    async def register(self, registration: Registration) -> None:
        """Register a region, and return when every process of the server knows it.

        Raises:
            SharedMemoryUnavailableError: the server shares no memory, or none of that kind.
            RegionExistsError: the name is taken.
            RequestError: the registration is wrong, or there are too many regions.
            BackendError: the GPU failed.
        """
        ...

    async def unregister(self, name: str, kind: RegionKind) -> None:
        """Forget the region of that kind and name or, for an empty name, each of that kind, in every process.

        A name without such a region is no error. Raises `SharedMemoryUnavailableError` if the server shares no memory.
        """
        ...


class LocalRegistrar:
    """The registrar of a server of one process."""

    def __init__(self, regions: SharedMemoryRegions) -> None:
        """Register with `regions`."""
        self.regions = regions

    async def register(self, registration: Registration) -> None:
        """See `Registrar.register`."""
        self.regions.check_room(registration.name)
        self.regions.add(await open_region(registration))

    async def unregister(self, name: str, kind: RegionKind) -> None:
        """See `Registrar.unregister`."""
        self.regions.unregister(name, kind)


async def open_region(registration: Registration) -> Region:
    """Open a region of either kind. Raises what `open_system_region` and `open_cuda_region` do."""
    if isinstance(registration, SystemRegistration):
        return open_system_region(registration)
    return await asyncio.to_thread(open_cuda_region, registration)
