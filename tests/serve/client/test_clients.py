"""Both clients, against a real server."""

import asyncio
import queue
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fuseline.serve import errors
from fuseline.serve.client import Answer, AsyncClient, Client, StreamAnswer
from fuseline.serve.model_description import ModelDescription
from fuseline.serve.server import Server
from fuseline.serve.services.statuses import STATUS_CODE_OF_ERROR, error_from_status, status_from_error
from tests.fakes.colours import LABELS, encoded, expected_logits, noise, plain
from tests.serve.bad_images import bad_images


class BlockingAsyncClient:
    """An `AsyncClient` that is called as a `Client` is."""

    def __init__(self, address: str) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(address)

    def __enter__(self) -> "BlockingAsyncClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def model(self, name: str = "") -> ModelDescription:
        return self._runner.run(self._client.model(name))

    def classify(self, images: Any, **asked: Any) -> Answer:
        return self._runner.run(self._client.classify(images, **asked))

    def classify_stream(self, images: Any, **asked: Any) -> Iterator[StreamAnswer]:
        stream = self._client.classify_stream(images, **asked)

        async def next_answer() -> StreamAnswer | None:
            return await anext(stream, None)

        try:
            while (answer := self._runner.run(next_answer())) is not None:
                yield answer
        finally:
            self._runner.run(stream.aclose())


AnyClient = Client | BlockingAsyncClient


ClientClass = Callable[[str], AnyClient]


@pytest.fixture(params=["Client", "AsyncClient", "Client over HTTP"])
def client_class(request: pytest.FixtureRequest, live_server: Server) -> ClientClass:
    """Each kind of client; that over HTTP calls the HTTP port where it is given that of gRPC."""

    def over_http(address: str) -> Client:
        return Client(f"http://{address.replace(f':{live_server.port}', f':{live_server.http_port}')}")

    return {"Client": Client, "AsyncClient": BlockingAsyncClient, "Client over HTTP": over_http}[request.param]


@pytest.fixture
def client(live_address: str, client_class: ClientClass) -> Iterator[AnyClient]:
    with client_class(live_address) as client:
        yield client


def test_an_image_is_a_path_or_encoded_bytes_or_raw_pixels(client: AnyClient, tmp_path: Path) -> None:
    path = tmp_path / "green.png"
    path.write_bytes(encoded(plain("green", 20, 30)))
    answer = client.classify([path, str(path), encoded(plain("red"), "JPEG"), plain("blue")], top_k=2)
    assert [result.predictions[0].label for result in answer.results] == ["green", "green", "red", "blue"]
    assert all(len(result.predictions) == 2 for result in answer.results)
    assert client.classify(path).results[0].predictions[0].index == LABELS.index("green")
    assert (answer.model, answer.model_version) == ("colours", "1")
    assert answer.preprocess_ms > 0
    assert answer.compute_ms > 0


def test_logits_come_as_an_array(client: AnyClient) -> None:
    pixels = noise(2)
    results = client.classify(list(pixels), return_logits=True).results
    assert results[0].logits is not None
    np.testing.assert_allclose([result.logits for result in results], expected_logits(pixels), atol=1e-5)
    assert client.classify(pixels[0]).results[0].logits is None


@pytest.mark.parametrize(
    "pixels",
    [
        plain("red").astype(np.float32),
        plain("red").transpose(2, 0, 1),
        plain("red", 8, 9),
        plain("red")[np.newaxis],
    ],
    ids=["float32", "CHW", "too wide", "a batch"],
)
def test_raw_pixels_of_another_shape_or_dtype_are_refused_before_sending(
    client: AnyClient, pixels: np.typing.NDArray[np.uint8]
) -> None:
    with pytest.raises(errors.RequestError, match=r"colours takes uint8 \(8, 8, 3\)"):
        client.classify([pixels])


def test_errors_of_the_server_come_back_as_they_were_raised(client: AnyClient, tmp_path: Path) -> None:
    for data, reason in bad_images().values():
        with pytest.raises(errors.ImageError, match=reason):
            client.classify(data)
    with pytest.raises(errors.ImageError, match=r"nowhere\.png can't be read: No such file"):
        client.classify(tmp_path / "nowhere.png")
    with pytest.raises(errors.UnknownModelError, match="'cats'"):
        client.classify(encoded(plain("red")), model="cats")
    with pytest.raises(errors.RequestError, match="top_k is 5"):
        client.classify(plain("red"), top_k=5)
    with pytest.raises(errors.RequestError, match="top_k is -1"):
        client.classify(plain("red"), top_k=-1)
    with pytest.raises(errors.RequestError, match="no image"):
        client.classify([])
    with pytest.raises(errors.RequestError, match="9 images, at most 8"):
        client.classify(list(noise(9)))


def test_a_name_that_is_no_text_of_utf8_is_refused(client: AnyClient) -> None:
    with pytest.raises(errors.RequestError, match=r"'caf\\udce9' can't be sent: it is no UTF-8 text"):
        client.model("caf\udce9")
    with pytest.raises(errors.RequestError, match="no UTF-8 text"):
        client.classify(encoded(plain("red")), model="caf\udce9")


def test_a_name_that_is_no_text_is_refused_for_each_image_of_a_stream(client: AnyClient) -> None:
    (item,) = client.classify_stream([encoded(plain("red"))], model="caf\udce9")
    assert isinstance(item.error, errors.RequestError)


def test_a_message_over_the_limit_is_refused_before_sending_and_the_limit_is_stated(client: AnyClient) -> None:
    with pytest.raises(errors.RequestError, match=r"server at .* takes at most 1048576.*--max-message-mb"):
        client.classify(bytes(2**20 + 1))
    (item,) = client.classify_stream([bytes(2**20 + 1)])
    assert isinstance(item.error, errors.RequestError)


