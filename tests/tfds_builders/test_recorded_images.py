"""Reading damaged, mislabelled and hostile images; PGM against what OpenCV and Pillow write."""

import io
import pathlib
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.recorded import images
from tfds_builders.recorded.frames import BadFrame

RANDOM = np.random.default_rng(0)
RGB = cv2.resize(RANDOM.integers(0, 255, (6, 8, 3), dtype=np.uint8), (32, 24), interpolation=cv2.INTER_LINEAR)
DEPTH = np.linspace(500, 4000, 24 * 32).reshape(24, 32).astype(np.uint16)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def encoded(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("images")


def put(root: pathlib.Path, content: bytes, name: str = "image") -> str:
    (root / name).write_bytes(content)
    return name


def pgm(samples: np.ndarray, *, header: bytes | None = None, order: str = ">") -> bytes:
    height, width = samples.shape
    maxval = 255 if samples.dtype == np.uint8 else 65535
    stored = samples if samples.dtype == np.uint8 else samples.astype(f"{order}u2")
    return (header or f"P5\n{width} {height}\n{maxval}\n".encode()) + stored.tobytes()


@given(st_numpy.arrays(st.sampled_from([np.uint8, np.uint16]), SHAPES))
@settings(max_examples=60, deadline=None)
def test_pgm_as_opencv_and_pillow_write_it(root, samples):
    maxval = 255 if samples.dtype == np.uint8 else 65535
    done, by_opencv = cv2.imencode(".pgm", samples)
    assert done
    for content in (by_opencv.tobytes(), encoded(samples, "PPM"), pgm(samples)):
        found = images.read_pgm(root, put(root, content), maxval=maxval)
        assert found.dtype == samples.dtype
        assert np.array_equal(found, samples)


@pytest.mark.parametrize(
    "header",
    [
        b"P5 32 24 65535\n",
        b"P5\n# GIMP wrote this\n32 24\n65535\n",
        b"P5\n#\n# two\n32 # within\n24\n#65535\n65535 ",
        b"P5#at once\n\t32\r\n24\r\n65535\r",
    ],
)
def test_pgm_headers_may_hold_comments(root, header):
    found = images.read_pgm(root, put(root, pgm(DEPTH, header=header)), maxval=65535)
    assert np.array_equal(found, DEPTH)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"P2\n2 2\n255\n1 2 3 4\n", "it is no binary PGM: it starts with b'P2'"),
        (b"\x89PNG", "it is no binary PGM"),
        (b"P5\n2 2\n", "it is no binary PGM"),
        (b"P5\n-2 2\n65535\n", "it is no binary PGM"),
        (b"P5\n2 2\n65535\n1234567", "it has 7 bytes of samples instead of 8"),
        (b"P5\n2 2\n65535\n123456789", "it has 9 bytes of samples instead of 8"),
        (b"P5\n0 2\n65535\n", "it claims 0x2 pixels"),
    ],
)
def test_a_pgm_that_is_not_whole_is_left_out(root, content, words):
    with pytest.raises(BadFrame) as caught:
        images.read_pgm(root, put(root, content, "d.pgm"), maxval=65535)
    assert caught.value.finding.kind == "corrupt"
    assert caught.value.finding.file == "d.pgm"
    assert words in caught.value.finding.words


def test_a_pgm_of_another_maxval_is_an_error(root):
    with pytest.raises(InputError, match=r"d\.pgm is a PGM with maxval 2047, expected 65535"):
        images.read_pgm(root, put(root, b"P5\n2 2\n2047\n12345678", "d.pgm"), maxval=65535)
    with pytest.raises(InputError, match=r"maxval 255, expected 65535"):
        images.read_depth(root, put(root, pgm(np.ones((2, 2), np.uint8)), "d.pgm"))


def test_a_hostile_header_takes_no_time(root):
    name = put(root, b"P5" + b" #" * 2000)
    began = time.process_time()
    with pytest.raises(BadFrame):
        images.read_pgm(root, name, maxval=255)
    assert time.process_time() - began < 5, "a pattern with two ways to match would take ages"


