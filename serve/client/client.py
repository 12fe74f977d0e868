"""The client of a program that waits for each answer: `from fuseline import Client`.

with Client("127.0.0.1:8001") as client:
    answer = client.classify("cat.jpg", top_k=5)
    print(answer.results[0].predictions[0].label)
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from fuseline.protos.classify_pb2 import ClassifyRequest, GetModelRequest
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.client.answers import Answer, StreamAnswer, answer_from_response, stream_answer_from_response
from fuseline.serve.client.calls import channel_to, errors_of_the_tree
from fuseline.serve.client.client_tls import FilePath
from fuseline.serve.client.client_token import metadata_with
from fuseline.serve.client.connection import check_hedge, connection_to
from fuseline.serve.client.http_stub import HttpStub
from fuseline.serve.client.image_streams import HTTP_THREADS, THREADS, stream_of_calls
from fuseline.serve.client.name_lookup import Resolver, resolved
from fuseline.serve.client.requests import DraftRequest, ImageLike, draft_request, listed, no_image
from fuseline.serve.client.retries import RetryPolicy, call_with_retries
from fuseline.serve.client.server_addresses import Addresses, Target
from fuseline.serve.client.servers import Link
from fuseline.serve.client.thread_servers import ThreadServers
from fuseline.serve.errors import FuselineError
from fuseline.serve.model_description import ModelDescription, description_from_response

DEFAULT_ADDRESS = "127.0.0.1:8001"
DEFAULT_RETRIES = 2


class Client:
    """A connection to a Fuseline server, or to several that serve the same models; threads may share it.

    An address is that of a gRPC port, `HOST:PORT`, or of an HTTP port, `http://HOST:PORT` or `https://HOST:PORT`, where
    gRPC can't pass. Several are a sequence, or one string with commas; `dns:///NAME:PORT` is every address of a name,
    which is looked up again now and then. Each call goes to the less loaded of two random servers among those that are
    well, see "Several servers" in docs/python.md.
    Methods raise the error of `fuseline.serve.errors` that the server raised, and `InputError` where no server answers.
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
        resolver: Resolver = resolved,
    ) -> None:
        """Connects with the first call.

        Args:
            address: where the server is, or the servers are.
            token: sent with each call; None: that of the environment variable FUSELINE_TOKEN, if there is one.
            token_in_clear: allow a token to leave this machine over a connection that is not encrypted.
            retries: how often a call is made again, within its `timeout_s`, that is UNAVAILABLE or RESOURCE_EXHAUSTED;
                see `fuseline.serve.client.retries`. Streams to one server over gRPC are never. Of several servers, a
                call that one has not begun goes to another one in any case.
            tls: use TLS. Each of the following does that too, and so does https://.
            ca: file with the certificates to trust, in PEM; None: those that this machine trusts.
            cert: file with this client's own certificate, in PEM, for a server that wants one; with `key`.
            key: file with the private key of `cert`, in PEM.
            server_name: name that the server's certificate must have; None: the host of the address.
            hedge_after_s: of several servers, over gRPC: send a copy of a request that has no answer after so many
                seconds to another one, and take the first answer; at most one request in ten has a copy. None: none.
            resolver: returns the addresses that the NAME and PORT of `dns:///NAME:PORT` stand for, each `IP:PORT`; it
                is called in threads, and raises `OSError` where they can't be told.

        Raises:
            InputError: an address can't be used, or a file; or the token would leave this machine in clear.
        """
        connection = connection_to(
            address,
            token=token,
            token_in_clear=token_in_clear,
            tls=tls,
            ca=ca,
            cert=cert,
            key=key,
            server_name=server_name,
        )
        check_hedge(hedge_after_s, connection)
        self.address = address = connection.address
        self._retries = RetryPolicy(retries)
        self._tls = connection.tls
        token = connection.token
        # What each call of a stub takes besides its message and its time.
        self._extra: dict[str, Any] = {}
        if token is not None and not connection.is_http:
            self._extra["metadata"] = metadata_with(token)
        self._known_models: dict[tuple[str, str], ModelDescription] = {}
        self._servers: ThreadServers | None = None
        self._stub: Any = None
        if not connection.is_of_one:

            def open_link(address: str, target: Target) -> Link:
                tls = connection.tls_of(target)
                if connection.is_http:
                    stub = HttpStub(address, tls, token)
                    return Link(address, stub, stub, tls)
                channel = channel_to(address, tls, one_of_several=True)
                return Link(address, ClassifierStub(channel), channel, tls)  # type: ignore[no-untyped-call]

            self._servers = ThreadServers(
                connection.targets, resolver, open_link, self._retries, self._extra, hedge_after_s
            )
            self._close = self._servers.close
        elif connection.is_http:
            self._stub = HttpStub(address, self._tls, token)
            self._close = self._stub.close
        else:
            channel = channel_to(address, self._tls)
            self._stub = ClassifierStub(channel)  # type: ignore[no-untyped-call]
            self._close = channel.close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way end with an error."""
        self._close()

    def model(self, name: str = "", version: str = "", *, timeout_s: float | None = 10.0) -> ModelDescription:
        """Describe the model called `name`, or its default version; empty: the server's only one."""
        with errors_of_the_tree(self.address, timeout_s, self._tls):
            request = GetModelRequest(model=name, version=version)
        if self._servers is not None:
            return self._servers.model(name, version, timeout_s)
        described = self._called(self._stub.GetModel, request, timeout_s)
        description = description_from_response(described)
        self._known_models[name, version] = description
        return description

    def classify(
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
        """Classify one image or several in one request; the results have their order.

        Args:
            images: see `ImageLike`. Encoded ones are resized and cropped by the server; raw pixels must already have
                the shape of the model's input.
            top_k: how many classes to return for each image, the most probable ones.
            model: a model's name or an alias; may be empty when the server has only one.
            version: the model's version; empty: the one that is served by default, or that the alias leads to.
            return_logits: return the logits of every class as well.
            timeout_s: the request's deadline; the server refuses at once what it can't answer by then.
            priority: "interactive", or "bulk" for what may wait behind others' requests; empty: interactive.

        Raises:
            RequestError, ImageError: something is wrong with the request or an image, a file that can't be read and a
                message over the server's limit among it.
        """
        with errors_of_the_tree(self.address, timeout_s, self._tls):
            draft = draft_request(
                listed(images),
                top_k=top_k,
                model=model,
                version=version,
                return_logits=return_logits,
                priority=priority,
            )
            if self._servers is None:
                request = self._checked(draft)
        if self._servers is not None:
            response = self._servers.classify(draft, timeout_s)
        else:
            response = self._called(self._stub.Classify, request, timeout_s)
        return answer_from_response(response, version)

    def classify_stream(
        self,
        images: Iterable[ImageLike],
        *,
        top_k: int = 1,
        model: str = "",
        version: str = "",
        timeout_s: float | None = None,
        priority: str = "",
    ) -> Iterator[StreamAnswer]:
        """Classify images as the iterable gives them, each a request of its own; yield answers as they come.

        Images are taken from `images`, in another thread, only as fast as the server takes them. One that is refused
        gives a `StreamAnswer` with its error, and the stream goes on; `timeout_s` bounds the stream as a whole. With
        several servers, and over HTTP, each image is a call as of `classify`: those of a server that dies are sent to
        another one.

        Raises:
            FuselineError: the stream as a whole failed. What `images` itself raises comes through too, after the
                answers to what it gave before.
        """
        if self._servers is not None or isinstance(self._stub, HttpStub):

            def classify(image: ImageLike, left_s: float | None) -> Answer:
                return self.classify(
                    image, top_k=top_k, model=model, version=version, timeout_s=left_s, priority=priority
                )

            threads = HTTP_THREADS if self._servers is None else THREADS
            yield from stream_of_calls(classify, images, timeout_s, threads)
            return
        refused: dict[int, FuselineError] = {}
        broken: list[BaseException] = []

        def requests() -> Iterator[ClassifyRequest]:
            try:
                for position, image in enumerate(images):
                    try:
                        with errors_of_the_tree(self.address, timeout_s, self._tls):
                            request = self._checked(
                                draft_request(
                                    [image],
                                    top_k=top_k,
                                    model=model,
                                    version=version,
                                    id=str(position),
                                    priority=priority,
                                )
                            )
                    except FuselineError as error:
                        refused[position] = error
                        request = no_image(position)
                    yield request
            except BaseException as error:  # noqa: BLE001 gRPC would only log it, in its own thread
                broken.append(error)

        with errors_of_the_tree(self.address, timeout_s, self._tls):
            call = self._stub.ClassifyStream(requests(), timeout=timeout_s, **self._extra)
            try:
                for response in call:
                    yield stream_answer_from_response(response, version, refused)
            finally:
                call.cancel()
        if broken:
            raise broken[0]

    def _called(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        """Return the answer of the stub's `method`, tried again as `retries` allows."""

        def call(left_s: float | None) -> Any:
            with errors_of_the_tree(self.address, timeout_s, self._tls):
                return method(request, timeout=left_s, **self._extra)

        return call_with_retries(call, timeout_s, self._retries)

    def _checked(self, draft: DraftRequest) -> ClassifyRequest:
        """Return the message of `draft`, held against the model's description where it must be."""
        if draft.needs_check:
            asked = draft.message.model, draft.message.model_version
            known = self._known_models.get(asked)
            if known is None or not draft.fits(known, self.address):
                # Another version may be served by now, which takes something else.
                draft.check(self.model(*asked), self.address)
        return draft.message
