"""The prepared layout: scanned against counts by hand, read against boxes of known place and grey."""

import io
import json
import pathlib
import shutil

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.representation import depth_input
from tfds_builders.recorded import prepared_example, prepared_layout
from tfds_builders.recorded.frames import BadFrame
from tfds_builders.recorded.prepared_example import COLUMNS, FAR, ROWS

SIZES = {"train": 3, "validation": 1, "test": 2}
# Persons 0 and 1 have been recorded again in other clothes: identities 1 and 3, before two cameras each.
IDENTITIES = [(0, [0]), (0, [1, 2]), (1, [0]), (1, [1, 2]), (2, [0]), (3, [0]), (4, [0])]
FOLD = {"trainval": [0, 3, 4, 5], "train": [0, 4, 5], "val": [3], "query": [1, 2, 6], "gallery": [1, 2, 6]}
FOLDS = [FOLD, {**FOLD, "train": [0, 3, 4], "val": [5]}]
KNOBS = {"height": 128, "width": 64, "grey_mm": prepared_layout.GREY_MM}


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    return folder, prepared_example.write(folder, "shop", IDENTITIES, FOLDS)


@pytest.fixture
def tree_copy(example, tmp_path):
    shutil.copytree(example[0], tmp_path / "tree")
    return tmp_path / "tree"


def scan(folder: pathlib.Path, **choices):
    root, paths = prepared_layout.listing(folder)
    chosen = {"fold": 0, "sizes": SIZES, "seed": 0, "outfit": lambda sequence: min(sequence, 1), **choices}
    return root, prepared_layout.scan(root, paths, **chosen)


