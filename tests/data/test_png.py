"""OpenCV is the oracle: what `decode_greys` decodes is what OpenCV decodes, and it leaves the rest alone."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rgbd_reid_jax.data.png import decode_greys


def by_opencv(encoded: bytes) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)


def picture(random: np.random.Generator, height: int, width: int, dtype: type = np.uint16) -> np.ndarray:
    return random.integers(0, np.iinfo(dtype).max, (height, width), dtype=dtype, endpoint=True)


def opencv_png(image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(".png", image, options)[1].tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def written(image: np.ndarray, filters: list[int], *more: bytes, interlaced: int = 0) -> bytes:
    """A PNG file with "None" (0) or "Sub" (1) for each line, and further chunks before its pixels."""
    size = image.dtype.itemsize
    raw = image.astype(image.dtype.newbyteorder(">")).view(np.uint8).reshape(len(image), -1)
    less = raw.copy()
    less[:, size:] -= raw[:, :-size]
    lines = b"".join(bytes([f]) + (less if f else raw)[row].tobytes() for row, f in enumerate(filters))
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8 * size, 0, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.booleans()), max_size=6)
)
def test_what_opencv_writes(seed, shapes):
    random = np.random.default_rng(seed)
    images = [picture(random, height, width, (np.uint8, np.uint16)[deep]) for height, width, deep in shapes]
    for found, image in zip(decode_greys([opencv_png(image) for image in images]), images, strict=True):
        assert found is not None
        assert found.dtype == image.dtype
        np.testing.assert_array_equal(found, image)


def test_large_images_side_by_side():
    images = [picture(np.random.default_rng(seed), 240, 160) for seed in range(5)]
    np.testing.assert_array_equal(decode_greys([opencv_png(image) for image in images]), images)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from([0, 1]), min_size=1, max_size=9), st.booleans())
def test_lines_with_and_without_a_filter(seed, filters, deep):
    image = picture(np.random.default_rng(seed), len(filters), 7, (np.uint8, np.uint16)[deep])
    encoded = written(image, filters)
    np.testing.assert_array_equal(by_opencv(encoded), image)
    np.testing.assert_array_equal(decode_greys([encoded])[0], image)


_IMAGE = picture(np.random.default_rng(0), 12, 9)
_OTHERS = {
    "filter Up": opencv_png(_IMAGE, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
    "filter Average": opencv_png(_IMAGE, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG),
    "filter Paeth": opencv_png(_IMAGE, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH),
    "colour": opencv_png(np.dstack([_IMAGE] * 3)),
    "one bit": opencv_png(_IMAGE.astype(np.uint8) & 1, cv2.IMWRITE_PNG_BILEVEL, 1),
    "another chunk": written(_IMAGE, [1] * 12, chunk(b"tRNS", b"\0\1")),
    "interlaced": written(_IMAGE, [1] * 12, interlaced=1),
    "too few lines": written(_IMAGE, [1] * 11),
    "too many lines": written(np.pad(_IMAGE, ((0, 1), (0, 0))), [1] * 13).replace(
        struct.pack(">II", 9, 13), struct.pack(">II", 9, 12)
    ),
    "JPEG": cv2.imencode(".jpg", _IMAGE.astype(np.uint8))[1].tobytes(),
    "nothing": b"",
}


@pytest.mark.parametrize("name", _OTHERS)
def test_the_rest_is_left_to_others_without_harm_to_neighbours(name):
    usual = opencv_png(_IMAGE)
    before, found, after = decode_greys([usual, _OTHERS[name], usual])
    assert found is None
    np.testing.assert_array_equal(before, _IMAGE)
    np.testing.assert_array_equal(after, _IMAGE)


def test_what_pillow_writes(tmp_path):
    Image.fromarray(_IMAGE).save(tmp_path / "a.png")
    encoded = (tmp_path / "a.png").read_bytes()
    found = decode_greys([encoded])[0]
    assert found is None or (found == by_opencv(encoded)).all()


def test_every_cut_and_every_changed_byte():
    """A damaged file is left alone, or has nothing but an unread checksum changed."""
    usual = opencv_png(_IMAGE)
    damaged = [usual[:size] for size in range(len(usual))]
    for place in range(len(usual)):
        for bit in (1, 128):
            damaged.append(usual[:place] + bytes([usual[place] ^ bit]) + usual[place + 1 :])
    np.testing.assert_array_equal(decode_greys([usual])[0], by_opencv(usual))
    for found in decode_greys(damaged):
        assert found is None or (found == _IMAGE).all()


def test_a_few_bytes_that_inflate_to_many_are_not_inflated():
    header = struct.pack(">IIBBBBB", 4, 4, 16, 0, 0, 0, 0)
    bomb = chunk(b"IDAT", zlib.compress(bytes(1 << 28)))
    assert decode_greys([b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + bomb + chunk(b"IEND", b"")]) == [None]
