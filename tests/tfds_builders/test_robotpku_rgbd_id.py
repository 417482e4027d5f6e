"""RobotPKU RGBD-ID from both layouts: labels, known boxes, discovery of a raw tree and what is refused."""

import itertools
import pathlib
import shutil
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.recorded import foreground, prepared_layout, tree
from tfds_builders.robotpku_rgbd_id import example_tree
from tfds_builders.robotpku_rgbd_id import read as read_lib
from tfds_builders.robotpku_rgbd_id import scan as scan_lib
from tfds_builders.robotpku_rgbd_id.robotpku_rgbd_id_dataset_builder import Builder, config_of, prepare

SIZE = {"height": 64, "width": 32}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Both layouts, with what is known of their frames."""
    folder = tmp_path_factory.mktemp("pku")
    return {layout: (folder / layout, example_tree.write(folder / layout, layout)) for layout in ("prepared", "raw")}


@pytest.fixture
def tree_of(trees, tmp_path):
    """A copy of a tree that may be harmed."""

    def copy(layout: str) -> pathlib.Path:
        shutil.copytree(trees[layout][0], tmp_path / "tree")
        return tmp_path / "tree"

    return copy


def records(builder: Any) -> list[dict[str, Any]]:
    return [{**record, "split": split} for split in builder.info.splits for record in builder.as_data_source(split)]


def metadata(builder: Builder) -> dict[str, Any]:
    kept: Any = builder.info.metadata
    return kept


def scanned(folder: pathlib.Path, mapping: str = "", seed: int = 0):
    return scan_lib.scan(folder, tree.listing(folder), mapping, seed)


def test_prepared_layout_as_published(trees, tmp_path):
    folder, known = trees["prepared"]
    builder = prepare(config_of("paper", SIZE), tmp_path, folder / "pku", workers=1)
    found = records(builder)
    labels = {(r["split"], int(r["person_id"]), int(r["camera_id"]), int(r["frame_id"])) for r in found}
    split_of = {0: "train", 1: "train", 2: "validation", 3: "test", 4: "test"}
    assert labels == {(split_of[p], p, s, n) for p, s, n in itertools.product(range(5), range(2), range(3))}
    assert len(found) == len(known) == 30
    assert len({int(r["recording_id"]) for r in found}) == 10
    one = next(r for r in found if (r["person_id"], r["camera_id"], r["frame_id"]) == (1, 0, 1))
    inside = one["depth"][20:50, 14:22, 0] / prepared_layout.GREY_MM  # the figure of known[7], a box at grey 76
    assert known[7].grey == 76
    assert np.abs(inside - 76).max() <= 2
    assert metadata(builder)["split"]["source"] == "splits.json"
    assert metadata(builder)["findings"] == [
        {"kind": "person", "file": "pku/meta.json", "words": "identity 5 has no frame"}
    ]
    assert prepare(config_of("paper", SIZE), tmp_path, workers=1).info.splits.keys() == {"train", "validation", "test"}


def test_raw_layout_is_discovered_and_people_are_cut_out(trees, tmp_path):
    folder, known = trees["raw"]
    height, width = 128, 64
    config = config_of("paper", {"height": height, "width": width, "crop_margin": 0.0})
    builder = prepare(config, tmp_path, folder, workers=1)
    assert metadata(builder)["mapping"] == "RobotPKU/P{person}/S{sequence}/{modality}/{frame}.{ext}"
    assert metadata(builder)["split"]["source"] == "seed"
    found = {(int(r["person_id"]), int(r["camera_id"]), int(r["frame_id"])): r for r in records(builder)}
    assert len(found) == len(known)
    one = known[-1]  # person 5, sequence 2 (camera 1), frame 3
    record = found[5, 1, 3]
    assert record["source"].decode() == one.rgb
    # The figure is 160 x 56 pixels; the window of aspect 2 around it is 160 x 80: 12 pixels of wall on each side.
    scale = height / 160
    np.testing.assert_allclose(record["person_box"], [0, 12 * scale, height, 68 * scale], atol=1e-4)
    left, right = round(12 * scale) + 1, round(68 * scale) - 1
    assert (record["depth"][:, left:right, 0] == one.mm).all()
    assert (record["depth"][:, : left - 2, 0] == example_tree.WALL_MM).all()
    assert (record["mask"][:, left:right] == 255).all()
    assert (record["mask"][:, : left - 2] == 0).all()
    assert np.abs(record["rgb"][4:-4, left + 3 : right - 3].astype(int) - one.colour).max() <= 6


def test_colour_of_twice_the_size_is_cut_at_the_same_place(trees):
    folder, known = trees["raw"]
    frame = scanned(folder).frames["train"][0]
    one = next(one for one in known if one.rgb == frame.rgb)
    large = Image.open(folder / frame.rgb).resize((640, 480), Image.Resampling.NEAREST)
    values = {"height": 80, "width": 40, "depth_unit_mm": 1.0, "crop": "foreground", "crop_margin": 0.1}
    plain = read_lib.read_frame(folder, frame, values)
    try:
        kept = (folder / frame.rgb).read_bytes()
        large.save(folder / frame.rgb, "PNG")
        doubled = read_lib.read_frame(folder, frame, values)
    finally:
        (folder / frame.rgb).write_bytes(kept)
    figures = []
    for made in (plain, doubled):
        image = cv2.imdecode(np.frombuffer(made["rgb"], np.uint8), cv2.IMREAD_COLOR_RGB)
        assert image is not None
        figures.append(np.abs(image.astype(int) - one.colour).max(axis=2) < 12)
    assert (figures[0] != figures[1]).mean() < 0.03  # the same figure, but for its outermost pixels
    assert figures[0].mean() > 0.2


LAYOUTS = {
    "person/sequence/modality": "{p:03d}/{s}/{m}/{n:04d}.png",
    "modality first": "{m}/{p}_{s}/{n:06d}.png",
    "suffixes": "data 2017/p{p}s{s}/f{n:04d}_{m}.png",
    "flat": "{p:02d}_{s}_{n:04d}_{m}.png",
    "word twice": "{m}Images/{p}/{s}/{m}_{n}.png",
    "sequence first": "seq{s}/{m}/person{p}/{n}.png",
    "dataset named RGBD": "RobotPKU RGBD-ID/{p}/{s}/{m}/{n}.png",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("words", [("rgb", "depth"), ("Color", "Depth"), ("RGB", "depth_map")])
def test_discovery(layout, words):
    instants = list(itertools.product((1, 2, 3, 40), (1, 2), (5, 6, 70)))
    paths = sorted(LAYOUTS[layout].format(p=p, s=s, n=n, m=m) for p, s, n in instants for m in words)
    mapping = scan_lib.discover(pathlib.Path("root"), paths)
    found = scan_lib._matched(pathlib.Path("root"), paths, mapping, findings := [])
    assert sorted(found) == sorted((str(p), str(s), str(n)) for p, s, n in instants)
    assert not findings
    for (p, s, n), pair in found.items():
        expected = {m: LAYOUTS[layout].format(p=int(p), s=int(s), n=int(n), m=m) for m in words}
        assert pair == {"rgb": expected[words[0]], "depth": expected[words[1]]}


def test_a_lone_d_is_depth():
    assert [scan_lib.modality_of(text) for text in ("a/1_D", "D/1", "Dora/1", "RGBD/1", "RGBD/rgb", "rgb/depth")] == [
        "depth",
        "depth",
        "",
        "",
        "rgb",
        "",
    ]


def test_colour_without_a_word_beside_marked_depth():
    paths = [f"{p}/{s}/{n}{end}" for p in (1, 2) for s in (1, 2) for n in (1, 2, 3) for end in (".jpg", "_depth.png")]
    mapping = scan_lib.discover(pathlib.Path("root"), paths)
    found = scan_lib._matched(pathlib.Path("root"), paths, mapping, [])
    assert found["2", "1", "3"] == {"rgb": "2/1/3.jpg", "depth": "2/1/3_depth.png"}


def test_mapping_with_names_and_anything_between(tmp_path):
    for name, modality in itertools.product(("ana", "bo", "cy"), ("color", "depth")):
        file = tmp_path / f"x_{name}_9" / f"{modality}-new" / "1.png"
        file.parent.mkdir(parents=True)
        pixels = np.zeros((20, 10, 3), np.uint8) if modality == "color" else np.full((20, 10), 9, np.uint8)
        Image.fromarray(pixels).save(file)
    found = scanned(tmp_path, "*_{person}_*/{modality}-new/{frame}.{ext}")
    assert found.metadata["persons"] == {"0": "ana", "1": "bo", "2": "cy"}
    frames = [frame for frames in found.frames.values() for frame in frames]
    assert {(frame.person_id, frame.rgb[2]) for frame in frames} == {(0, "a"), (1, "b"), (2, "c")}
    assert {frame.extra["depth_bits"] for frame in frames} == {8}


def test_people_are_split_by_the_published_shares():
    paths = [f"{p}/{s}/{m}/{n}.png" for p in range(1, 91) for s in (1, 2) for m in ("rgb", "depth") for n in (1, 2)]
    found = scan_lib.scan(pathlib.Path("nowhere"), paths, "", 3)
    assert {split: len({f.person_id for f in frames}) for split, frames in found.frames.items()} == scan_lib.SIZES


def _rename(folder: pathlib.Path, old: str, new: str) -> None:
    for path in sorted(folder.rglob(old)):
        path.rename(path.with_name(new))


def _more_people(folder: pathlib.Path) -> None:
    for number in range(6, 92):
        shutil.copytree(folder / "RobotPKU/P01", folder / f"RobotPKU/P{number:02d}")


REFUSED = {
    "no word for a modality": (
        lambda folder: [_rename(folder, "rgb", "a"), _rename(folder, "depth", "b")],
        {},
        r"no path says rgb, color or depth; found 30 .jpg, 30 .png, such as RobotPKU/P01/S1/a/0001.jpg, .*mapping=",
    ),
    "no depth": (lambda folder: _rename(folder, "depth", "x_rgb"), {}, "none has both a colour and a depth image"),
    "too many people": (_more_people, {}, "it has 91 people with up to 2 sequences, not 90 with 2"),
    "too many sequences": (
        lambda folder: shutil.copytree(folder / "RobotPKU/P01/S1", folder / "RobotPKU/P01/S3"),
        {},
        "it has 5 people with up to 3 sequences",
    ),
    "unknown field": (None, {"mapping": "{preson}/{frame}"}, r"no field \{preson\}; there are person"),
    "field missing": (None, {"mapping": "{person}/{frame}"}, r"lacks \{modality\}; give something like"),
    "a fold of a raw tree": (None, {"fold": 1}, "fold=1 needs the prepared layout with its splits.json in"),
    "mapping fits nothing": (None, {"mapping": "x{person}/{modality}/{frame}"}, "none has both a colour and a depth"),
    "8-bit among 16": (
        lambda folder: Image.new("L", (320, 240), 9).save(folder / "RobotPKU/P02/S1/depth/0002.png"),
        {},
        "has 8-bit samples where 16-bit depth is declared",
    ),
    "damaged everywhere": (
        lambda folder: [path.write_bytes(path.read_bytes()[:200]) for path in folder.rglob("*.png")],
        {},
        "frames of split .* cannot be used",
    ),
    "unpaired everywhere": (
        lambda folder: [path.unlink() for path in sorted(folder.rglob("*.png"))[1:]],
        {},
        "frames of split .* cannot be used",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_nothing_is_left(tree_of, tmp_path, case):
    harm, changes, words = REFUSED[case]
    folder = tree_of("raw")
    if harm:
        harm(folder)
    config = config_of("paper", {**SIZE, **changes})
    with pytest.raises(InputError, match=words) as caught:
        prepare(config, tmp_path / "data", folder, workers=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="needs files of yours"):
        prepare(config, tmp_path / "data", workers=1)


def test_frames_that_cannot_be_used_are_listed(tree_of, tmp_path):
    folder = tree_of("raw")
    person = folder / "RobotPKU/P03/S1"
    (person / "rgb/0001.jpg").unlink()
    (person / "rgb/0002.jpg").write_bytes(b"")
    Image.fromarray(np.full((240, 320), 900, np.uint16)).save(person / "depth/0003.png")
    (person / "rgb/note.png").write_bytes(b"?")
    builder = prepare(config_of("paper", {**SIZE, "bad_share": 0.9}), tmp_path / "data", folder, workers=1)
    found = {(one["kind"], one["file"].removeprefix("RobotPKU/P03/S1/")) for one in metadata(builder)["findings"]}
    assert found == {
        ("unpaired", "depth/0001.png"),
        ("empty_file", "rgb/0002.jpg"),
        ("full_mask", "depth/0003.png"),
        ("ignored", "rgb/note.png"),
    }
    assert sum(split.num_examples for split in builder.info.splits.values()) == 27


def test_foreground_is_the_nearest_thing_of_some_size():
    depth = np.full((240, 320), 3500, np.uint16)
    depth[40:200, 100:150] = np.linspace(1900, 2200, 160).astype(np.uint16)[:, None]
    depth[40:60, 100:150] = 2450  # an arm behind, with nothing at the depths between
    depth[10:20, 300:310] = 1800  # a speck nearer by
    depth[:, 200:230] = 2400  # a pillar behind
    expected = np.zeros(depth.shape, bool)
    expected[40:200, 100:150] = True
    np.testing.assert_array_equal(foreground.nearest(depth, 600), expected)
    assert not foreground.nearest(np.zeros((240, 320), np.uint16), 600).any()
    assert foreground.nearest(np.full((240, 320), 19_950, np.uint16), 600).all()
