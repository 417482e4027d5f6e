"""BIWI RGBD-ID: labels and splits of both layouts, geometry of drawn boxes, and what becomes of faulty trees."""

import io
import json
import pathlib
import pickle
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rgbd_reid_jax.core.errors import InputError
from tfds_builders import knobs
from tfds_builders.biwi_rgbd_id import biwi_rgbd_id_dataset_builder as builder_lib
from tfds_builders.biwi_rgbd_id import example_tree, read, scan
from tfds_builders.recorded import crops, prepared_example, tree
from tfds_builders.recorded.frames import SPLITS, BadFrame, Frame, Scan

KNOBS = {"height": 256, "width": 128, "crop_margin": 0.06, "grey_mm": 8000 / 255}
BOX = example_tree.shots()[0]  # one plain box, 600 x 1600 mm at 2.5 m


@pytest.fixture(scope="module")
def raw_tree(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("raw")
    example_tree.write(root)
    return root


@pytest.fixture(scope="module")
def prepared_tree(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("prepared")
    example_tree.write_prepared(root)
    return root


@pytest.fixture(scope="module")
def built(raw_tree, tmp_path_factory) -> Any:
    """The raw example tree as `paper`, with the published kind of split."""
    root = tmp_path_factory.mktemp("official")
    for name in ("Training", "Testing"):
        shutil.copytree(raw_tree / name, root / name)
    (root / "splits.json").write_text(json.dumps([example_tree.FOLD]))
    return builder_lib.prepare(builder_lib.config_of("paper", {}), tmp_path_factory.mktemp("data"), root, workers=1)


def scanned(root: pathlib.Path, config: str = "paper", **overrides: Any) -> Scan:
    """The scan of a tree, without building."""
    builder = builder_lib.Builder(config=builder_lib.config_of(config, overrides), data_dir=root.parent / "unused")
    return builder.scan(*builder.listing(root))


def frames_of(found: Scan) -> list[Frame]:
    return [frame for split in SPLITS for frame in found.frames[split]]


def split_of(found: Scan) -> dict[int, str]:
    return {frame.person_id: split for split in SPLITS for frame in found.frames[split]}


def examples(builder: Any) -> dict[str, dict[str, Any]]:
    """All records by their source file."""
    return {
        record["source"].decode(): {"split": split, **record}
        for split in builder.info.splits
        for record in builder.as_data_source(split)
    }


def test_labels_of_the_paper_config(built):
    identities = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (2, 0): 3, (2, 1): 4, (3, 0): 5, (4, 0): 6, (4, 1): 7}
    sides = {0: "train", 1: "train", 4: "train", 2: "validation", 5: "validation", **dict.fromkeys((3, 6, 7), "test")}
    types = {"Training": 0, "Testing/Still": 1, "Testing/Walking": 2}
    records = examples(built)
    assert len(records) == len(example_tree.shots()) == 16
    recordings = set()
    for shot in example_tree.shots():
        (record,) = (one for file, one in records.items() if file.startswith(f"{shot.stem}-a_"))
        identity = identities[shot.person, int(shot.sequence != "Training")]
        assert record["person_id"] == record["clothes_id"] == identity
        assert record["split"] == sides[identity]
        assert record["camera_id"] == (shot.sequence != "Training")
        assert record["recording_type"] == types[shot.sequence]
        assert record["frame_id"] == shot.frame
        assert record["modalities"] == 3
        recordings.add((int(record["recording_id"]), shot.sequence, shot.person, shot.letter))
    assert len(recordings) == len({one[0] for one in recordings}) == 5 + 6


def test_metadata_tells_the_split_and_who_is_on_both_sides(built):
    metadata = built.info.metadata
    assert metadata["split"] == {
        "source": "splits.json",
        "fold": 0,
        "person_ids": {"train": [0, 1, 4], "validation": [2, 5], "test": [3, 6, 7]},
    }
    assert metadata["people_on_both_sides"] == [2]
    assert metadata["persons_of_identities"] == {str(k): v for k, v in enumerate([0, 0, 1, 2, 2, 3, 4, 4])}
    assert [(one["kind"], one["file"][:12]) for one in metadata["findings"]] == [("both_sides", "Training/002")]


@pytest.mark.parametrize(
    ("config", "kept"), [("people", (1, 2)), ("still", (1,)), ("walking", (2,))], ids=["people", "still", "walking"]
)
def test_people_keep_one_label_and_one_side(raw_tree, config, kept):
    found = scanned(raw_tree, config)
    shots = [shot for shot in example_tree.shots() if scan.SEQUENCES.index(shot.sequence) in (0, *kept)]
    frames = frames_of(found)
    assert sorted(frame.rgb.split("-a_")[0] for frame in frames) == sorted(shot.stem for shot in shots)
    assert all(frame.person_id == int(frame.rgb.split("/")[-2]) for frame in frames)
    assert split_of(found) == split_of(scanned(raw_tree, "people"))  # one split for the three configs
    assert found.metadata["people_on_both_sides"] == []
    clothes = {frame.clothes_id: frame.person_id for frame in frames}
    assert clothes == {0: 0, 1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 6: 4, 7: 4}


def test_a_seeded_split_has_the_published_sizes():
    paths = [
        f"{sequence}/{person:03d}/{person:03d}_{frame:06d}-{letter}_7_{kind}"
        for sequence in scan.SEQUENCES
        for person in range(50 if sequence == "Training" else 28)
        for frame in range(2)
        for letter, kind in (("a", "rgb.jpg"), ("b", "depth.pgm"), ("c", "userMap.pgm"))
    ]

    def ids(identities, seed):
        found = scan.scan(pathlib.Path("BIWI"), paths, identities=identities, recordings="all", fold=0, seed=seed)
        return {split: {frame.person_id for frame in found.frames[split]} for split in SPLITS}

    first = ids("clothes", 0)
    assert {split: len(one) for split, one in first.items()} == {"train": 32, "validation": 8, "test": 38}
    assert ids("clothes", 0) == first != ids("clothes", 1)
    people = ids("people", 0)
    assert {split: len(one) for split, one in people.items()} == {"train": 21, "validation": 5, "test": 24}
    assert sorted(set.union(*people.values())) == list(range(50))


def test_both_layouts_give_the_same_labels_and_splits(raw_tree, prepared_tree, built):
    """The prepared tree's P and S are the raw tree's person and sequence."""

    def labels(found, key):
        return {
            (key(frame), frame.person_id, frame.camera_id, frame.clothes_id, frame.recording_id, frame.recording_type)
            for frame in frames_of(found)
        }

    def of_raw(frame):
        *sequence, person, _ = frame.rgb.split("/")
        return int(person), scan.SEQUENCES.index("/".join(sequence))

    def of_prepared(frame):
        person, sequence, _ = frame.rgb.split("/")[-1].split("_")
        return int(person), int(sequence)

    for config in ("people", "still", "walking"):
        raw, prepared = scanned(raw_tree, config), scanned(prepared_tree, config)
        assert labels(raw, of_raw) == labels(prepared, of_prepared)
        assert split_of(raw) == split_of(prepared)
    raw, prepared = scanned(raw_tree, "paper"), scanned(prepared_tree, "paper")
    assert labels(raw, of_raw) == labels(prepared, of_prepared)
    assert prepared.metadata["split"]["person_ids"] == built.info.metadata["split"]["person_ids"]
    assert prepared.metadata["people_on_both_sides"] == [2]


def test_the_prepared_layout_builds_with_unknown_skeletons(prepared_tree, tmp_path):
    config = builder_lib.config_of("paper", {"height": 96, "width": 48})
    builder = builder_lib.prepare(config, tmp_path, prepared_tree, workers=1)
    records = examples(builder)
    assert len(records) == 33
    for known in example_tree.write_prepared(tmp_path / "again"):
        record = records[f"biwi/images/{known.file}"]
        top, left, bottom, right = known.box
        inside = np.s_[top + 2 : bottom - 2, left + 2 : right - 2]
        assert np.abs(record["rgb"][inside].astype(int) - known.colour).max() <= 8  # JPEG
        assert np.abs(record["depth"][inside] - known.grey * 8000 / 255).max() <= 8000 / 255
        assert np.isnan(record["skeleton"]).all()
        assert np.isnan(record["ground_plane"]).all()


def test_a_box_of_known_millimetres_comes_out_in_both_images(built):
    """600 x 1600 mm at 2500 mm, from x = -250 and y = -700; pinholes of f = 575.8 (depth) and 525 (colour)."""
    record = next(one for file, one in examples(built).items() if file.startswith(BOX.stem))
    # Edges in the depth image: pixel centres at whole numbers, so pixels 262..400 and 79..446 lie on the box.
    assert np.ceil(319.5 + 575.8 * -250 / 2500) == 262
    assert np.ceil(319.5 + 575.8 * 350 / 2500) == 401
    assert np.ceil(239.5 + 575.8 * -700 / 2500) == 79
    assert np.ceil(239.5 + 575.8 * 900 / 2500) == 447
    height = round((447 - 79) * 1.12)  # 412, and half as wide
    top, left = round((79 + 447 - height) / 2), round((262 + 401 - height / 2) / 2)
    scale = 256 / height
    expected = np.array([79 - top, 262 - left, 447 - top, 401 - left]) * scale
    np.testing.assert_allclose(record["person_box"], expected, rtol=1e-5)
    on_mask = record["mask"][..., 0] > 0
    np.testing.assert_allclose(crops.mask_box(on_mask), expected, atol=1)
    assert (record["depth"][on_mask] == 2500).all()
    assert (record["depth"][~on_mask] == example_tree.WALL_MM).all()
    red = np.abs(record["rgb"].astype(int) - example_tree.CLOTHES[0]).max(axis=2) < 60
    np.testing.assert_allclose(crops.mask_box(red), expected, atol=1.1)
    # Through the intrinsics, the stored box is metric again.
    fx, fy, cx, cy = record["intrinsics"]
    ymin, xmin, ymax, xmax = record["person_box"]
    found = [(ymin - cy) * 2500 / fy, (xmin - cx) * 2500 / fx, (ymax - cy) * 2500 / fy, (xmax - cx) * 2500 / fx]
    np.testing.assert_allclose(found, [-700, -250, 900, 350], atol=2500 / 575.8)


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
    frames = frames_of(scanned(raw_tree, "still"))
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
    (frame,) = (one for one in frames_of(scanned(source)) if one.rgb.startswith(BOX.stem))
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


def test_skeleton_in_pixels_of_the_crop(built):
    for file, record in examples(built).items():
        shot = next(one for one in example_tree.shots() if file.startswith(f"{one.stem}-"))
        expected = example_tree.joints(shot)
        fx, fy, cx, cy = record["intrinsics"]
        joints = record["skeleton"]
        np.testing.assert_allclose(joints[:, :3], expected[:, 1:4], rtol=1e-4)
        x, y, z = joints[:, :3].T  # metres, y up: projected, they are where u and v say
        np.testing.assert_allclose(joints[:, 3], cx + fx * x / z, atol=0.01)
        np.testing.assert_allclose(joints[:, 4], cy - fy * y / z, atol=0.01)
        assert (joints[:, 5] == 2).all()
        assert (joints[:, 6:] == [0, 0, 0, 1]).all()
        known_ground = file.startswith(BOX.stem)
        np.testing.assert_allclose(record["ground_plane"], [0, 0.998, -0.063, 0.9] if known_ground else [np.nan] * 4)


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
    (frame,) = (one for one in frames_of(scanned(root)) if one.rgb.startswith(BOX.stem))
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


def test_unusable_frames_are_left_out_and_listed(raw_tree, tmp_path):
    root = tmp_path / "tree"
    shutil.copytree(raw_tree, root)
    next(root.glob("Training/000/*_000001-a_*")).write_bytes(b"")
    next(root.glob("Training/001/*_000007-c_*")).unlink()
    config = {"height": 16, "width": 8, "bad_share": 1.0}
    builder = builder_lib.prepare(builder_lib.config_of("people", config), tmp_path / "data", root, workers=1)
    assert len(examples(builder)) == 14
    found = {(one["kind"], one["file"].split("-")[0]) for one in (builder.info.metadata or {})["findings"]}
    assert found == {("empty_file", "Training/000/000_000001"), ("unpaired", "Training/001/001_000007")}
    with pytest.raises(InputError, match="bad_frames='skip'"):
        builder_lib.prepare(
            builder_lib.config_of("people", {**config, "bad_frames": "fail"}), tmp_path / "data", root, workers=1
        )


def _touched(root: pathlib.Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


@pytest.fixture
def names(raw_tree, tmp_path) -> pathlib.Path:
    """A tree of the example's names; scanning opens no image."""
    _touched(tmp_path / "names", *tree.listing(raw_tree))
    return tmp_path / "names"


@pytest.mark.parametrize(
    ("extra", "kind", "file"),
    [
        ("Training/001/001_000007-a_9999999_rgb.jpg", "duplicate", "Training/001/001_000007-a_9999999_rgb.jpg"),
        ("Training/001/001_000007-a_9048863_rgb.png", "ignored", "Training/001/001_000007-a_9048863_rgb.png"),
        ("Training/001/001_000009-a_7_depth.pgm", "ignored", "Training/001/001_000009-a_7_depth.pgm"),
        ("Training/01/001_000009-a_7_rgb.jpg", "ignored", "Training/01/001_000009-a_7_rgb.jpg"),
        ("Testing/001/001_000009-a_7_rgb.jpg", "ignored", "Testing/001/001_000009-a_7_rgb.jpg"),
        (
            "Training/\u0661\u0662\u0663/001_000009-a_7_rgb.jpg",
            "ignored",
            "Training/\u0661\u0662\u0663/001_000009-a_7_rgb.jpg",
        ),
        ("README.txt", "ignored", "README.txt"),
        ("Testing/Still/001/001_000001-a_7_rgb.jpg", "person", "Testing/Still"),
    ],
)
def test_findings_of_the_scan(names, extra, kind, file):
    before = scanned(names, "people")
    assert not before.findings
    _touched(names, extra)
    after = scanned(names, "people")
    assert [(one.kind, one.file) for one in after.findings] == [(kind, file)]
    assert len(frames_of(after)) == len(frames_of(before)) + (kind == "person")


def test_letters_tell_recordings_apart(names):
    _touched(names, "Training/001/001c_000007-a_7_rgb.jpg")
    frames = [one for one in frames_of(scanned(names)) if "/001/" in one.file]
    assert {(one.recording_id, one.frame_id) for one in frames} == {(3, 7), (3, 8), (4, 7)}  # after three of person 0
    assert len({one.person_id for one in frames}) == 1


def _without(folder: str):
    return lambda root: shutil.rmtree(root / folder)


def _splits(content: Any):
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda root: (root / "splits.json").write_text(text)


@pytest.mark.parametrize(
    ("harm", "config", "overrides", "words"),
    [
        (_without("Training"), "people", {}, "no frames in Training/<person>/"),
        (_without("Testing"), "people", {}, "no frames in Testing/Still/<person>/, Testing/Walking/<person>/"),
        (_without("Testing/Still"), "walking", {}, "no frames in Testing/Still/<person>/"),
        (
            lambda root: _touched(root, "Training/001/002_000001-a_7_rgb.jpg"),
            "paper",
            {},
            "person 002, its folder of p",
        ),
        (lambda root: (root / "Training").rename(root / "Train"), "paper", {}, "no frames in Training"),
        (lambda root: (_without("Training")(root), _without("Testing")(root)), "paper", {}, "Training/ and Testing/"),
        (_splits("{"), "paper", {}, "splits.json is not valid JSON"),
        (_splits({"train": []}), "paper", {}, "must hold a list of objects"),
        (_splits([{"train": [0]}]), "paper", {}, "'val' must be a list"),
        (_splits([{**example_tree.FOLD, "val": [2, 8]}]), "paper", {}, "names identity 8; there are 0 to 7"),
        (_splits([{**example_tree.FOLD, "val": [2, 0]}]), "paper", {}, "identity 0 in train and in validation"),
        (_splits([{**example_tree.FOLD, "val": [2]}]), "paper", {}, "names 7 identities and the tree holds 8"),
        (_splits([example_tree.FOLD]), "paper", {"fold": 1}, "fold=1: .* has the folds 0 to 0"),
        (_splits([example_tree.FOLD]), "people", {"fold": 1}, "fold=1 needs identities='clothes'"),
        (lambda root: None, "paper", {"fold": 1}, "fold=1 needs identities='clothes' and a splits.json"),
    ],
)
def test_trees_that_are_refused(names, harm, config, overrides, words):
    scanned(names)
    harm(names)
    _touched(names, "notes.txt")
    with pytest.raises(InputError, match=words) as caught:
        scanned(names, config, **overrides)
    assert str(names) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sequence_that_the_dataset_does_not_have(tmp_path):
    folds = [{"train": [0], "val": [1], "query": [2], "gallery": [2]}]
    prepared_example.write(tmp_path, "biwi", [(person, (0, 3)) for person in range(3)], folds)
    with pytest.raises(InputError, match="sequence 03; those of BIWI RGBD-ID are 00 Training"):
        scanned(tmp_path)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("nope", {}, "there are: paper, people, still, walking"),
        ("paper", {"fold": 5}, "from 0 to 4"),
        ("paper", {"recordings": "running"}, "choose one of all, still, walking"),
        ("paper", {"nope": 1}, "knobs are: "),
    ],
)
def test_configs_that_are_refused(name, overrides, words):
    with pytest.raises(InputError, match=words):
        builder_lib.config_of(name, overrides)


def test_reading_processes_need_neither_tfds_nor_jax():
    assert pickle.loads(pickle.dumps(builder_lib.Builder.read)) is read.read_frame
    code = "import sys, tfds_builders.biwi_rgbd_id.read; print({'jax', 'tensorflow_datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_example_command(tmp_path, capsys):
    assert example_tree.main([f"--output={tmp_path / 'new'}", "--layout=prepared"]) == 0
    assert "33 frames in" in capsys.readouterr().out
    assert example_tree.main([f"--output={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("error: --output=")


def test_the_knob_table_is_in_the_readme():
    readme = pathlib.Path(builder_lib.__file__).with_name("README.md").read_text("utf-8")
    assert knobs.knob_table(builder_lib.CONFIGS[0]) in readme
    assert all(f"`{config.name}`" in readme for config in builder_lib.CONFIGS)
