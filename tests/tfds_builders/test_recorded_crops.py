"""Windows, crops and their intrinsics against arithmetic of whole numbers and projections by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfds_builders.recorded import crops

SIZES = st.integers(1, 40)
WINDOWS = st.builds(crops.Window, st.integers(-30, 50), st.integers(-30, 50), SIZES, SIZES)


def _sources(window_size: int, size: int) -> list[set[int]]:
    """For each pixel of the result the source pixels that hold its centre: two where it lies on their edge."""
    found = []
    for pixel in range(size):
        numerator, denominator = (2 * pixel + 1) * window_size, 2 * size
        found.append({numerator // denominator, (numerator - (numerator % denominator == 0)) // denominator})
    return found


@given(SIZES, SIZES, WINDOWS, SIZES, SIZES)
@settings(max_examples=300, deadline=None)
def test_nearest_takes_the_pixel_under_each_centre(rows, columns, window, height, width):
    image = np.arange(1, rows * columns + 1, dtype=np.uint16).reshape(rows, columns)
    result = crops.cut(image, window, height, width, nearest=True)
    assert result.shape == (height, width)
    assert result.dtype == np.uint16
    down, across = _sources(window.height, height), _sources(window.width, width)
    for row in range(height):
        for column in range(width):
            allowed = set()
            for y in down[row]:
                for x in across[column]:
                    y_image, x_image = y + window.top, x + window.left
                    inside = 0 <= y_image < rows and 0 <= x_image < columns
                    allowed.add(int(image[y_image, x_image]) if inside else 0)
            assert int(result[row, column]) in allowed


@given(SIZES, SIZES, WINDOWS)
@settings(max_examples=100, deadline=None)
def test_a_window_of_the_result_s_size_is_copied(rows, columns, window):
    image = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    padded = np.pad(image, ((100, 100), (100, 100), (0, 0)))
    expected = padded[100 + window.top :, 100 + window.left :][: window.height, : window.width]
    for nearest in (True, False):
        result = crops.cut(image, window, window.height, window.width, nearest=nearest)
        assert np.array_equal(result, expected)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_shrinking_by_a_whole_factor_takes_means(height, width, down, across):
    image = np.random.default_rng(1).integers(0, 256, (height * down, width * across, 3), dtype=np.uint8)
    result = crops.cut(image, crops.Window(0, 0, *image.shape[:2]), height, width, nearest=False)
    means = image.reshape(height, down, width, across, 3).astype(float).mean(axis=(1, 3))
    np.testing.assert_allclose(result, means, atol=0.51)


def test_depths_are_never_mixed():
    depth = np.array([[1000, 4000]] * 2, np.uint16)
    large = crops.cut(depth, crops.Window(0, 0, 2, 2), 64, 48, nearest=True)
    assert set(np.unique(large)) == {1000, 4000}
    assert np.all(large[:, :24] == 1000)
    assert np.all(large[:, 24:] == 4000)


BOXES = st.tuples(st.integers(-50, 500), st.integers(-50, 500), st.integers(1, 400), st.integers(1, 400))


@given(BOXES, st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.floats(0, 0.5))
@settings(max_examples=300, deadline=None)
def test_a_window_holds_its_box_in_the_middle_with_its_aspect(box, aspect, margin):
    top, left, height, width = box
    bottom, right = top + height, left + width
    window = crops.around(top, left, bottom, right, aspect=aspect, margin=margin)
    assert window.top <= top
    assert window.left <= left
    assert window.top + window.height >= bottom
    assert window.left + window.width >= right
    assert abs(window.top + window.height / 2 - (top + bottom) / 2) <= 0.5
    assert abs(window.left + window.width / 2 - (left + right) / 2) <= 0.5
    wanted = max(height, width * aspect) * (1 + 2 * margin)
    assert abs(window.height - wanted) <= 0.5
    assert abs(window.width - wanted / aspect) <= 0.5 + 1e-9 or window.width == 1


def test_windows_of_hand_numbers():
    assert crops.around(10, 20, 110, 50, aspect=2, margin=0.1) == crops.Window(0, 5, 120, 60)
    assert crops.around(0, 0, 10, 100, aspect=2, margin=0) == crops.Window(-95, 0, 200, 100), "wide boxes: padded rows"
    assert crops.whole(np.zeros((480, 640, 3)), 2.0) == crops.Window(-400, 0, 1280, 640)
    assert crops.around(5, 5, 5, 5, aspect=2, margin=0).height == 1


@given(st.integers(1, 12), st.integers(1, 12), st.data())
@settings(max_examples=200, deadline=None)
def test_a_mask_s_box_is_that_of_its_pixels(rows, columns, data):
    cells = data.draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1)), max_size=5))
    mask = np.zeros((rows, columns), np.uint8)
    for cell in cells:
        mask[cell] = 255
    ys, xs = zip(*cells, strict=True) if cells else ([-1], [-1])
    expected = (min(ys), min(xs), max(ys) + 1, max(xs) + 1) if cells else (0, 0, 0, 0)
    assert crops.mask_box(mask) == expected


@given(
    st.tuples(st.floats(100, 2000), st.floats(100, 2000), st.floats(0, 1000), st.floats(0, 1000)),
    WINDOWS,
    SIZES,
    SIZES,
    st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.5, 10)),
)
@settings(max_examples=200, deadline=None)
def test_intrinsics_of_a_crop_project_where_the_crop_shows_the_point(intrinsics, window, height, width, point):
    fx, fy, cx, cy = intrinsics
    x, y, z = point
    column, row = fx * x / z + cx, fy * y / z + cy  # pixel-edge coordinates of the frame
    expected = (column - window.left) * width / window.width, (row - window.top) * height / window.height
    fx, fy, cx, cy = (float(v) for v in crops.window_intrinsics(np.array(intrinsics), window, height, width))
    assert (fx * x / z + cx, fy * y / z + cy) == pytest.approx(expected, rel=1e-4, abs=1e-2)


def test_unknown_intrinsics_stay_unknown():
    found = crops.window_intrinsics(np.zeros(4), crops.Window(3, 4, 10, 5), 20, 10)
    assert found.dtype == np.float32
    assert not found.any()
