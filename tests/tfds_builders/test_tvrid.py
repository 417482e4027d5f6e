"""TVRID: labels and boxes of the example tree, and broken CSV files."""

import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.recorded import tree
from tfds_builders.tvrid import example_tree
from tfds_builders.tvrid import scan as scan_lib
from tfds_builders.tvrid.tvrid_dataset_builder import config_of, prepare

SIZE = {"height": 60, "width": 60}


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tvrid")
    return folder, example_tree.write(folder)


@pytest.fixture
def tree_copy(example, tmp_path):
    shutil.copytree(example[0], tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture(scope="module")
def built(example, tmp_path_factory):
    return prepare(config_of("crops128", SIZE), tmp_path_factory.mktemp("data"), example[0], workers=1)


def records(builder: Any) -> list[dict[str, Any]]:
    return [{**record, "split": split} for split in builder.info.splits for record in builder.as_data_source(split)]


def scanned(folder: pathlib.Path):
    return scan_lib.scan(folder, tree.listing(folder), validation_share=0.2, seed=0)


def test_labels(example, built):
    found = {record["source"].decode(): record for record in records(built)}
    assert sorted(found) == sorted(one.rgb for one in example[1])
    for one in example[1]:
        record = found[one.rgb]
        assert (record["split"] == "test") == (one.side == "test")
        assert record["person_id"] == one.person
        assert record["camera_id"] == example_tree.CAMERAS.index(one.camera)
        names = [record[name].decode() for name in ("camera_name", "passage_name", "gallery_id")]
        assert names == [one.camera, one.passage, one.gallery_id]
        assert (record["recording_type"], record["modalities"]) == (2, 3)
    passages = {(record["recording_id"], record["gallery_id"]) for record in found.values()}
    assert len(passages) == len({number for number, _ in passages}) == 8 * 4 * 2
    assert {int(record["frame_id"]) for record in found.values()} == {0, 1}
    people = {
        split: {int(r["person_id"]) for r in found.values() if r["split"] == split} for split in built.info.splits
    }
    assert [len(people[split]) for split in ("train", "validation", "test")] == [4, 1, 3]
    assert people["test"] == {5, 6, 7}


def test_both_files_may_number_their_passages_alike(tree_copy):
    _csv(tree_copy, "test", _set(1, "gallery_id", "g000xy"))
    frames = [frame for frames in scanned(tree_copy).frames.values() for frame in frames]
    passages = {frame.recording_id for frame in frames if frame.extra["gallery_id"] == "g000xy"}
    assert len(passages) == 2


def test_metadata(built):
    metadata = built.info.metadata
    assert metadata["cameras"] == {"0": "flat", "1": "upward", "2": "downward", "3": "upsideDown"}
    assert metadata["passage_names"] == ["in", "out"]
    assert metadata["tracks"]["cross"] == {"query": "rgb", "gallery": "depth"}
    assert metadata["knobs"]["depth_unit_mm"] == 0.1
    assert len(metadata["split"]["validation_people"]) == 1
    assert metadata["findings"] == []


def test_figures_come_out_where_and_as_deep_as_they_are(example, built):
    found = {record["source"].decode(): record for record in records(built)}
    for one in example[1][:: len(example[1]) // 7]:
        record = found[one.rgb]
        top, left, bottom, right = (edge // 5 for edge in one.box)  # 300 to 60 pixels; edges are multiples of 5
        expected = np.full((60, 60), example_tree.FLOOR_MM, np.uint16)
        expected[top:bottom, left:right] = one.mm
        # Of 12 unmeasured rows a fifth is 2.4: the nearest pixel of rows 0 and 1 is invalid, that of row 2 is row 12.
        expected[:2] = 0
        np.testing.assert_array_equal(record["depth"][:, :, 0], expected)
        np.testing.assert_array_equal(record["mask"][:, :, 0], np.where(expected == one.mm, 255, 0))
        assert (record["rgb"][top:bottom, left:right] == one.colour).all()
        np.testing.assert_array_equal(record["person_box"], [0, 0, 60, 60])


@pytest.mark.parametrize(
    ("share", "validate"),
    [(0.0, 0), (0.01, 1), (0.2, 12), (0.5, 31)],
)
def test_share_of_people_who_validate(share, validate):
    chosen = scan_lib._validation(list(range(100, 162)), share, 3)
    assert len(chosen) == validate
    assert chosen <= set(range(100, 162))
    assert chosen == scan_lib._validation(list(range(100, 162)), share, 3)


def test_extracted_folder_itself_and_names_that_are_no_numbers(tree_copy):
    for side in scan_lib.LABELS.values():
        path = tree_copy / "DB_extracted" / side
        rows = [line.split(",") for line in path.read_text().splitlines()]
        text = "\n".join(",".join([row[0], f"id-{row[1]}", *row[2:]]) for row in rows[1:])
        path.write_text(f"﻿{','.join(rows[0])}\n{text}\n", encoding="utf-8")  # as Excel writes it
    found = scanned(tree_copy / "DB_extracted")
    assert found.metadata["people"] == {str(number): f"id-{number}" for number in range(8)}


def _csv(tree: pathlib.Path, side: str, change) -> None:
    path = tree / "DB_extracted" / scan_lib.LABELS[side]
    rows = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("".join(",".join(row) + "\n" for row in change(rows)))


def _set(row: int, column: str, value: str):
    index = scan_lib.COLUMNS.index(column)

    def change(rows):
        return [[*r[:index], value, *r[index + 1 :]] if number == row else r for number, r in enumerate(rows)]

    return change


def _swap(folder: pathlib.Path) -> None:
    for path in sorted((folder / "DB_extracted/train").rglob("*_RGB*.png")):
        depth = next(path.parent.glob(path.name.split("_")[0] + "_[dD]*.png"))
        kept = path.read_bytes()
        path.write_bytes(depth.read_bytes())
        depth.write_bytes(kept)


def _each_depth(folder: pathlib.Path, change) -> None:
    for path in folder.rglob("*_[dD]*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


REFUSED = {
    "nothing there": (
        lambda f: shutil.rmtree(f / "DB_extracted/train") or (f / "DB_extracted/train_labels.csv").unlink(),
        "but no train_labels.csv; give the folder DB_extracted",
    ),
    "two trees": (lambda f: shutil.copytree(f / "DB_extracted", f / "again"), "holds several train_labels.csv"),
    "no test labels": (lambda f: (f / "DB_extracted/public_test_labels.csv").unlink(), "does not exist; unpack"),
    "labels of the competition": (
        lambda f: _csv(f, "test", lambda rows: [[row[0], row[6]] for row in rows]),
        "no column 'person_id'; during the competition it had no labels: download the present archive",
    ),
    "another CSV": (
        lambda f: _csv(f, "train", lambda rows: [["a", "b"]]),
        "no column 'gallery_id'; give the published",
    ),
    "no rows": (lambda f: _csv(f, "train", lambda rows: rows[:1]), "has no rows"),
    "not UTF-8": (
        lambda f: (f / "DB_extracted/train_labels.csv").write_bytes(b"gallery_id\n\xff\n"),
        "is no CSV file in UTF-8",
    ),
    "quote without end": (lambda f: _csv(f, "train", _set(3, "cam_name", '"flat')), "is no CSV file in UTF-8"),
    "value missing": (lambda f: _csv(f, "train", _set(2, "person_id", "")), "train_labels.csv, row 2 has no person_id"),
    "row too short": (lambda f: _csv(f, "train", lambda rows: [*rows, ["x", "1"]]), "row 41 has no cam_name"),
    "value too many": (lambda f: _csv(f, "train", lambda rows: [*rows, [*rows[1], "x"]]), "row 41 has too many values"),
    "path out of the tree": (
        lambda f: _csv(f, "train", _set(1, "path", "..\\..\\etc")),
        r"row 1: path '\.\..*etc' leads out of the tree",
    ),
    "absolute path": (lambda f: _csv(f, "train", _set(1, "path", "/etc")), "leads out of the tree"),
    "path with a drive": (lambda f: _csv(f, "train", _set(1, "path", "C:\\etc")), "leads out of the tree"),
    "passage not there": (lambda f: shutil.rmtree(f / "DB_extracted/train/person_1/flat"), "holds no frames in"),
    "passage twice": (
        lambda f: _csv(f, "train", lambda rows: [*rows, ["new", *rows[1][1:]]]),
        "the path .*person_0/flat/in is in 2 rows of train_labels.csv",
    ),
    "gallery id twice": (
        lambda f: _csv(f, "train", _set(1, "gallery_id", "g001xy")),
        "the gallery_id g001xy is in 2 rows of train_labels.csv",
    ),
    "person on both sides": (
        lambda f: _csv(f, "test", _set(1, "person_id", "0")),
        "person 0 is in train_labels.csv and in public_test",
    ),
    "cameras mixed up": (lambda f: _csv(f, "train", _set(1, "cam_id", "2")), "cam_name and cam_id do not go together"),
    "swapped files": (_swap, "has I;16 samples where a colour image is declared"),
    "8-bit depth": (
        lambda f: _each_depth(f, lambda d: (d // 256).astype(np.uint8)),
        "8-bit samples where 16-bit depth",
    ),
    "millimetres": (
        lambda f: _each_depth(f, lambda d: d // 10),
        r"64 of the 64 frames of split .* depth is 0\.26 m with depth_unit_mm=0\.1, .*say depth_unit_mm=1\)",
    ),
    "depth of half of all frames missing": (
        lambda f: [path.unlink() for path in sorted(f.rglob("*_[dD]*.png"))[::2]],
        "frames of split train cannot be used",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_nothing_is_left(tree_copy, tmp_path, case):
    harm, words = REFUSED[case]
    harm(tree_copy)
    config = config_of("crops128", SIZE)
    with pytest.raises(InputError, match=words) as caught:
        prepare(config, tmp_path / "data", tree_copy, workers=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist or is empty"):  # there is no dataset that would be reused
        prepare(config, tmp_path / "data", tmp_path / "nowhere", workers=1)


def test_findings(tree_copy, tmp_path):
    passage = tree_copy / "DB_extracted/train/person_0/flat/in"
    stem = "1700000000000"
    shutil.copy(passage / f"{stem}_RGB.png", passage / f"{stem}_RGB_person.png")
    (passage / "notes.txt").write_text("x")
    other = tree_copy / "DB_extracted/train/person_99"
    shutil.copytree(passage, other)
    out = passage.with_name("out")
    (out / f"{stem}_depth.png").unlink()
    Image.fromarray(np.zeros((300, 300), np.uint16)).save(out / "1700000000040_depth.png")
    builder: Any = prepare(config_of("crops128", SIZE), tmp_path / "data", tree_copy, workers=1)
    home = "DB_extracted/train/person_"
    assert sorted((one["kind"], one["file"], one["words"]) for one in builder.info.metadata["findings"]) == [
        ("duplicate", f"{home}0/flat/in/{stem}_RGB_person.png", f"it repeats {home}0/flat/in/{stem}_RGB.png; left out"),
        ("ignored", f"{home}0/flat/in/notes.txt", "its name fits nothing here; left out"),
        ("ignored", f"{home}99", "no CSV file names it; 6 files left out"),
        ("no_depth", f"{home}0/flat/out/1700000000040_depth.png", "no pixel has a valid depth"),
        ("unpaired", f"{home}0/flat/out/{stem}_RGB.png", "there is no depth image for it"),
    ]
    assert sum(split.num_examples for split in builder.info.splits.values()) == 128 - 2
