"""Frames of BIWI RGBD-ID's raw tree: geometry of drawn boxes, user maps, skeletons, faulty files."""

import io
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.biwi_rgbd_id import biwi_rgbd_id_dataset_builder as builder_lib
from tfds_builders.biwi_rgbd_id import example_tree, read, scan
from tfds_builders.recorded import crops, tree
from tfds_builders.recorded.frames import BadFrame, Frame

KNOBS = {"height": 256, "width": 128, "crop_margin": 0.06}
BOX = example_tree.shots()[0]  # one plain box, 600 x 1600 mm at 2.5 m


@pytest.fixture(scope="module")
def raw_tree(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("raw")
    example_tree.write(root)
    return root


def frames_of(root: pathlib.Path, recordings: str = "all") -> list[Frame]:
    found = scan.scan(root, tree.listing(root), identities="people", recordings=recordings, fold=0, seed=0)
    return [frame for frames in found.frames.values() for frame in frames]


def overlap(root: pathlib.Path, found: list[Frame]) -> float:
    """The least intersection over union of figure and mask in stored crops; a figure is what is no wall."""
    least = 1.0
    for frame in found:
        record = read.read_frame(root, frame, KNOBS)
        rgb, mask = decoded(record["rgb"]), decoded(record["mask"]) > 0
        wall = example_tree.WALLS[frame.camera_id]
        seen = (np.abs(rgb.astype(int) - wall).max(axis=2) > 25) & (rgb.max(axis=2) > 12)  # black: out of the frame
        least = min(least, (seen & mask).sum() / (seen | mask).sum())
    return least


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_figures_lie_on_their_masks_everywhere(raw_tree, monkeypatch):
    frames = frames_of(raw_tree, "still")
    assert overlap(raw_tree, frames) > 0.93

    def doubled(window, depth_mm, scale):
        return crops.Window(*(round(scale * side) for side in (window.top, window.left, window.height, window.width)))

    monkeypatch.setattr(read, "colour_window", doubled)
    assert overlap(raw_tree, frames) < 0.8  # what plain doubling of pixels would give


def test_colour_window_follows_the_published_formula():
    generator = np.random.default_rng(0)
    for _ in range(200):
        top, left, height, width = generator.integers([-20, -20, 100, 50], [200, 400, 400, 200])
        z = generator.uniform(800, 5000)
        window = read.colour_window(crops.Window(top, left, height, width), z, 2.0)

        def seen(u, v, z=z):  # of pixel centres at whole numbers
            return 2 * (525 * ((u - 319.5) / 575.8 + 25 / z) + 319.5), 2 * (525 * (v - 239.5) / 575.8 + 239.5)

        (u, v), (u_end, v_end) = seen(left - 0.5, top - 0.5), seen(left + width - 0.5, top + height - 0.5)
        assert abs(window.left - u) < 1.51
        assert abs(window.top - v) < 1.51
        assert abs(window.width - (u_end - u)) <= 1
        assert abs(window.height - (v_end - v)) <= 1


def test_half_size_colour_images_give_the_same_crop(raw_tree, tmp_path):
    frame = frame_of_box(raw_tree, tmp_path)
    whole = decoded(read.read_frame(tmp_path, frame, KNOBS)["rgb"]).astype(int)
    with Image.open(tmp_path / frame.rgb) as image:
        small = image.resize((640, 480), Image.Resampling.BOX)
    small.save(tmp_path / frame.rgb, quality=95)
    again = decoded(read.read_frame(tmp_path, frame, KNOBS)["rgb"]).astype(int)
    assert np.median(np.abs(again - whole)) <= 3
    assert (np.abs(again - whole).max(axis=2) > 60).mean() < 0.02


def frame_of_box(source: pathlib.Path, root: pathlib.Path) -> Frame:
    """The known box's frame, its files copied below `root`."""
    (frame,) = (one for one in frames_of(source) if one.rgb.startswith(BOX.stem))
    for path in (frame.rgb, frame.depth, frame.mask, frame.extra["skeleton"], frame.extra["ground"]):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / path, root / path)
    return frame


def _map_of(*areas: tuple[int, int]) -> np.ndarray:
    """A user map with stripes of (index, number of pixels)."""
    users = np.zeros(480 * 640, np.uint8)
    start = 0
    for index, area in areas:
        users[start : start + area] = index
        start += area + 1000
    return users.reshape(480, 640)


@pytest.mark.parametrize(
    ("areas", "person"),
    [
        ([(6, 30_000)], {6}),
        ([(2, 30_000), (5, 1_500)], {2, 5}),  # lost and found: parts of one person
        ([(1, 9_000), (3, 30_000)], {3}),  # two people: the larger
        ([(4, 2_500), (2, 40_000), (5, 100)], {2}),
    ],
)
def test_the_person_among_user_indices(areas, person):
    users = _map_of(*areas)
    assert set(np.unique(users[read.person_mask(users)])) == person
    assert read.person_mask(users).sum() == sum(area for index, area in areas if index in person)


