"""Every kind of bad input ends in one line: an error after which nothing is there to be trusted, or a finding.

One table over the example tree of `rgbd_folder`: how the tree is harmed, how the build ends, what the line says.
"""

import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rgbd_reid_jax.core.errors import InputError
from tfds_builders import prepare as prepare_lib
from tfds_builders.recorded import splits, tree
from tfds_builders.recorded.frames import KINDS
from tfds_builders.rgbd_folder import example_tree
from tfds_builders.rgbd_folder.rgbd_folder_dataset_builder import config_of, prepare

FRAME = "train/anna/door/first/0"
ERROR = "error"
Harm = Callable[[pathlib.Path], dict[str, Any] | None]
"""Harms a tree; returns the knobs of the build."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Attributes:
        what: names it.
        harm: makes it.
        ends: "error", or the kind of the finding.
        words: what the message or the finding must hold.
        frames: how many frames are left of 24 where it ends in a finding.
    """

    what: str
    harm: Harm
    ends: str
    words: tuple[str, ...]
    frames: int = 23


def image(kind: str, pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def put(name: str, content: bytes, *, instead_of: str = "") -> Harm:
    """Writes one file, and removes another."""

    def harm(root: pathlib.Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        if instead_of:
            (root / instead_of).unlink()

    return harm


def edit(name: str, change: Callable[[bytes], bytes]) -> Harm:
    def harm(root: pathlib.Path) -> None:
        (root / name).write_bytes(change((root / name).read_bytes()))

    return harm


def flipped(content: bytes) -> bytes:
    middle = content.index(b"IDAT") + 12
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def pgm(content: bytes) -> Harm:
    """One depth image as PGM instead of PNG."""
    return put(f"{FRAME}_depth.pgm", content, instead_of=f"{FRAME}_depth.png")


def png_of_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def manifest(change: Callable[[list[str]], list[str]] | bytes, name: str = "manifest.csv") -> Harm:
    """The same frames listed in a manifest, and its lines changed (or all of it replaced)."""

    def harm(root: pathlib.Path) -> dict[str, Any]:
        shutil.rmtree(root)
        example_tree.write(root, name.rpartition(".")[2])
        text = (root / name).read_text()
        content = change if isinstance(change, bytes) else "\n".join(change(text.splitlines())).encode()
        (root / name).write_bytes(content)
        return {"manifest": name}

    return harm


def cell(line: int, before: str, after: str, name: str = "manifest.csv") -> Harm:
    def change(lines: list[str]) -> list[str]:
        assert before in lines[line - 1]
        return [*lines[: line - 1], lines[line - 1].replace(before, after, 1), *lines[line:]]

    return manifest(change, name)


def _bo_is_anna(lines: list[str]) -> list[str]:
    assert ",anna,door,first,0," in lines[1]
    return [*lines, lines[1].replace(",anna,door,first,0,", ",bo,door,first,9,")]


def _box_outside(lines: list[str]) -> list[str]:
    return [lines[0], re.sub('".*"', '"900,900,950,950"', lines[1]), *lines[2:]]


def knobs(**values: Any) -> Harm:
    return lambda root: values


def _tenths(root: pathlib.Path) -> None:
    for path in root.rglob("*_depth.png"):
        with Image.open(path) as stored:
            content = image("PNG", np.asarray(stored).astype(np.uint16) * 10)
        path.write_bytes(content)


def _swap_all(root: pathlib.Path) -> None:
    for path in list(root.rglob("*_depth.png")):
        colour = path.with_name(path.name.replace("_depth.png", "_rgb.jpg"))
        path.rename(path.with_name(path.name.replace("_depth", "_rgb")))
        colour.rename(colour.with_name(colour.name.replace("_rgb", "_depth")))


def _move(source: str, target: str) -> Harm:
    def harm(root: pathlib.Path) -> None:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (root / source).rename(root / target)

    return harm


def _one_frame(root: pathlib.Path) -> None:
    shutil.rmtree(root / "test/fay/hall")
    for path in (root / "test/fay/door/first").glob("1_*"):
        path.unlink()


def _not_utf8(root: pathlib.Path) -> None:
    with open(os.fsencode(root) + b"/train/anna/door/first/caf\xe9_rgb.png", "wb") as file:
        file.write(b"x")


def _link(name: str, target: str) -> Harm:
    return lambda root: (root / name).symlink_to(target)


def _mask_alone(root: pathlib.Path) -> None:
    (root / RGB).unlink()
    (root / DEPTH).unlink()


def _two_people(root: pathlib.Path) -> None:
    shutil.move(root / "train/anna", root / "anna")
    shutil.move(root / "train/bo", root / "bo")
    for split in ("train", "val", "test"):
        shutil.rmtree(root / split)


def _empty(root: pathlib.Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


RGB, DEPTH, MASK = f"{FRAME}_rgb.jpg", f"{FRAME}_depth.png", f"{FRAME}_mask.png"
GREY = np.full((60, 80), 90, np.uint8)
NEAR = np.full((60, 80), 2500, ">u2")
SPEC = {"width": 160, "height": 160, "fx": 1, "fy": 1, "cx": 1, "cy": 1}

CASES = [
    # Files that are missing, empty or damaged
    Case("missing depth image", lambda root: (root / DEPTH).unlink(), "unpaired", ("1 frames of train", "alone"), 24),
    Case("missing colour image", lambda root: (root / RGB).unlink(), "unpaired", ("1 depth alone: kept",), 24),
    Case("colour file of zero bytes", put(RGB, b""), "empty_file", (RGB, "zero bytes")),
    Case("depth file of zero bytes", put(DEPTH, b""), "empty_file", (DEPTH, "zero bytes")),
    Case("truncated JPEG", edit(RGB, lambda c: c[: len(c) // 2]), "corrupt", (RGB, "does not decode")),
    Case("JPEG with a tail of zeros", edit(RGB, lambda c: c[:-90] + bytes(90)), "corrupt", (RGB, "does not decode")),
    Case("truncated PNG", edit(DEPTH, lambda c: c[:-30]), "corrupt", (DEPTH, "does not decode")),
    Case("PNG with a changed bit", edit(DEPTH, flipped), "corrupt", (DEPTH, "does not decode")),
    Case("text named as an image", put(RGB, b"<html>404</html>"), "corrupt", (RGB, "does not decode")),
    Case("PGM that is too short", pgm(b"P5 80 60 65535\n" + bytes(900)), "corrupt", ("has 900 bytes of samples",)),
    Case("depth without a valid pixel", put(DEPTH, image("PNG", NEAR * 0)), "no_depth", (DEPTH, "no pixel of")),
    Case("empty person mask", put(MASK, image("PNG", GREY * 0)), "empty_mask", (MASK, "0 pixels", "fewer than 100")),
    Case("person mask that fills the frame", put(MASK, image("PNG", GREY)), "full_mask", (MASK, "every pixel")),
    Case("a mask alone", _mask_alone, "ignored", (MASK, "without an")),
    Case("a file that fits nothing", put("notes/me.txt", b"x"), "ignored", ("1 files '.txt' are not read",), 24),
    Case("one depth image out of range", put(DEPTH, image("PNG", NEAR * 12)), "out_of_range", (DEPTH, "reach 30 m")),
    Case("a person with one frame", _one_frame, "person", ("person 'fay' has one frame",), 21),
    # Files of another kind than declared
    Case("8-bit depth where 16 bits are declared", put(DEPTH, image("PNG", GREY)), ERROR, (DEPTH, "8-bit samples")),
    Case("16-bit depth where 8 are declared", knobs(depth_bits=8), ERROR, ("_depth.png", "not the 8-bit grey depth")),
    Case("PGM of another maxval", pgm(b"P5 80 60 4095\n" + bytes(9600)), ERROR, ("maxval 4095, expected 65535",)),
    Case("little-endian PGM", pgm(b"P5 80 60 65535\n" + (NEAR + 3).tobytes()), ERROR, ("little-endian", "write it")),
    Case("JPEG as depth", put(f"{FRAME}_depth.jpg", b"x", instead_of=DEPTH), ERROR, ("'jpg'", "say depth_bits=8")),
    Case("NumPy array as depth", put(f"{FRAME}_depth.npy", b"x", instead_of=DEPTH), ERROR, ("'npy'", "give pgm, png")),
    Case("JPEG as mask", put(f"{FRAME}_mask.jpg", b"x", instead_of=MASK), ERROR, ("mask in the format 'jpg'",)),
    Case("swapped folders", _swap_all, ERROR, ("_depth.jpg", "swapped")),
    Case("depth stored as colour", put(f"{FRAME}_rgb.png", image("PNG", NEAR), instead_of=RGB), ERROR, ("swapped",)),
    Case("colour stored as depth", put(DEPTH, image("PNG", np.zeros((60, 80, 3), np.uint8))), ERROR, ("swapped",)),
    Case("depth in another unit", _tenths, ERROR, ("45 m where one step is 1 mm", "depth_unit_mm=0.1 would fit")),
    Case("sizes of different aspects", put(DEPTH, image("PNG", NEAR[:50])), ERROR, ("80x50", "aspects differ")),
    Case("decompression bomb", put(RGB, png_of_size(60_000, 60_000)), ERROR, (RGB, "no camera here")),
    Case("image of 100 megapixels", put(RGB, png_of_size(10_000, 10_000)), ERROR, (RGB, "more than 64,000,000")),
    # Trees
    Case("duplicate frame ids", put(f"{FRAME}_RGB.PNG", b"x"), ERROR, ("both the rgb image of one frame",)),
    Case("a person in two splits", _move("train/bo/hall", "test/bo/hall"), ERROR, ("person 'bo' is in split",)),
    Case("a folder that is no split", _move("val", "valid"), ERROR, ("'valid' is no split", "validation, val")),
    Case("a folder too few", _move(RGB, "train/anna/0_rgb.jpg"), ERROR, ("lies in 2 folders; expected <split>",)),
    Case("two people and no split", _two_people, ERROR, ("2 people cannot be split",)),
    Case("a name that is not UTF-8", _not_utf8, ERROR, (r"caf\xe9_rgb.png", "is not UTF-8; rename")),
    Case("a name of two lines", put("train/anna/a\nb_rgb.png", b"x"), ERROR, ("'a\\nb_rgb.png' holds control",)),
    Case("a link out of the tree", _link("train/x", "/etc"), ERROR, ("is a link to /etc, out of the tree",)),
    Case("a link to nothing", _link("train/x", "gone"), ERROR, ("which does not exist",)),
    Case("a link in a circle", _link("train/anna/x", ".."), ERROR, ("train/anna/x is a link",)),
    Case("a pipe", lambda root: os.mkfifo(root / "train/x"), ERROR, ("neither a file nor a folder",)),
    Case("an empty folder", _empty, ERROR, ("does not exist or is empty", "--manual_dir")),
    Case("no folder", shutil.rmtree, ERROR, ("does not exist or is empty", "--manual_dir")),
    Case("nothing but other files", lambda r: _empty(r) or put("a/b.txt", b"x")(r), ERROR, ("a/b.txt", "<frame>_rgb")),
    # JSON and manifests
    Case("malformed JSON", put("intrinsics.json", b'{"door": '), ERROR, ("intrinsics.json is not valid JSON",)),
    Case("JSON of another shape", put("intrinsics.json", b'{"door": [1]}'), ERROR, ("camera 'door' has [1]; give",)),
    Case("a camera that does not exist", put("intrinsics.json", b'{"x": {}}'), ERROR, ("camera 'x'", "door, hall")),
    Case(
        "intrinsics of another view", put("intrinsics.json", json.dumps({"door": SPEC}).encode()), ERROR, ("160x160",)
    ),
    Case("malformed CSV", manifest(lambda lines: [*lines, '"a']), ERROR, ("manifest.csv line", "not valid CSV")),
    Case("a CSV line cut short", manifest(lambda lines: [*lines, "a,b"]), ERROR, ("line 26 has 2 cells", "line 9")),
    Case("a CSV without a column", cell(1, "person_id", "who"), ERROR, ("lacks the column 'person_id'",)),
    Case("a CSV with a column twice", cell(1, "depth", "rgb"), ERROR, ("has the column 'rgb' twice",)),
    Case("a manifest that is not UTF-8", manifest(b"rgb,\xff"), ERROR, ("manifest.csv is not UTF-8 (byte 4)",)),
    Case("a manifest of nothing", manifest(lambda lines: lines[:1]), ERROR, ("lists no frame",)),
    Case("malformed JSON lines", manifest(b"\n{", "manifest.jsonl"), ERROR, ("line 2 is not valid JSON",)),
    Case("a line of no JSON object", manifest(b"[1]", "manifest.jsonl"), ERROR, ("line 1 is no JSON object",)),
    Case("a manifest that is not there", knobs(manifest="my.csv"), ERROR, ("my.csv does not exist",)),
    Case("a file that does not exist", cell(3, "_rgb.jpg", "_rgb.JPG"), ERROR, ("line 3", "is no file of the tree")),
    Case("a path out of the tree", cell(3, "images/", "../images/"), ERROR, ("line 3", "is no file of the tree")),
    Case("a split that is none", cell(2, "train", "training"), ERROR, ("line 2: split='training'; give one of",)),
    Case("splits for some people only", cell(2, "train", ""), ERROR, ("'anna' is in split 'train' and in 'none'",)),
    Case("a box that is none", cell(2, '"', '"x'), ERROR, ("line 2: box=", "give four numbers")),
    Case("a box upside down", cell(2, '"', '"900'), ERROR, ("line 2: box=", "with x0 < x1")),
    Case("a box outside its image", manifest(_box_outside), ERROR, ("box=900,900,950,950 lies outside its 160x120",)),
    Case("a frame listed twice", manifest(lambda lines: [*lines, lines[1]]), ERROR, ("line 26 is frame '0'", "line 2")),
    Case("an image of two people", manifest(_bo_is_anna), ERROR, ("line 26 has the images of", "line 2")),
    Case("an image with two partners", cell(3, "-door-1", "-door-0"), ERROR, ("line 3 pairs", "otherwise than")),
]


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("bad_trees") / "tree"
    example_tree.write(folder)
    return folder


def build(folder: pathlib.Path, root: pathlib.Path, **values: Any) -> Any:
    return prepare(config_of("small", values), folder / "data", root, workers=1)


def nothing_is_trusted(folder: pathlib.Path) -> bool:
    return not [path for path in folder.glob("data/rgbd_folder/*/*") if path.name.startswith(("1.", "incomplete"))]


def test_there_are_many_kinds():
    assert len({case.what for case in CASES}) == len(CASES) >= 25
    assert {case.ends for case in CASES} - {ERROR} <= set(KINDS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_bad_input_ends_in_one_line(case, example, tmp_path):
    root = shutil.copytree(example, tmp_path / "tree")
    values = case.harm(root) or {}
    if case.ends == ERROR:
        with pytest.raises(InputError) as caught:
            build(tmp_path, root, **values)
        line = str(caught.value)
        assert nothing_is_trusted(tmp_path)
        with pytest.raises(InputError, match=re.escape(line)):
            build(tmp_path, root, **values)  # a later run finds nothing to accept, and says the same
    else:
        builder = build(tmp_path, root, **values)
        [finding] = builder.info.metadata["findings"]
        assert finding["kind"] == case.ends
        line = f"{finding['file']}: {finding['words']}"
        assert sum(split.num_examples for split in builder.info.splits.values()) == case.frames
    for word in case.words:
        assert word in line
    assert "\n" not in line
    assert len(line) < 500


def _zip(path: pathlib.Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")


def _tar(path: pathlib.Path, name: str) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo(name))


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x"])
@pytest.mark.parametrize("pack", [_zip, _tar])
def test_archives_with_members_elsewhere_unpack_nothing(tmp_path, pack, name):
    pack(tmp_path / "archive", name)
    with pytest.raises(InputError, match=r"member '.*x' would be written outside its folder; do not use this archive"):
        tree.extract(tmp_path / "archive", tmp_path / "out", 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_id_lists_that_name_people_who_do_not_exist(tmp_path):
    (tmp_path / "splits.json").write_text('[{"train": [0], "val": [1], "query": [99], "gallery": []}]')
    with pytest.raises(InputError, match=r"splits\.json: fold 0 names identity 99; there are 0 to 7"):
        splits.official_splits(tmp_path / "splits.json", 0, 8)


@pytest.fixture
def mounted(tmp_path) -> Iterator[Callable[[str], pathlib.Path]]:
    """Mounts a small file system with some options; only root may."""
    made = []

    def mount(options: str) -> pathlib.Path:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        if (
            os.geteuid()
            or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode
        ):
            pytest.skip("needs the right to mount a file system")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_disk(example, mounted):
    with pytest.raises(InputError, match=r"cannot write to .*/rgbd_folder/small \(Read-only file system\); choose"):
        build(mounted("ro,size=1m"), example)


def test_a_disk_that_is_too_small_is_said_before_the_work(example, mounted):
    disk = mounted("size=1m")
    with pytest.raises(InputError, match=r"has 1 MB free and the build needs 2 MB; free some space or choose another"):
        build(disk, example)
    assert nothing_is_trusted(disk)


def test_a_disk_that_fills_up_meanwhile(example, mounted, monkeypatch):
    monkeypatch.setattr(prepare_lib, "check_free_space", lambda *_: None)
    disk = mounted("size=128k")
    with pytest.raises(InputError, match=r"the disk of .*/small is full; free some space and run again") as caught:
        build(disk, example)
    assert "\n" not in str(caught.value)
    assert nothing_is_trusted(disk)
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    assert build(disk, example).info.splits["test"].num_examples == 8
