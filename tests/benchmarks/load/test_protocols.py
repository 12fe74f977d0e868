import numpy as np

from fuseline.benchmarks.load.protocols import Classify, OpenInference
from fuseline.protos.classify_pb2 import ClassifyRequest
from fuseline.protos.open_inference_pb2 import ModelInferRequest


def test_classify_asks_for_files_and_for_pixels() -> None:
    files = ClassifyRequest.FromString(Classify().request([b"one", b"two"], with_logits=True))
    assert [image.encoded for image in files.images] == [b"one", b"two"]
    assert files.return_logits
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert [
        image.raw for image in ClassifyRequest.FromString(Classify().request(pixels, with_logits=False)).images
    ] == [bytes(range(12))]


def test_open_inference_asks_for_files_as_strings() -> None:
    wire = OpenInference("model", "image", "BYTES", (2, 2, 3), channels_first=False, output_name="logits")
    request = ModelInferRequest.FromString(wire.request([b"one", b"three"], with_logits=False))
    (source,) = request.inputs
    assert (source.datatype, list(source.shape)) == ("BYTES", [2, 1])
    assert request.raw_input_contents[0] == b"\x03\0\0\0one\x05\0\0\0three"