def _lines(shot: example_tree.Shot, shift: float = 0.0) -> str:
    rows = example_tree.joints(shot)
    rows[:, 4] += shift
    return "".join(",".join(f"{value:.4f}" for value in row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("text", "first_u"),
    [
        (_lines(BOX, 200) + _lines(BOX), 0.0),
        (_lines(BOX, 5) + _lines(BOX, 300), 5.0),
        (_lines(BOX) + _lines(BOX, 200)[:300], 0.0),  # the second person's rows were cut off
        (_lines(BOX).replace("0.0000", "-1.#IND", 1), 0.0),
        (_lines(BOX, 200), None),
        ("", None),
        ("\n\n", None),
        ("no numbers here\n", None),
        (_lines(BOX)[:400], None),
        ("1,2,3\n" * 20, None),
    ],
)
def test_skeleton_of_the_person_on_the_mask(raw_tree, tmp_path, text, first_u):
    frame = frame_of_box(raw_tree, tmp_path)
    alone = read.read_frame(tmp_path, frame, KNOBS)["skeleton"]
    (tmp_path / frame.extra["skeleton"]).write_text(text)
    joints = read.read_frame(tmp_path, frame, KNOBS)["skeleton"]
    assert joints.shape == (20, 10)
    assert joints.dtype == np.float32
    if first_u is None:
        assert np.isnan(joints).all()
    else:
        np.testing.assert_allclose(joints[:, 3] - alone[:, 3], first_u * 256 / 412, atol=1e-3)


def test_missing_optional_files_are_nan(raw_tree, tmp_path):
    frame = frame_of_box(raw_tree, tmp_path)
    (tmp_path / frame.extra["skeleton"]).unlink()
    (tmp_path / frame.extra["ground"]).write_text("0,0,0,0\n")  # how some recorders say that there is none
    record = read.read_frame(tmp_path, frame, KNOBS)
    assert np.isnan(record["skeleton"]).all()
    assert np.isnan(record["ground_plane"]).all()


def _rewritten(change):
    """A harm that changes the pixels of a PGM."""

    def harm(path: pathlib.Path) -> None:
        content = path.read_bytes()
        wide = b"\n65535\n" in content[:20]
        head = len(b"P5\n640 480\n65535\n" if wide else b"P5\n640 480\n255\n")
        image = np.frombuffer(content[head:], ">u2" if wide else "u1").reshape(480, 640)
        path.write_bytes(example_tree.pgm(change(image.astype(np.uint16 if wide else np.uint8))))

    return harm


def _cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("stream", "harm", "kind"),
    [
        ("rgb", lambda path: path.write_bytes(b""), "empty_file"),
        ("rgb", _cut, "corrupt"),
        ("rgb", lambda path: path.unlink(), "unpaired"),
        ("depth", lambda path: path.unlink(), "unpaired"),
        ("mask", lambda path: path.unlink(), "unpaired"),
        ("depth", _cut, "corrupt"),
        ("depth", lambda path: path.write_bytes(b"P2\n640 480\n65535\n"), "corrupt"),
        ("mask", lambda path: path.write_bytes(b""), "empty_file"),
        ("mask", _rewritten(np.zeros_like), "empty_mask"),
        ("mask", _rewritten(lambda users: _map_of((1, 1_999))), "empty_mask"),
        ("mask", _rewritten(lambda users: np.ones_like(users)), "full_mask"),
        ("mask", _rewritten(lambda users: _map_of((1, 76_801))), "full_mask"),
        ("depth", _rewritten(lambda depth: np.where(depth == 2500, np.uint16(0), depth)), "no_depth"),
    ],
)
def test_a_frame_that_cannot_be_used(raw_tree, tmp_path, stream, harm, kind):
    frame = frame_of_box(raw_tree, tmp_path)
    read.read_frame(tmp_path, frame, KNOBS)
    harm(tmp_path / getattr(frame, stream))
    with pytest.raises(BadFrame) as caught:
        read.read_frame(tmp_path, frame, KNOBS)
    assert caught.value.finding.kind == kind
    assert caught.value.finding.file == getattr(frame, stream)


def test_backgrounds_of_18_metres_are_fine(raw_tree, tmp_path):
    frame = frame_of_box(raw_tree, tmp_path)
    far = _rewritten(lambda depth: np.where(depth == example_tree.WALL_MM, np.uint16(18_000), depth))
    far(tmp_path / frame.depth)
    depth = decoded(read.read_frame(tmp_path, frame, KNOBS)["depth"])
    assert set(np.unique(depth)) == {2500, 18_000}


@pytest.mark.parametrize(
    ("stream", "harm", "words"),
    [
        ("depth", lambda path: _swap(path, b"65535", b"4095"), "maxval 4095, expected 65535"),
        ("depth", _rewritten(lambda depth: depth.byteswap()), "little-endian"),
        ("depth", lambda path: path.write_bytes(example_tree.pgm(np.ones((240, 320), np.uint16))), "320x240 pixels"),
        ("mask", lambda path: path.write_bytes(example_tree.pgm(np.ones((240, 320), np.uint8))), "320x240 pixels"),
        ("mask", lambda path: path.write_bytes(example_tree.pgm(np.ones((480, 640), np.uint16))), "maxval 65535"),
        ("rgb", lambda path: Image.new("RGB", (1280, 1024)).save(path), "1280x1024 pixels"),
        ("rgb", lambda path: Image.new("I;16", (1280, 960)).save(path, "PNG"), "where a colour image is declared"),
    ],
)
def test_what_no_such_tree_holds_stops_the_build(raw_tree, tmp_path, stream, harm, words):
    root, data = tmp_path / "tree", tmp_path / "data"
    shutil.copytree(raw_tree, root)
    (frame,) = (one for one in frames_of(root) if one.rgb.startswith(BOX.stem))
    harm(root / getattr(frame, stream))
    config = builder_lib.config_of("paper", {"height": 16, "width": 8})
    with pytest.raises(InputError, match=words) as caught:
        builder_lib.prepare(config, data, root, workers=1)
    assert getattr(frame, stream) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="needs files of yours"):  # nothing is left that looks whole
        builder_lib.prepare(config, data, workers=1)


def _swap(path: pathlib.Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new, 1))
