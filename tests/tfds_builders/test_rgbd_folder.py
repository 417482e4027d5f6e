"""Own recordings: both layouts, labels and splits, and boxes of known millimetres at the right place."""

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.stages.job import fingerprint
from tfds_builders import schema
from tfds_builders.rgbd_folder import example_tree, read, rows
from tfds_builders.rgbd_folder.rgbd_folder_dataset_builder import Builder, config_of, prepare

SPLITS = {"train": 3, "validation": 1, "test": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The example tree with folders, what is known of it, and the dataset of it."""
    folder = tmp_path_factory.mktemp("rgbd_folder")
    drawn = example_tree.write(folder / "tree")
    return folder / "tree", drawn, prepare(config_of("small", {}), folder / "data", folder / "tree", workers=1)


def build(folder: pathlib.Path, tree: pathlib.Path, **knobs: Any) -> Any:
    return prepare(config_of("small", knobs), folder / "data", tree, workers=1)


def records(builder: Any) -> dict[str, dict[str, Any]]:
    """All records by the file of their colour image (of their depth image without one)."""
    splits = [list(builder.as_data_source(split)) for split in builder.info.splits]
    return {record["source"].decode(): record for split in splits for record in split}


def assert_same(one: dict[str, Any], other: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


IMAGES = ("rgb", "depth", "mask", "person_box", "intrinsics", "modalities")
LABELS = ("person_id", "camera_id", "recording_id", "frame_id", "clothes_id")


def test_labels_follow_from_sorted_names(base):
    _, drawn, builder = base
    found = records(builder)
    people, cameras = sorted(example_tree.PEOPLE), sorted(example_tree.CAMERAS)
    assert {split: builder.info.splits[split].num_examples for split in SPLITS} == {
        split: count * 4 for split, count in SPLITS.items()
    }
    for one in drawn:
        record = found[one.rgb]
        person, camera = people.index(one.person), cameras.index(one.camera)
        labels = {"person_id": person, "camera_id": camera, "recording_id": 2 * person + camera}
        labels |= {"frame_id": one.frame, "clothes_id": person, "recording_type": 0, "modalities": schema.PAIRED}
        assert {name: int(record[name]) for name in labels} == labels
    metadata = builder.info.metadata
    assert metadata["people"] == people
    assert metadata["cameras"] == cameras
    assert metadata["recordings"][:3] == ["anna/door/first", "anna/hall/first", "bo/door/first"]
    assert metadata["knobs"]["depth_unit_mm"] == 1.0
    assert metadata["findings"] == []
    assert metadata["split"] == {"made": "given with the files"}


def test_boxes_of_known_millimetres_are_at_the_right_place_scale_and_depth(base):
    _, drawn, builder = base
    found = records(builder)
    for one in drawn:
        record = found[one.rgb]
        x0, y0, x1, y1 = one.box
        # The window by hand: the box's height (it is more than twice as high as wide) and 6 % on both sides.
        high, wide = round((y1 - y0) * 1.12), round((y1 - y0) * 1.12 / 2)
        top, left = round((y0 + y1 - high) / 2), round((x0 + x1 - wide) / 2)
        down, across = 128 / high, 64 / wide
        expected = [(y0 - top) * down, (x0 - left) * across, (y1 - top) * down, (x1 - left) * across]
        np.testing.assert_allclose(record["person_box"], expected, atol=1.0)

        box_top, box_left, box_bottom, box_right = record["person_box"].astype(int)
        inside = np.zeros((128, 64), bool)
        inside[box_top:box_bottom, box_left:box_right] = True
        assert np.array_equal(record["mask"][..., 0] == 255, inside)
        assert np.all(record["depth"][inside] == one.distance_mm)
        beside = record["depth"][..., 0][:, : max(box_left - 4, 0)]
        assert set(np.unique(beside)) <= {0, example_tree.WALL_MM}
        middle = record["rgb"][box_top + 8 : (box_top + box_bottom) // 2 - 8, box_left + 8 : box_right - 8]
        assert np.ptp(middle.reshape(-1, 3).astype(int), axis=0).max() <= 12, "one shirt has one colour"

        # The axis is at OpenCV's (79.5, 59.5), that is 80 and 60 pixels from the image's edges.
        by_hand = [130 * across, 130 * down, (80 - left) * across, (60 - top) * down]
        np.testing.assert_allclose(record["intrinsics"], by_hand, rtol=1e-6)
        # Back into metres through what is stored: size, and place relative to the camera's axis.
        fx, fy, cx, cy = record["intrinsics"]
        pixel = one.distance_mm / fx
        size = (box_right - box_left) * pixel, (box_bottom - box_top) * one.distance_mm / fy
        np.testing.assert_allclose(size, one.size_mm, atol=1.5 * pixel)
        place = (box_left - cx) * pixel, (box_top - cy) * one.distance_mm / fy
        by_hand = (x0 - 80) * one.distance_mm / 130, (y0 - 60) * one.distance_mm / 130
        np.testing.assert_allclose(place, by_hand, atol=1.5 * pixel)


@pytest.mark.parametrize("layout", ["csv", "jsonl"])
def test_a_manifest_gives_what_folders_give(base, tmp_path, layout):
    _, drawn, builder = base
    listed = example_tree.write(tmp_path / "tree", layout)
    other = build(tmp_path, tmp_path / "tree", manifest=f"manifest.{layout}")
    by_folders, by_manifest = records(builder), records(other)
    assert len(by_manifest) == len(drawn) == 24
    for one, same in zip(drawn, listed, strict=True):
        assert_same(by_folders[one.rgb], by_manifest[same.rgb], (*IMAGES, *LABELS))
        assert by_manifest[same.rgb]["recording_type"] == schema.STANDING
    assert other.builder_config.name != builder.builder_config.name
    assert {name: split.num_examples for name, split in other.info.splits.items()} == {
        name: split.num_examples for name, split in builder.info.splits.items()
    }


def test_without_split_folders_people_are_drawn(base, tmp_path):
    tree, _, _ = base
    for split in tree.iterdir():
        if split.is_dir():
            shutil.copytree(split, tmp_path / "tree", dirs_exist_ok=True)
    shutil.copy(tree / "intrinsics.json", tmp_path / "tree")
    first, again = build(tmp_path, tmp_path / "tree"), build(tmp_path / "2", tmp_path / "tree")
    other = build(tmp_path, tmp_path / "tree", split_seed=1)
    drawn = first.info.metadata["split"]
    assert drawn["made"] == "drawn by people"
    assert drawn["seed"] == 0
    assert sorted(drawn["train"] + drawn["validation"] + drawn["test"]) == list(range(6))
    for split in SPLITS:
        people = {int(record["person_id"]) for record in first.as_data_source(split)}
        assert people == set(drawn[split])
        assert len(people) >= 1
    assert again.info.metadata["split"] == drawn
    assert other.info.metadata["split"] != drawn


def test_unpaired_frames_are_kept_with_an_empty_image(base, tmp_path):
    tree, drawn, builder = base
    shutil.copytree(tree, tmp_path / "tree")
    (tmp_path / "tree" / drawn[0].depth).unlink()
    (tmp_path / "tree" / drawn[1].rgb).unlink()
    other = build(tmp_path, tmp_path / "tree")
    before, after = records(builder), records(other)
    colour, depth = after[drawn[0].rgb], after[drawn[1].depth]
    assert colour["modalities"] == schema.RGB
    assert depth["modalities"] == schema.DEPTH
    assert not colour["depth"].any()
    assert not depth["rgb"].any()
    assert_same(colour, before[drawn[0].rgb], ("rgb", "mask", "person_box", "intrinsics", *LABELS))
    assert_same(depth, before[drawn[1].rgb], ("depth", "mask", "person_box", "intrinsics", *LABELS))
    [finding] = other.info.metadata["findings"]
    assert finding["kind"] == "unpaired"
    assert "1 frames of train have colour alone and 1 depth alone" in finding["words"]


def _stored_as(tree: pathlib.Path, kind: str) -> dict[str, Any]:
    """Stores all depth images in another way; returns the knobs that say so."""
    knobs = {}
    for path in sorted(tree.rglob("*_depth.png")):
        depth = np.array(Image.open(path)).astype(np.uint16)
        path.unlink()
        if kind == "tenths":
            knobs = {"depth_unit_mm": 0.1}
            Image.fromarray(depth * 10).save(path)
        elif kind == "8 bits":
            knobs = {"depth_unit_mm": 20.0, "depth_bits": 8}  # distances and the wall are whole hundreds
            Image.fromarray((depth // 20).astype(np.uint8)).save(path)
        elif kind == "pgm":
            content = f"P5\n# made here\n{depth.shape[1]} {depth.shape[0]}\n65535\n".encode()
            path.with_suffix(".pgm").write_bytes(content + depth.astype(">u2").tobytes())
        else:
            Image.fromarray(depth).save(path.with_suffix(".TIFF"), compression=kind)
    return knobs


@pytest.mark.parametrize("kind", ["tenths", "8 bits", "pgm", "raw", "tiff_lzw"])
def test_depth_is_the_same_however_it_is_stored(base, tmp_path, kind):
    tree, _, builder = base
    shutil.copytree(tree, tmp_path / "tree")
    other = build(tmp_path, tmp_path / "tree", **_stored_as(tmp_path / "tree", kind))
    after = records(other)
    assert len(after) == 24
    for source, record in records(builder).items():
        assert_same(record, after[source], (*IMAGES, *LABELS))


def test_a_frame_without_mask_and_box_is_stored_whole(tmp_path):
    folder = tmp_path / "tree" / "test" / "p" / "c" / "r"
    folder.mkdir(parents=True)
    rgb = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(folder / "1_rgb.png")
    depth = np.full((64, 64), 2000, np.uint16)
    depth[:, :32] = 65535
    Image.fromarray(depth).save(folder / "1_depth.png")
    builder = build(tmp_path, tmp_path / "tree")
    [record] = builder.as_data_source("test")
    # 64x64 pixels in 128x64: the same scale, 32 rows of padding above and below.
    assert np.array_equal(record["rgb"][32:96], rgb)
    assert np.array_equal(record["depth"][32:96, :, 0], np.where(depth == 65535, 0, depth)), "65535 is no depth"
    for name in ("rgb", "depth", "mask"):
        assert not record[name][:32].any()
        assert not record[name][96:].any()
    assert np.array_equal(record["person_box"], [32, 0, 96, 64])
    assert not record["intrinsics"].any()
    assert [finding["kind"] for finding in builder.info.metadata["findings"]] == ["person"]


def test_a_manifest_tells_people_of_one_image_apart(tmp_path):
    tree = tmp_path / "tree"
    (tree / "wide").mkdir(parents=True)
    rgb, depth = np.zeros((60, 120, 3), np.uint8), np.full((60, 120), 3000, np.uint16)
    rgb[10:50, 10:30], rgb[10:50, 70:90] = (200, 0, 0), (0, 0, 200)
    depth[10:50, 10:30], depth[10:50, 70:90] = 1500, 2500
    Image.fromarray(rgb).save(tree / "wide" / "a.bmp")
    Image.fromarray(depth).save(tree / "wide" / "a.png")
    files = {"rgb": "wide/a.bmp", "depth": "wide/a.png", "camera_id": 10, "recording_id": "x", "split": "Test"}
    lines = [
        files | {"person_id": 7, "box": [10, 10, 30, 50], "clothes_id": "red", "recording_type": "walking"},
        files | {"person_id": 11, "box": "70 10 90 50", "note": "another column"},
    ]
    (tree / "list.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    builder = build(tmp_path, tree, manifest="list.jsonl")
    red, blue = builder.as_data_source("test")
    assert builder.info.metadata["people"] == ["7", "11"], "numbers are in the order of numbers"
    assert builder.info.metadata["clothes"] == ["7/red", "11/"]
    assert (red["recording_type"], blue["recording_type"]) == (schema.WALKING, 0)
    for record, distance, channel in ((red, 1500, 0), (blue, 2500, 2)):
        inside = record["mask"][..., 0] > 0
        assert np.all(record["depth"][inside] == distance)
        assert np.array_equal(np.unique(record["rgb"].reshape(-1, 3).argmax(axis=1)), sorted({0, channel}))
        top, left, bottom, right = record["person_box"]
        assert (bottom - top) / (right - left) == pytest.approx(2, abs=0.1)
    kinds = [finding["kind"] for finding in builder.info.metadata["findings"]]
    assert sorted(kinds) == ["ignored", "person", "person"]


def test_intrinsics_of_another_size_are_scaled(base, tmp_path):
    tree, _, builder = base
    shutil.copytree(tree, tmp_path / "tree")
    # The same camera at twice the size: a pixel's centre c lies at 2 c + 0.5 of the larger image.
    doubled = {"width": 320, "height": 240, "fx": 260.0, "fy": 260.0, "cx": 159.5, "cy": 119.5}
    (tmp_path / "tree" / "intrinsics.json").write_text(json.dumps({"hall": doubled}))
    after = records(build(tmp_path, tmp_path / "tree"))
    for source, record in records(builder).items():
        if record["camera_id"] == 1:
            np.testing.assert_allclose(record["intrinsics"], after[source]["intrinsics"], rtol=1e-6)
        else:
            assert not after[source]["intrinsics"].any()


def test_another_tree_under_an_old_name_is_refused_and_a_title_gives_it_its_own(base, tmp_path):
    example_tree.write(tmp_path / "one")
    example_tree.write(tmp_path / "two", seed=1)
    first = build(tmp_path, tmp_path / "one")
    with pytest.raises(InputError, match=r"was built from other files than .*two holds now; delete"):
        build(tmp_path, tmp_path / "two")
    second = build(tmp_path, tmp_path / "two", title="two")
    assert first.data_path != second.data_path
    again = prepare(config_of("small", {}), tmp_path / "data")
    assert again.data_path == first.data_path, "the tree is needed no more"
    elsewhere = build(tmp_path / "elsewhere", tmp_path / "two")  # the same name; a run goes on with neither's data
    assert elsewhere.info.full_name == first.info.full_name
    assert fingerprint(again) == fingerprint(first) != fingerprint(elsewhere)


def test_both_sizes_are_configs():
    assert {(c.name, c.height, c.width) for c in Builder.BUILDER_CONFIGS} == {("default", 256, 128), ("small", 128, 64)}


@given(st.lists(st.tuples(st.sampled_from(["", "cam", "a-"]), st.integers(0, 10**6), st.integers(0, 2))))
@settings(max_examples=200, deadline=None)
def test_names_are_in_the_order_of_their_numbers(parts):
    names = [f"{word}{'0' * zeros}{number}" for word, number, zeros in parts]
    found = rows.codes((name,) for name in names)
    assert sorted(found.values()) == list(range(len(set(names))))
    value = {name: (word, number) for name, (word, number, _) in zip(names, parts, strict=True)}
    ordered = [value[name] for (name,) in sorted(found, key=lambda name: found[name])]
    assert ordered == sorted(ordered)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 6))
@settings(deadline=None)
def test_images_of_one_view_have_the_largest_size(height, width, factor):
    sizes = {"a": (height, width), "b": (height * factor, width * factor)}
    assert read.common_size(pathlib.Path(), sizes) == (height * factor, width * factor)