def test_no_server_is_an_input_error_that_names_the_address(client_class: ClientClass) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with client_class(address) as client:
            with pytest.raises(errors.InputError, match=f"no server answers at (http://)?{address}.*fuseline serve"):
                client.classify(b"x")
            with pytest.raises(errors.InputError, match=address):
                list(client.classify_stream([b"x"]))


def test_a_passed_deadline_is_a_deadline_error(client: AnyClient) -> None:
    with pytest.raises(errors.DeadlineError):
        client.classify(encoded(plain("red")), timeout_s=-1.0)


def test_a_stream_answers_every_image_by_its_position_with_errors_in_between(client: AnyClient, tmp_path: Path) -> None:
    colours = [LABELS[position % 4] for position in range(100)]
    images: list[bytes | Path | np.typing.NDArray[np.uint8]] = [
        plain(colour) if position % 2 else encoded(plain(colour)) for position, colour in enumerate(colours)
    ]
    images[10] = b"GIF89a"
    images[20] = tmp_path / "nowhere.png"
    items = sorted(client.classify_stream(iter(images)), key=lambda item: item.position)
    assert [item.position for item in items] == list(range(100))
    for item, colour in zip(items, colours, strict=True):
        if item.position in (10, 20):
            assert item.answer is None
            assert isinstance(item.error, errors.InputError)
        else:
            assert item.error is None
            assert item.answer is not None
            assert item.answer.results[0].predictions[0].label == colour


def test_an_error_within_a_stream_keeps_its_class(client: AnyClient) -> None:
    truncated = encoded(plain("red", 64, 64), "JPEG")[:-40]
    items = client.classify_stream([truncated, plain("red", 8, 9).tobytes()])
    assert [type(item.error) for item in items] == [errors.ImageError, errors.ImageError]
    (item,) = client.classify_stream([encoded(plain("red"))], top_k=9)
    assert type(item.error) is errors.RequestError


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_called_without_the_proxy(
    live_address: str, client_class: ClientClass, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("grpc_proxy", "https_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with client_class(live_address.replace("127.0.0.1", host)) as client:
            assert client.model().name == "colours"


def test_what_the_iterable_raises_comes_through_after_the_answers(client: AnyClient) -> None:
    def images() -> Iterator[bytes]:
        yield encoded(plain("red"))
        raise ZeroDivisionError

    stream = client.classify_stream(images())
    assert next(stream).position == 0
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_a_stream_may_be_left_early(client: AnyClient) -> None:
    stream = client.classify_stream(plain("red") for _ in range(10_000))
    next(stream)
    stream.close()
    assert client.classify(plain("blue")).results


@pytest.mark.parametrize("way", ["gRPC", "HTTP", "several servers"])
def test_an_iterable_may_wait_for_an_answer_before_it_gives_the_next_image(
    live_server: Server, tmp_path: Path, way: str
) -> None:
    host = f"127.0.0.1:{live_server.port}"
    addresses = {
        "gRPC": host,
        "HTTP": f"http://127.0.0.1:{live_server.http_port}",
        "several servers": f"{host},localhost:{live_server.port}",
    }
    read: queue.SimpleQueue[StreamAnswer] = queue.SimpleQueue()
    items = []

    def images() -> Iterator[Any]:
        for image in (plain("red"), tmp_path / "nowhere.png", plain("red", 8, 9), b"GIF89a", plain("green")):
            yield image
            read.get(timeout=20)

    with Client(addresses[way]) as client:
        for item in client.classify_stream(images()):
            items.append(item)
            read.put(item)
    assert [item.position for item in items] == [0, 1, 2, 3, 4]
    refused = [None, errors.ImageError, errors.RequestError, errors.ImageError, None]
    assert [item.error and type(item.error) for item in items] == refused


def test_the_model_describes_itself(client: AnyClient) -> None:
    model = client.model()
    assert model == client.model("colours")
    assert (model.labels, model.height, model.width, model.channels) == (LABELS, 8, 8, 3)
    assert (model.max_images_per_request, model.max_message_bytes) == (8, 2**20)


@pytest.mark.parametrize("error_class", STATUS_CODE_OF_ERROR)
def test_each_error_survives_the_way_to_a_status_and_back(error_class: type[errors.FuselineError]) -> None:
    status = status_from_error(error_class("why"))
    back = error_from_status(status.code, status.message, dict(status.trailing_metadata)["fuseline-error"])
    assert type(back) is error_class
    assert ("why" in str(back)) == (status.code is not grpc.StatusCode.INTERNAL)


def test_every_error_that_is_no_fault_of_the_server_has_its_status() -> None:
    of_requests = {errors.RequestError, errors.ImageError, errors.UnknownModelError}
    of_the_moment = {
        errors.OverloadedError,
        errors.DeadlineError,
        errors.ShuttingDownError,
        errors.BackendLostError,
    }
    of_memory = {errors.UnknownRegionError, errors.RegionExistsError, errors.SharedMemoryUnavailableError}
    of_administration = {errors.UnauthenticatedError, errors.ForbiddenError, errors.ModelControlError}
    assert set(STATUS_CODE_OF_ERROR) == of_requests | of_the_moment | of_memory | of_administration | {
        errors.BackendError
    }


def test_what_grpc_itself_or_another_server_answers_is_not_taken_for_an_error_about_memory() -> None:
    missing_method = error_from_status(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    assert type(missing_method) is errors.FuselineError
    assert type(error_from_status(grpc.StatusCode.NOT_FOUND, "no such model")) is errors.UnknownModelError
    assert status_from_error(KeyError("internal detail")).code is grpc.StatusCode.INTERNAL
    assert "internal detail" not in status_from_error(KeyError("internal detail")).message
