import io
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fuseline.serve.errors import ImageError
from fuseline.serve.images import decode_image

SAMPLES = Path(__file__).parents[2] / ".." / "shared" / "data" / "imagenet-samples"
INTERPOLATIONS = ("bilinear", "bicubic")


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width, height, mode="RGB", seed=0):
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_size(width, height, idat=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = png_chunk(b"IDAT", zlib.compress(idat))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + idat + png_chunk(b"IEND", b"")


def decode(data, height=24, width=24, resize_shorter_side=32, **options):
    return decode_image(data, height=height, width=width, resize_shorter_side=resize_shorter_side, **options)


def from_torchvision(data, height, width, resize_shorter_side, interpolation="bilinear", mode="RGB"):
    transforms = pytest.importorskip("torchvision.transforms")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data)).convert(mode)
    steps = transforms.Compose(
        [
            transforms.Resize(resize_shorter_side, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop((height, width)),
        ]
    )
    return np.asarray(steps(image)).reshape(height, width, -1)


def assert_like_torchvision(data, height=24, width=24, resize_shorter_side=32, interpolation="bilinear"):
    mine = decode(data, height, width, resize_shorter_side, interpolation=interpolation)
    assert mine.dtype == np.uint8
    assert mine.flags.c_contiguous
    np.testing.assert_array_equal(mine, from_torchvision(data, height, width, resize_shorter_side, interpolation))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_imagenet_samples_equal_torchvision_to_the_pixel(interpolation):
    paths = sorted(SAMPLES.glob("*.JPEG"))
    if not paths:
        pytest.skip(f"no ImageNet samples in {SAMPLES}")
    for path in paths:
        assert_like_torchvision(path.read_bytes(), 224, 224, 256, interpolation)


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    crop=st.tuples(st.integers(1, 48), st.integers(1, 48)),
    resize_shorter_side=st.integers(1, 48),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
def test_any_size_equals_torchvision_to_the_pixel(size, crop, resize_shorter_side, interpolation):
    assert_like_torchvision(encode(noise(*size)), *crop, resize_shorter_side, interpolation)


@pytest.mark.parametrize(("width", "height"), [(10, 10), (9, 31), (31, 9), (23, 24), (24, 23), (1, 1)])
def test_crop_larger_than_image_is_padded_as_torchvision_pads(width, height):
    assert_like_torchvision(encode(noise(width, height)), resize_shorter_side=min(width, height))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P"])
def test_png_modes_are_converted_as_the_training_loader_does(mode):
    image = noise(40, 30).quantize(64) if mode == "P" else noise(40, 30, mode)
    assert_like_torchvision(encode(image))


@pytest.mark.parametrize("transparency", [3, bytes(range(64))])
def test_palette_transparency_is_dropped_without_a_warning(transparency):
    assert_like_torchvision(encode(noise(40, 30).quantize(64), transparency=transparency))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_modes_are_converted_as_the_training_loader_does(mode):
    assert_like_torchvision(encode(noise(40, 30, mode), "JPEG"))
    assert_like_torchvision(encode(noise(40, 30, mode), "JPEG", progressive=True))


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_equals_the_training_loader(mode, options):
    assert_like_torchvision(encode(noise(40, 30, mode), "WEBP", **options))


@pytest.mark.parametrize("format", ["WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(format):
    first, second = noise(40, 30, seed=1), noise(40, 30, seed=2)
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(first, format, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(decode(data), decode(encode(first)))


def test_exif_orientation_is_ignored_as_in_training():
    image = noise(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert_like_torchvision(encode(image, "JPEG", exif=exif))
    np.testing.assert_array_equal(decode(encode(image, "JPEG", exif=exif)), decode(encode(image, "JPEG")))


def test_one_channel_is_grey():
    data = encode(noise(40, 30))
    grey = decode(data, channels=1)
    assert grey.shape == (24, 24, 1)
    np.testing.assert_array_equal(grey, from_torchvision(data, 24, 24, 32, mode="L"))


def test_huge_image_is_refused_by_its_header_in_little_memory():
    data = png_of_size(20_000, 20_000, bytes(1000))
    assert len(data) < 200
    tracemalloc.start()
    with pytest.raises(ImageError, match="20000 x 20000 = 400000000 pixels, at most 50000000 are accepted"):
        decode(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**20


@pytest.mark.parametrize("size", [(20_000, 20_000), (16_384, 16_384)])
@pytest.mark.parametrize("format", ["JPEG", "VP8X", "VP8L", "VP8 "])
def test_huge_size_in_any_format_is_refused_by_the_header(format, size):
    width, height = size
    if format == "JPEG":
        data = bytearray(encode(noise(8, 8), "JPEG"))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    else:
        if format != "VP8X":
            width = height = 16_383
        body = {
            "VP8X": bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
            "VP8L": b"\x2f" + (width - 1 | (height - 1) << 14).to_bytes(4, "little") + bytes(5),
            "VP8 ": b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", width, height),
        }[format]
        data = b"RIFF" + (22).to_bytes(4, "little") + b"WEBP" + format.encode() + struct.pack("<I", 10) + body
    with pytest.raises(ImageError, match=f"{width} x {height} = .* pixels, at most 50000000"):
        decode(bytes(data))


def test_absurd_aspect_ratio_is_refused_before_decoding():
    with pytest.raises(ImageError, match=r"becomes 32 x 1600000000 .*above the 50000000"):
        decode(png_of_size(1, 50_000_000))
    with pytest.raises(ImageError, match="becomes 1600000000 x 32"):
        decode(png_of_size(50_000_000, 1))


def test_bound_is_inclusive_and_the_callers_to_choose():
    data = encode(noise(40, 30))
    decode(data, resize_shorter_side=30, max_pixels=1200)
    with pytest.raises(ImageError, match="at most 1199"):
        decode(data, resize_shorter_side=30, max_pixels=1199)


def test_bound_above_pillows_own_is_honoured_without_a_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    for format in ("PNG", "JPEG", "WEBP"):
        assert decode(encode(noise(40, 30), format)).shape == (24, 24, 3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.5, 0.9])
def test_truncated_file_is_refused(format, kept):
    data = encode(noise(200, 150), format)
    with pytest.raises(ImageError, match="send the whole file"):
        decode(data[: int(len(data) * kept)])


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", r"nothing \(0 bytes\)"),
        (b"cat.jpg\n", "text of 8 bytes beginning 'cat.jpg"),
        (b"version https://git-lfs.github.com/spec/v1\n", "text of 43 bytes"),
        (encode(noise(8, 8), "GIF"), "a GIF"),
        (encode(noise(8, 8), "BMP"), "a BMP"),
        (encode(noise(8, 8), "TIFF"), "a TIFF"),
        (encode(noise(8, 8), "AVIF"), "an AVIF"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x00\x01\x02\x03", "data of 4 bytes beginning with 00 01 02 03"),
    ],
)
def test_other_formats_are_refused_naming_what_came_and_what_is_accepted(data, named):
    with pytest.raises(ImageError, match=named + ".* where a JPEG, PNG or WebP file is expected"):
        decode(data)


def test_png_without_pixels_is_refused():
    with pytest.raises(ImageError, match="damaged header"):
        decode(png_of_size(0, 5))
    with pytest.raises(ImageError, match="truncated"):
        decode(png_of_size(5, 5))


def test_damaged_extras_neither_warn_nor_stop_the_picture():
    image = noise(40, 30)
    png = encode(image)
    invalid_animation = png[:33] + png_chunk(b"acTL", b"") + png[33:]
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHII", 0x011A, 5, 1, 0x7FFFFFFF)
    damaged_exif = encode(image, "JPEG", exif=exif)
    np.testing.assert_array_equal(decode(invalid_animation), decode(png))
    np.testing.assert_array_equal(decode(damaged_exif), decode(encode(image, "JPEG")))


def test_compressed_texts_are_never_inflated():
    png = encode(noise(40, 30))
    bomb = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24)))
    np.testing.assert_array_equal(decode(png[:33] + bomb * 80 + png[33:]), decode(png))


VALID = [encode(noise(20, 15), "PNG"), encode(noise(20, 15), "JPEG"), encode(noise(20, 15), "WEBP")]


@settings(max_examples=400, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.sampled_from(VALID).flatmap(lambda data: st.binary(max_size=60).map(lambda tail: data[:24] + tail)),
        st.tuples(
            st.sampled_from(VALID),
            st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
        ).map(lambda pair: with_bytes_changed(*pair)),
    )
)
def test_any_bytes_are_an_image_or_an_image_error(data):
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        with suppress(ImageError):
            assert decode(data, max_pixels=100_000).shape == (24, 24, 3)
    assert not issued