def test_byte_order(root):
    right = images.read_pgm(root, put(root, pgm(DEPTH)), maxval=65535)
    images.check_byte_order(root, "d.pgm", right)
    swapped = images.read_pgm(root, put(root, pgm(DEPTH, order="<")), maxval=65535)
    with pytest.raises(InputError, match=r"d\.pgm: .* exceed 20 m and 0 % do with their bytes swapped"):
        images.check_byte_order(root, "d.pgm", swapped)
    images.check_byte_order(root, "d.pgm", np.zeros((4, 4), np.uint16))
    tenths = DEPTH * np.uint16(10)
    images.check_byte_order(root, "d.pgm", tenths, 0.1)
    with pytest.raises(InputError, match="little-endian"):
        images.check_byte_order(root, "d.pgm", (DEPTH // 2).byteswap(), 2.0)


COLOUR = {
    "jpg": encoded(RGB, "JPEG"),
    "progressive": encoded(RGB, "JPEG", progressive=True),
    "png": encoded(RGB, "PNG"),
    "bmp": encoded(RGB, "BMP"),
    "webp": encoded(RGB, "WEBP"),
    "ppm": encoded(RGB, "PPM"),
    "tif": encoded(RGB, "TIFF"),
}


@pytest.mark.parametrize("kind", COLOUR)
def test_colour_is_what_pillow_decodes(root, kind):
    found = images.read_rgb(root, put(root, COLOUR[kind], f"c.{kind}"))
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(COLOUR[kind])).convert("RGB")))


