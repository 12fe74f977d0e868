"""The client of an asyncio program: `from fuseline import AsyncClient`.

async with AsyncClient("127.0.0.1:8001") as client:
    answers = await asyncio.gather(*(client.classify(path) for path in paths))
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import grpc

from fuseline.protos.classify_pb2 import ClassifyRequest, GetModelRequest
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.client.answers import Answer, StreamAnswer, answer_from_response, stream_answer_from_response
from fuseline.serve.client.calls import async_channel_to, async_errors_of_the_tree
from fuseline.serve.client.client import DEFAULT_ADDRESS, DEFAULT_RETRIES
from fuseline.serve.client.client_tls import FilePath
from fuseline.serve.client.client_token import metadata_with
from fuseline.serve.client.connection import check_hedge, connection_to
from fuseline.serve.client.image_streams import async_stream_of_calls
from fuseline.serve.client.loop_servers import LoopServers
from fuseline.serve.client.name_lookup import Resolver, resolved
from fuseline.serve.client.request_stream import RequestStream
from fuseline.serve.client.requests import DraftRequest, ImageLike, draft_request, listed, no_image
from fuseline.serve.client.retries import RetryPolicy, await_with_retries
from fuseline.serve.client.server_addresses import Addresses, Target
from fuseline.serve.client.servers import Link
from fuseline.serve.errors import FuselineError, InputError
from fuseline.serve.model_description import ModelDescription, description_from_response


class AsyncClient:
    """A connection to a Fuseline server, or to several that serve the same models, for the tasks of one event loop: any
    number of calls may be under way.

    Methods take what those of `Client` take and raise what they raise. Image files are read in a thread.
    """

    def __init__(
        self,
        address: Addresses = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        token_in_clear: bool = False,
        retries: int = DEFAULT_RETRIES,
        tls: bool = False,
        ca: FilePath | None = None,
        cert: FilePath | None = None,
        key: FilePath | None = None,
        server_name: str | None = None,
        hedge_after_s: float | None = None,
        by_stream: bool = False,
        resolver: Resolver = resolved,
    ) -> None:
        """Connects with the first call, and belongs to the event loop of that call.

        Arguments are those of `Client`. With `by_stream` requests of up to 256 KiB travel as messages of one long-lived
        stream to each server instead of as calls, which costs both sides less; answers, errors, deadlines and retries
        are the same.

        Raises `InputError` for an address of HTTP, and as `Client`.
        """
        self._connection = connection = connection_to(
            address,
            token=token,
            token_in_clear=token_in_clear,
            tls=tls,
            ca=ca,
            cert=cert,
            key=key,
            server_name=server_name,
        )
        self.address = connection.address
        if connection.is_http:
            raise InputError(
                f"{self.address} is of HTTP, which Client speaks; AsyncClient takes HOST:PORT, that of gRPC"
            )
        check_hedge(hedge_after_s, connection)
        self._retries = RetryPolicy(retries)
        self._tls = connection.tls
        self._metadata = metadata_with(connection.token)
        self._hedge_after_s = hedge_after_s
        self._by_stream = by_stream
        self._resolver = resolver
        self._has_servers = by_stream or not connection.is_of_one
        self._known_models: dict[tuple[str, str], ModelDescription] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way raise `asyncio.CancelledError`."""
        if self._has_servers:
            await self._servers.close()
        else:
            await self._channel.close()

    async def model(self, name: str = "", version: str = "", *, timeout_s: float | None = 10.0) -> ModelDescription:
        """Describe the model called `name`; see `Client.model`."""
        async with async_errors_of_the_tree(self.address, timeout_s, self._tls):
            request = GetModelRequest(model=name, version=version)
        if self._has_servers:
            return await self._servers.model(name, version, timeout_s)
        described = await self._called(self._stub.GetModel, request, timeout_s)
        description = description_from_response(described)
        self._known_models[name, version] = description
        return description

    async def classify(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        top_k: int = 1,
        model: str = "",
        version: str = "",
        return_logits: bool = False,
        timeout_s: float | None = 30.0,
        priority: str = "",
    ) -> Answer:
        """Classify one image or several in one request; see `Client.classify`."""
        async with async_errors_of_the_tree(self.address, timeout_s, self._tls):
            draft = await _drafted(
                listed(images),
                top_k=top_k,
                model=model,
                version=version,
                return_logits=return_logits,
                priority=priority,
            )
            if not self._has_servers:
                request = await self._checked(draft)
        if self._has_servers:
            response = await self._servers.classify(draft, timeout_s)
        else:
            response = await self._called(self._stub.Classify, request, timeout_s)
        return answer_from_response(response, version)

    async def classify_stream(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        top_k: int = 1,
        model: str = "",
        version: str = "",
        timeout_s: float | None = None,
        priority: str = "",
    ) -> AsyncIterator[StreamAnswer]:
        """Classify images as the iterable gives them; yield answers as they come; see `Client.classify_stream`.

        Images are taken from `images` in this event loop, only as fast as the server takes them.
        """
        if self._has_servers:

            async def classify(image: ImageLike, left_s: float | None) -> Answer:
                return await self.classify(
                    image, top_k=top_k, model=model, version=version, timeout_s=left_s, priority=priority
                )

            answers = async_stream_of_calls(classify, _asynchronous(images), timeout_s)
            async with aclosing(answers):
                async for answer in answers:
                    yield answer
            return
        refused: dict[int, FuselineError] = {}
        broken: list[Exception] = []

        async def requests() -> AsyncIterator[ClassifyRequest]:
            position = 0
            try:
                async for image in _asynchronous(images):
                    try:
                        async with async_errors_of_the_tree(self.address, timeout_s, self._tls):
                            draft = await _drafted(
                                [image], top_k=top_k, model=model, version=version, id=str(position), priority=priority
                            )
                            request = await self._checked(draft)
                    except FuselineError as error:
                        refused[position] = error
                        request = no_image(position)
                    yield request
                    position += 1
            except Exception as error:  # noqa: BLE001 gRPC would only log it, in its own task
                broken.append(error)

        async with async_errors_of_the_tree(self.address, timeout_s, self._tls):
            call = self._stub.ClassifyStream(requests(), timeout=timeout_s, metadata=self._metadata)
            try:
                async for response in call:
                    yield stream_answer_from_response(response, version, refused)
            finally:
                call.cancel()
        if broken:
            raise broken[0]

    @cached_property
    def _servers(self) -> LoopServers:
        connection = self._connection

        def open_link(address: str, target: Target) -> Link:
            tls = connection.tls_of(target)
            channel = async_channel_to(address, tls, one_of_several=not connection.is_of_one)
            requests = RequestStream(address, channel, self._metadata) if self._by_stream else None
            return Link(address, ClassifierStub(channel), channel, tls, requests)  # type: ignore[no-untyped-call]

        return LoopServers(
            connection.targets, self._resolver, open_link, self._retries, self._metadata, self._hedge_after_s
        )

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return async_channel_to(self.address, self._tls)

    @cached_property
    def _stub(self) -> ClassifierStub:
        return ClassifierStub(self._channel)  # type: ignore[no-untyped-call]

    async def _called(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        """Return the answer of the stub's `method`, tried again as `retries` allows."""

        async def call(left_s: float | None) -> Any:
            async with async_errors_of_the_tree(self.address, timeout_s, self._tls):
                return await method(request, timeout=left_s, metadata=self._metadata)

        return await await_with_retries(call, timeout_s, self._retries)

    async def _checked(self, draft: DraftRequest) -> ClassifyRequest:
        """Return the message of `draft`, held against the model's description where it must be."""
        if draft.needs_check:
            asked = draft.message.model, draft.message.model_version
            known = self._known_models.get(asked)
            if known is None or not draft.fits(known, self.address):
                # Another version may be served by now, which takes something else.
                draft.check(await self.model(*asked), self.address)
        return draft.message


async def _drafted(images: list[ImageLike], **asked: Any) -> DraftRequest:
    """Return `draft_request(images, **asked)`; files are read in a thread, which a slow disk may hold up."""
    if any(isinstance(image, str | Path) for image in images):
        return await asyncio.to_thread(draft_request, images, **asked)
    return draft_request(images, **asked)


async def _asynchronous(images: Iterable[ImageLike] | AsyncIterable[ImageLike]) -> AsyncIterator[ImageLike]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