def with_bytes_changed(data, changes):
    changed = bytearray(data)
    for position, value in changes:
        changed[position % len(data)] = value
    return bytes(changed)


def test_many_threads_decode_at_once():
    files = [encode(noise(40 + i, 30 + i, seed=i), ("PNG", "JPEG", "WEBP")[i % 3]) for i in range(12)]
    expected = [decode(data) for data in files]
    barrier = threading.Barrier(4)

    def decode_all(_):
        barrier.wait(timeout=30)
        return [decode(data) for data in files]

    with ThreadPoolExecutor(4) as pool:
        for decoded in pool.map(decode_all, range(4)):
            for mine, wanted in zip(decoded, expected, strict=True):
                np.testing.assert_array_equal(mine, wanted)


def test_pillows_globals_are_untouched():
    from PIL import ImageFile

    assert Image.MAX_IMAGE_PIXELS == 89478485
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def large_jpeg(width: int, height: int) -> bytes:
    """A smooth picture, as photographs are at the scale of a pixel."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 255 // (height + width)], -1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.mark.parametrize("size", [(801, 603), (400, 1000), (2048, 64)])
def test_fast_decoding_of_a_large_jpeg_differs_little(size: tuple[int, int]) -> None:
    data = large_jpeg(*size)
    full, fast = (decode_image(data, height=32, width=32, resize_shorter_side=36, fast=fast) for fast in (False, True))
    assert fast.shape == full.shape
    assert np.abs(fast.astype(int) - full).max() <= 4


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_fast_decoding_leaves_small_pictures_and_other_formats_alone(format: str) -> None:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels if format == "JPEG" else pixels.repeat(8, 0).repeat(8, 1)).save(file, format)
    full, fast = (
        decode_image(file.getvalue(), height=32, width=32, resize_shorter_side=36, fast=fast) for fast in (False, True)
    )
    assert np.array_equal(full, fast)


def test_a_progressive_jpeg_that_goes_over_its_pixels_again_and_again_is_stopped() -> None:
    file = io.BytesIO()
    Image.new("RGB", (2000, 1500)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    # Its last scan, of 42 bytes or so, a thousand times: seconds of work.
    scan = data[data.rfind(b"\xff\xda") : -2]
    endless = data[:-2] + 1000 * scan + data[-2:]
    assert len(endless) < 100_000
    size = {"height": 8, "width": 8, "resize_shorter_side": 8}
    assert decode_image(data, **size, timeout_s=30.0).shape == (8, 8, 3)
    begun = time.process_time()
    with pytest.raises(ImageError, match="takes too long to decode; send it smaller, or not progressive"):
        decode_image(endless, **size, timeout_s=0.05)
    assert time.process_time() - begun < 1.0