@pytest.mark.parametrize(
    ("kind", "tail"), [*((kind, b"") for kind in COLOUR), *((kind, b"\0") for kind in ("jpg", "progressive", "png"))]
)
def test_a_file_that_ends_early_is_never_partly_grey(root, kind, tail):
    """Cut, or with a tail of zeros as half a copy leaves it; formats without any redundancy cannot tell the latter."""
    content = COLOUR[kind]
    whole = images.read_rgb(root, put(root, content))
    ends = sorted({*range(1, len(content), max(len(content) // 150, 1)), *range(len(content) - 20, len(content))})
    noticed = 0
    for end in ends:
        name = put(root, content[:end] + tail * (len(content) - end))
        try:
            found = images.read_rgb(root, name)
        except BadFrame as bad:
            noticed += bad.finding.kind == "corrupt" and "\n" not in bad.finding.words
        else:
            assert np.array_equal(found, whole), f"the first {end} of {len(content)} bytes"
    assert noticed > 0.9 * len(ends)


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_png_with_a_changed_byte_is_noticed_or_the_same(root, place, change):
    for content, read in ((COLOUR["png"], images.read_rgb), (images.encode_png(DEPTH), images.read_depth)):
        whole = read(root, put(root, content))
        harmed = bytearray(content)
        harmed[place % len(content)] ^= change
        name = put(root, bytes(harmed))
        try:
            found = read(root, name)
        except (BadFrame, InputError):
            continue
        assert np.array_equal(found, whole)


def test_a_grey_colour_image_has_three_equal_channels(root):
    grey = RGB[..., 0]
    found = images.read_rgb(root, put(root, encoded(grey, "PNG")))
    assert np.array_equal(found, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(
    "content", [encoded(DEPTH, "PNG"), encoded(DEPTH, "TIFF"), encoded(DEPTH.astype(np.float32), "TIFF")]
)
def test_depth_where_colour_is_declared_is_an_error(root, content):
    with pytest.raises(InputError, match="where a colour image is declared; are folders swapped"):
        images.read_rgb(root, put(root, content))


def test_colour_that_a_viewer_would_turn_is_an_error(root):
    """A depth image beside it has no such tag, so the two would not be aligned."""
    for turned in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = turned
        file = put(root, encoded(RGB, "JPEG", exif=exif))
        if turned == 1:
            assert images.read_rgb(root, file).shape == RGB.shape
    with pytest.raises(InputError, match="says by EXIF orientation 6 that viewers should turn it"):
        images.read_rgb(root, file)


def test_depth_of_every_format(root):
    for options in ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}):
        assert np.array_equal(images.read_depth(root, put(root, encoded(DEPTH, "TIFF", **options))), DEPTH)
    assert np.array_equal(images.read_depth(root, put(root, encoded(DEPTH.astype(np.int32), "TIFF"))), DEPTH)
    big = encoded(Image.fromarray(DEPTH.astype(">u2")), "TIFF")
    assert np.array_equal(images.read_depth(root, put(root, big)), DEPTH)
    assert np.array_equal(images.read_depth(root, put(root, images.encode_png(DEPTH))), DEPTH)
    assert np.array_equal(images.read_depth(root, put(root, pgm(DEPTH), "D.PGM")), DEPTH)
    grey = (DEPTH // 16).astype(np.uint8)
    for content in (encoded(grey, "PNG"), encoded(np.stack([grey] * 3, axis=-1), "PNG")):
        found = images.read_depth(root, put(root, content), bits=8)
        assert found.dtype == np.uint16
        assert np.array_equal(found, grey)
    assert np.array_equal(images.read_depth(root, put(root, pgm(grey), "g.pgm"), bits=8), grey)
    jpeg = images.read_depth(root, put(root, encoded(grey, "JPEG", quality=95)), bits=8)
    assert np.abs(jpeg.astype(int) - grey).max() < 16


@pytest.mark.parametrize(
    ("content", "bits", "words"),
    [
        (encoded(RGB, "PNG"), 16, "has RGB samples where 16-bit depth is declared"),
        (encoded(RGB[..., 0], "PNG"), 16, "has 8-bit samples where 16-bit depth is declared"),
        (encoded(RGB[..., 0], "JPEG"), 16, "has 8-bit samples"),
        (encoded(RGB, "JPEG"), 8, "not the 8-bit grey depth that is declared"),
        (encoded(DEPTH, "PNG"), 8, "not the 8-bit grey depth that is declared"),
    ],
)
def test_depth_of_another_kind_is_an_error(root, content, bits, words):
    with pytest.raises(InputError) as caught:
        images.read_depth(root, put(root, content), bits=bits)
    assert words in str(caught.value)
    assert "folders swapped" in str(caught.value)


def test_depth_beyond_16_bits_is_left_out(root):
    for value in (-1, 65536):
        with pytest.raises(BadFrame, match="it has samples from"):
            images.read_depth(root, put(root, encoded(np.full((2, 2), value, np.int32), "TIFF")))


def test_files_that_are_not_there_or_empty_are_left_out(root, tmp_path):
    with pytest.raises(BadFrame) as caught:
        images.read_rgb(root, "nowhere.png")
    assert caught.value.finding.kind == "unpaired"
    for name in ("e.jpg", "e.pgm"):
        put(root, b"", name)
        with pytest.raises(BadFrame) as caught:
            images.read_depth(root, name)
        assert caught.value.finding.kind == "empty_file"
    with pytest.raises(BadFrame, match=r"does not decode \(it is no image of a known format\)"):
        images.read_rgb(root, put(root, b"not an image"))
    with pytest.raises(InputError, match="cannot read"):
        images.read_rgb(tmp_path.parent, tmp_path.name)  # a folder


def _bomb(kind: str, side: int) -> bytes:
    if kind == "png":
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    if kind == "pgm":
        return f"P5\n{side} {side}\n65535\n".encode() + bytes(100)
    if kind == "bmp":
        return struct.pack("<2sIHHI", b"BM", 154, 0, 0, 54) + struct.pack(
            "<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0
        )
    harmed = bytearray(COLOUR["jpg"])
    start = harmed.index(b"\xff\xc0") + 5
    harmed[start : start + 4] = struct.pack(">HH", side, side)
    return bytes(harmed)


@pytest.mark.parametrize("kind", ["png", "pgm", "bmp", "jpg"])
@pytest.mark.parametrize("side", [9000, 60_000])
def test_a_bomb_is_refused_before_its_pixels_are_made(root, kind, side):
    name = put(root, _bomb(kind, side), f"bomb.{kind}")
    read = images.read_depth if kind == "pgm" else images.read_rgb
    with pytest.raises(InputError, match=r"bomb\.\w+ claims .*pixels.* no camera here") as caught:
        read(root, name)
    assert "\n" not in str(caught.value)


def test_masks_of_every_kind(root):
    expected = np.where(DEPTH > 2000, 255, 0).astype(np.uint8)
    person = DEPTH > 2000
    palette = Image.fromarray(person.astype(np.uint8) * 3, "L").convert("P")
    colour = np.where(person[..., None], np.array([0, 0, 9]), 0).astype(np.uint8)
    opaque = np.concatenate([colour, np.full((*person.shape, 1), 255, np.uint8)], axis=-1)
    for image in (expected, person, person.astype(np.uint8), person.astype(np.uint16), palette, colour, opaque):
        found = images.read_mask(root, put(root, encoded(image, "PNG")))
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)


@given(st_numpy.arrays(st.sampled_from([np.uint8, np.uint16]), SHAPES))
@settings(max_examples=50, deadline=None)
def test_encoded_png_decodes_to_the_same(image):
    decoded = cv2.imdecode(np.frombuffer(images.encode_png(image), np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert decoded.dtype == image.dtype
    assert np.array_equal(decoded, image)


def test_encoded_colour_is_rgb():
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(images.encode_png(RGB)))), RGB)
