"""BIWI RGBD-ID: labels and splits of both layouts, a box of known millimetres, and what becomes of faulty trees."""

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.biwi_rgbd_id import biwi_rgbd_id_dataset_builder as builder_lib
from tfds_builders.biwi_rgbd_id import example_tree, scan
from tfds_builders.recorded import crops, prepared_example, tree
from tfds_builders.recorded.frames import SPLITS, Frame, Scan

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
