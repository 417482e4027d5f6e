"""Trees and archives that cannot be trusted: links, names, special files, members that would land elsewhere, bombs."""

import errno
import io
import os
import pathlib
import stat
import tarfile
import time
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.recorded import tree


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "tree"
    for path in ("b/2.png", "b/10.png", "a.txt", "b/c/ü.png", ".hidden/x", "b/.DS_Store"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())
    return folder


FILES = ["a.txt", "b/10.png", "b/2.png", "b/c/ü.png"]


def refused(root: pathlib.Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        tree.listing(root)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_all_but_hidden_files_are_listed(root):
    assert tree.listing(root) == FILES


def test_links_within_the_tree_are_files(root):
    (root / "link.png").symlink_to("b/2.png")
    (root / "z").symlink_to(root / "b" / "c")
    assert tree.listing(root) == sorted([*FILES, "link.png", "z/ü.png"])
    by_link = root.parent / "link"
    by_link.symlink_to(root)
    assert tree.listing(by_link) == sorted([*FILES, "link.png", "z/ü.png"]), "the root itself may be a link"


@pytest.mark.parametrize("target", ["/etc/passwd", "../other"])
def test_links_out_of_the_tree_are_refused(root, target):
    (root.parent / "other").mkdir()
    (root / "link").symlink_to(target)
    refused(root, "link is a link to", "out of the tree; copy what it names")


@pytest.mark.parametrize("target", ["..", "/", ".", "../tree"])
def test_links_up_are_refused(root, target):
    (root / "link").symlink_to(target)
    refused(root, "link is a link to", "in which it lies itself; remove it")


@pytest.mark.parametrize("target", ["gone", "link"])
def test_links_to_nothing_are_refused(root, target):
    (root / "link").symlink_to(target)
    refused(root, "link is a link to", "which does not exist; remove it")


def test_links_around_in_circles_end(root):
    (root / "b" / "up").symlink_to("../d")
    (root / "d").mkdir()
    (root / "d" / "down").symlink_to("../b")
    (root / "d" / "again").symlink_to("../b")
    began = time.process_time()
    refused(root, "is a link to")
    assert time.process_time() - began < 5


def test_names_that_make_no_line_are_refused(root):
    (root / "b" / "two\nlines.png").write_bytes(b"")
    refused(root, "'two\\nlines.png' holds control characters")


def test_names_that_are_not_utf8_are_refused(root):
    try:
        open(os.fsencode(root) + b"/b/caf\xe9.png", "wb").close()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    refused(root, "b", r"caf\xe9.png", "is not UTF-8; rename")


def test_what_is_no_file_is_refused(root):
    os.mkfifo(root / "b" / "pipe.png")
    refused(root, "b/pipe.png is neither a file nor a folder")


def test_a_folder_that_cannot_be_read_is_named(root, monkeypatch):
    scandir = os.scandir

    def failing(path):
        if str(path).endswith("c"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    refused(root, "cannot read", "b/c", "Permission denied")


def test_the_fingerprint_follows_names_sizes_and_times(root):
    def both() -> tuple[str, str]:
        paths = tree.listing(root)
        return tree.fingerprint(root, paths), tree.fingerprint(root, paths, times=True)

    first = both()
    assert both() == first
    content = (root / "a.txt").read_bytes()
    (root / "a.txt").write_bytes(content[::-1])
    os.utime(root / "a.txt", ns=(1, 1))
    second = both()
    assert second[0] == first[0], "a copy of the tree has other times"
    assert second[1] != first[1], "an edited file may have its size still"
    (root / "a.txt").write_bytes(content + b"x")
    third = both()
    (root / "a.txt").rename(root / "b.txt")
    assert len({first[0], third[0], both()[0]}) == 3


def test_malformed_json_is_mended_not_deleted(tmp_path):
    for content in (b"{", b"\xff", b"[" * 100_000, b"9" * 5000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.json is not valid JSON .*; mend it") as caught:
            tree.read_json(tmp_path / "x.json")
        assert "\n" not in str(caught.value)
    (tmp_path / "x.json").write_text('{"a": [1]}')
    assert tree.read_json(tmp_path / "x.json") == {"a": [1]}


# Archives


def zipped(path: pathlib.Path, members: dict[str, bytes], mode: int = 0) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def tarred(
    path: pathlib.Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE, link: str = ""
) -> pathlib.Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return path


MEMBERS = {"d/a.txt": b"one", "d/b/c.txt": bytes(5000)}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives_are_unpacked(tmp_path, pack):
    tree.extract(pack(tmp_path / "archive", MEMBERS), tmp_path / "out", 10_000)
    assert {path: (tmp_path / "out" / path).read_bytes() for path in tree.listing(tmp_path / "out")} == MEMBERS


@pytest.mark.parametrize(
    "name", ["/abs.txt", "../up.txt", "d/../../up.txt", "..\\up.txt", "C:/x.txt", "C:x.txt", "\\x"]
)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_members_that_would_land_elsewhere_are_refused(tmp_path, pack, name):
    (tmp_path / "in").mkdir()
    archive = pack(tmp_path / "archive", {name: b"x"})
    with pytest.raises(InputError, match="would be written outside its folder"):
        tree.extract(archive, tmp_path / "in" / "out", 10_000)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["archive", "in"]


LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]


@pytest.mark.parametrize("kind", LINKS)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    archive = tarred(tmp_path / "a.tar.gz", {"x": b""}, kind, "../../etc/passwd")
    with pytest.raises(InputError, match="member 'x' is a link or a device"):
        tree.extract(archive, tmp_path / "out", 10_000)
    assert not (tmp_path / "out").exists()


def test_links_in_a_zip_are_refused(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x": b"/etc/passwd"}, stat.S_IFLNK | 0o777)
    with pytest.raises(InputError, match="member 'x' is a link or a device"):
        tree.extract(archive, tmp_path / "out", 10_000)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_bombs_are_refused_before_they_unpack(tmp_path, pack):
    archive = pack(tmp_path / "bomb", {f"{n}": bytes(3_000_000) for n in range(4)})
    assert archive.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"bomb unpacks to 0\.0 GB, more than 0\.0 GB"):
        tree.extract(archive, tmp_path / "out", 10_000_000)
    assert not (tmp_path / "out").exists()


def test_a_zip_that_lies_about_its_sizes_does_not_grow(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x": bytes(1_000_000)})
    content = bytearray(archive.read_bytes())
    central = content.rindex(b"PK\x01\x02")
    content[central + 24 : central + 28] = (10).to_bytes(4, "little")
    archive.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        tree.extract(archive, tmp_path / "out", 10_000)
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) <= 10


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06", b"<html>404</html>" * 100])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.zip (is neither a zip nor a tar archive|is damaged)"):
        tree.extract(tmp_path / "x.zip", tmp_path / "out", 10_000)


def test_an_encrypted_zip_is_refused(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x": b"secret"})
    content = bytearray(archive.read_bytes())
    content[6] |= 1  # flags of the member, and of the directory's entry
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.zip is damaged, .*encrypted"):
        tree.extract(archive, tmp_path / "out", 10_000)


@pytest.mark.parametrize("pack", [zipped, tarred])
@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
@settings(max_examples=150, deadline=None)
def test_damage_ends_in_one_line_or_in_whole_files(tmp_path_factory, pack, place, value, cut):
    folder = tmp_path_factory.mktemp("archive")
    archive = pack(folder / "archive", MEMBERS)
    content = bytearray(archive.read_bytes())
    place %= len(content)
    content[place] = value
    archive.write_bytes(content[:place] if cut else content)
    try:
        tree.extract(archive, folder / "out", 10_000)
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    for path in (folder / "out").rglob("*"):
        assert path.is_dir() or len(path.read_bytes()) <= 5000


def test_a_full_disk_is_no_damage(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "a.zip", MEMBERS)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(OSError, match="No space left"):
        tree.extract(archive, tmp_path / "out", 10_000)