def decoded(encoded: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def labels(found) -> dict[str, tuple]:
    return {
        frame.rgb: (split, frame.person_id, frame.camera_id, frame.recording_id, frame.clothes_id, frame.frame_id)
        for split, frames in found.frames.items()
        for frame in frames
    }


def people(found) -> dict[str, set[int]]:
    return {split: {frame.person_id for frame in frames} for split, frames in found.frames.items()}


def test_published_fold(example):
    folder, known = example
    root, found = scan(folder)
    assert root == folder
    assert people(found) == {"train": {0, 4, 5}, "validation": {3}, "test": {1, 2, 6}}
    assert len(labels(found)) == len(known)
    assert not found.findings
    # Recordings by hand: (P, S) in order are (0,0) (0,1) (0,2) (1,0) (1,1) (1,2) (2,0) (3,0) (4,0).
    assert labels(found)["shop/images/00000001_02_0001.jpg"] == ("validation", 3, 1, 5, 3, 1)
    assert labels(found)["shop/images/00000000_00_0002.jpg"] == ("train", 0, 0, 0, 0, 2)
    assert found.metadata["split"]["source"] == "splits.json"
    assert found.metadata["persons_of_identities"]["3"] == 1
    frame = found.frames["train"][0]
    assert frame.depth == "shop_depth/images/00000000_00_0000.jpg"


def test_other_fold_moves_the_validation_identity(example):
    assert people(scan(example[0], fold=1)[1])["validation"] == {5}


def test_the_half_itself_is_as_good_as_its_parent(example):
    root, found = scan(example[0] / "shop")
    assert root == example[0]
    assert labels(found) == labels(scan(example[0])[1])


def test_names_tell_what_meta_says(tree_copy):
    with_meta = labels(scan(tree_copy)[1])
    for half in ("shop", "shop_depth"):
        (tree_copy / half / "meta.json").unlink()
    assert labels(scan(tree_copy)[1]) == with_meta


def test_people_keep_their_identity_in_other_clothes(example):
    _, found = scan(example[0], grouping="person")
    split_of = {person: split for split, found_people in people(found).items() for person in found_people}
    assert sorted(split_of) == [0, 1, 2, 3, 4]
    assert [len(people(found)[split]) for split in ("train", "validation", "test")] == [3, 1, 1]
    recorded_again = [frame for frames in found.frames.values() for frame in frames if frame.person_id == 1]
    assert {(frame.camera_id, frame.clothes_id) for frame in recorded_again} == {(0, 2), (1, 3), (2, 3)}
    assert found.metadata["split"]["source"] == "seed"


def test_split_from_a_seed(tree_copy):
    (tree_copy / "shop" / "splits.json").unlink()
    _, found = scan(tree_copy)
    assert {split: len(ids) for split, ids in people(found).items()} == {"train": 4, "validation": 1, "test": 2}
    assert people(found) == people(scan(tree_copy)[1])
    assert any(people(found) != people(scan(tree_copy, seed=seed)[1]) for seed in range(1, 5))
    assert found.metadata["split"] == {
        "source": "seed",
        "seed": 0,
        "person_ids": {split: sorted(ids) for split, ids in people(found).items()},
    }


def test_sequences_can_be_chosen_and_typed(example):
    _, found = scan(example[0], keep=lambda sequence: sequence != 2, recording_types=lambda sequence: 1 + sequence)
    types = {(frame.rgb[-11:-9], frame.recording_type) for frames in found.frames.values() for frame in frames}
    assert types == {("00", 1), ("01", 2)}
    # What is left out changes nothing of what stays.
    assert labels(found).items() < labels(scan(example[0])[1]).items()


@pytest.mark.parametrize("size", [(128, 64), (96, 96), (64, 32)])
def test_figures_come_out_where_and_as_deep_as_they_are(example, size):
    folder, known = example
    root, found = scan(folder)
    height, width = size
    one = known[4]
    frame = next(frame for frames in found.frames.values() for frame in frames if frame.rgb.endswith(one.file))
    made = prepared_layout.read(root, frame, {**KNOBS, "height": height, "width": width})
    rgb, depth, mask = (decoded(made[name]) for name in ("rgb", "depth", "mask"))
    assert (rgb.shape, depth.shape, depth.dtype) == ((height, width, 3), size, np.uint16)
    # The source is 96 x 48: scaled to fit, with bars left and right where the stored image is wider.
    scale = min(height / ROWS, width / COLUMNS)
    left = (width - COLUMNS * scale) / 2
    np.testing.assert_allclose(made["person_box"], [0, left, ROWS * scale, left + COLUMNS * scale], atol=1e-4)
    top, first, bottom, last = (edge * scale for edge in one.box)
    inside = (slice(round(top) + 2, round(bottom) - 2), slice(round(left + first) + 2, round(left + last) - 2))
    around = (slice(round(bottom) + 3, height - 1), slice(round(left) + 2, width - round(left) - 2))
    assert (
        np.abs(depth[inside] / prepared_layout.GREY_MM - one.grey).max() <= 2
    )  # JPEG keeps flat grey to a level or two
    assert np.abs(depth[around] / prepared_layout.GREY_MM - FAR).max() <= 3
    assert np.abs(rgb[inside][:, :, ::-1].astype(int) - one.colour).max() <= 6
    assert (mask[inside] == 255).all()
    assert (mask[:, : int(left)] == 0).all()
    assert not made["intrinsics"].any()


def test_metric_representation_is_the_grey(tmp_path):
    grey = np.arange(1, 256, dtype=np.uint8).reshape(1, 255).repeat(255, axis=0)
    name = "00000000_00_0000.jpg"
    # PNG within a file named .jpg: the decoder goes by content, and nothing is lost on the way.
    for half in ("shop", "shop_depth"):
        (tmp_path / half / "images").mkdir(parents=True)
        Image.fromarray(grey).save(tmp_path / half / "images" / name, "PNG")
    frame = prepared_layout.Frame(0, 0, 0, 0, rgb=f"shop/images/{name}", depth=f"shop_depth/images/{name}")
    made = prepared_layout.read(tmp_path, frame, {**KNOBS, "height": 255, "width": 255})
    depth = jnp.asarray(decoded(made["depth"]))[None, :, :, None]
    seen = np.asarray(depth_input(depth, jnp.ones((1, 255, 255, 1), jnp.uint8), "metric"))[0, 0, :, 0]
    np.testing.assert_allclose(seen, grey[0] / 255 * 2 - 1, atol=1.3e-4)  # half a millimetre of 8 m


def _set_meta(tree: pathlib.Path, change) -> None:
    path = tree / "shop" / "meta.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def _set_fold(tree: pathlib.Path, **ids) -> None:
    (tree / "shop" / "splits.json").write_text(json.dumps([{**FOLD, **ids}]))


REFUSED = {
    "no twin": (lambda tree: shutil.rmtree(tree / "shop_depth"), r"found shop/images \(27 files\); needed are"),
    "no images": (lambda tree: [shutil.rmtree(tree / half) for half in ("shop", "shop_depth")], "found no images"),
    "two datasets": (
        lambda tree: [shutil.copytree(tree / f"shop{half}", tree / f"yard{half}") for half in ("", "_depth")],
        "holds several datasets: shop, yard; give one, such as .*/shop",
    ),
    "meta is no JSON": (
        lambda tree: (tree / "shop/meta.json").write_text("{"),
        r"meta.json is not valid JSON \(.*; give the published file, or remove it",
    ),
    "meta is no UTF-8": (lambda tree: (tree / "shop/meta.json").write_bytes(b'"\xff"'), "meta.json is not valid JSON"),
    "meta is a list": (lambda tree: (tree / "shop/meta.json").write_text("[]"), 'must hold {"identities"'),
    "meta without identities": (lambda tree: _set_meta(tree, lambda meta: meta.pop("identities")), "must hold"),
    "identity is no list": (lambda tree: _set_meta(tree, lambda meta: meta["identities"].append(3)), "must hold"),
    "camera is no list": (lambda tree: _set_meta(tree, lambda meta: meta["identities"].append(["a.jpg"])), "must hold"),
    "file is no text": (lambda tree: _set_meta(tree, lambda meta: meta["identities"][0][0].append(7)), "must hold"),
    "file leads out of the tree": (
        lambda tree: _set_meta(tree, lambda meta: meta["identities"][0][0].append("../../00000000_00_0009.jpg")),
        r"names '../../00000000_00_0009.jpg', which is no PPPPPPPP_SS_FFFF.jpg",
    ),
    "identity of two persons": (
        lambda tree: _set_meta(tree, lambda meta: meta["identities"][4][0].append("00000009_00_0000.jpg")),
        r"identity 4 has files of the persons 2 and 9 \(00000009_00_0000.jpg\)",
    ),
    "file in two identities": (
        lambda tree: _set_meta(tree, lambda meta: meta["identities"].append([["00000002_00_0000.jpg"]])),
        "00000002_00_0000.jpg is in identity 7, camera 0, other files of its sequence are in identity 4, camera 0",
    ),
    "splits is no JSON": (lambda tree: (tree / "shop/splits.json").write_text("[{]"), "splits.json is not valid JSON"),
    "splits is an object": (lambda tree: (tree / "shop/splits.json").write_text("{}"), "must hold a list of objects"),
    "fold without ids": (
        lambda tree: (tree / "shop/splits.json").write_text("[{}]"),
        "must be a list of whole numbers",
    ),
    "ids are text": (lambda tree: _set_fold(tree, train=["0"]), "'train' must be a list of whole numbers"),
    "id does not exist": (lambda tree: _set_fold(tree, train=[0, 7]), "names identity 7; there are 0 to 6"),
    "id on both sides": (lambda tree: _set_fold(tree, train=[0, 1]), "identity 1 in train and in test"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tree_copy, case):
    harm, words = REFUSED[case]
    harm(tree_copy)
    with pytest.raises(InputError, match=words) as caught:
        scan(tree_copy)
    assert "\n" not in str(caught.value)


def test_no_such_fold(example):
    with pytest.raises(InputError, match=r"fold=2: .*splits.json has the folds 0 to 1"):
        scan(example[0], fold=2)


def test_findings_of_a_scan(tree_copy):
    images = tree_copy / "shop/images"
    (images / "Thumbs.db").write_bytes(b"x")
    shutil.copy(images / "00000002_00_0000.jpg", images / "00000002_00_0009.jpg")
    _set_fold(tree_copy, train=[0, 5])

    def change(meta):
        meta["identities"].append([[], []])
        meta["identities"][6][0][:] = ["00000004_00_0001.jpg"] * 2

    _set_meta(tree_copy, change)
    found = scan(tree_copy)[1]
    assert sorted((finding.kind, finding.file, finding.words) for finding in found.findings) == [
        ("duplicate", "shop/meta.json", "it names 00000004_00_0001.jpg twice; used once"),
        ("ignored", "shop/images/00000002_00_0009.jpg", "meta.json does not name it; left out"),
        ("ignored", "shop/images/00000004_00_0000.jpg", "meta.json does not name it; left out"),
        ("ignored", "shop/images/00000004_00_0002.jpg", "meta.json does not name it; left out"),
        ("ignored", "shop/images/Thumbs.db", "its name fits nothing here; left out"),
        ("ignored", "shop_depth/images/00000004_00_0000.jpg", "meta.json does not name it; left out"),
        ("ignored", "shop_depth/images/00000004_00_0002.jpg", "meta.json does not name it; left out"),
        ("person", "shop/meta.json", "identity 6 has 1 frame"),
        ("person", "shop/meta.json", "identity 7 has no frame"),
        ("person", "shop/splits.json", "identity 4 is in no list; left out"),
    ]
    assert people(found) == {"train": {0, 5}, "validation": {3}, "test": {1, 2, 6}}


def _write(path: pathlib.Path, size: tuple[int, int], colour: int | tuple[int, int, int]) -> None:
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path, "JPEG")


BAD = {
    "no colour": (lambda rgb, depth: rgb.unlink(), "unpaired", "the file is missing"),
    "no depth": (lambda rgb, depth: depth.unlink(), "unpaired", "the file is missing"),
    "zero bytes": (lambda rgb, depth: rgb.write_bytes(b""), "empty_file", "zero bytes"),
    "truncated": (lambda rgb, depth: depth.write_bytes(depth.read_bytes()[:400]), "corrupt", "does not decode"),
    "other shape": (
        lambda rgb, depth: _write(depth, (90, 96), 70),
        "corrupt",
        "it is 90x96 and its colour image 48x96",
    ),
    "all invalid": (lambda rgb, depth: _write(depth, (48, 96), 0), "no_depth", "no pixel has a valid depth"),
}


@pytest.mark.parametrize("case", BAD)
def test_frames_that_cannot_be_used(tree_copy, case):
    harm, kind, words = BAD[case]
    root, found = scan(tree_copy)
    frame = found.frames["test"][0]
    harm(root / frame.rgb, root / frame.depth)
    root, found = scan(tree_copy)  # still in the scan, so that it counts as one that cannot be used
    assert found.frames["test"][0] == frame
    with pytest.raises(BadFrame) as caught:
        prepared_layout.read(root, frame, KNOBS)
    assert (caught.value.finding.kind, words in caught.value.finding.words) == (kind, True)


def test_twins_of_other_sizes_but_one_shape_are_scaled(tree_copy):
    root, found = scan(tree_copy)
    frame = found.frames["test"][0]
    _write(root / frame.rgb, (97, 192), (200, 30, 30))
    made = prepared_layout.read(root, frame, KNOBS)
    assert Image.open(io.BytesIO(made["rgb"])).size == (64, 128)


@pytest.mark.parametrize(
    ("colour", "words"), [((200, 30, 30), "not the 8-bit grey depth"), (None, "I;16, not the 8-bit grey")]
)
def test_swapped_folders_and_16_bit_depth_stop_at_once(tree_copy, colour, words):
    root, found = scan(tree_copy)
    frame = found.frames["test"][0]
    if colour:
        _write(root / frame.depth, (48, 96), colour)
    else:
        Image.fromarray(np.full((96, 48), 900, np.uint16)).save(root / frame.depth, "PNG")
    with pytest.raises(InputError, match=words):
        prepared_layout.read(root, frame, KNOBS)
