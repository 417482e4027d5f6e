"""Trees of files that came from somewhere else: listed, fingerprinted and unpacked without trusting them."""

import hashlib
import os
import pathlib
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError, disk_full

_TAR_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4


def listing(root: pathlib.Path) -> list[str]:
    """All files below `root` as sorted relative POSIX paths; hidden ones are left out.

    Raises:
        InputError: a name is not UTF-8 or holds control characters, a link leads out of the tree, a folder cannot be
            read, or something is neither file nor folder.
    """
    return sorted(_walk(root, root.resolve(), ""))


def _walk(root: pathlib.Path, real_root: pathlib.Path, folder: str) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"cannot read {root / folder} ({error.strerror}); mend its permissions") from error
    for entry in entries:
        try:
            entry.name.encode("utf-8")
        except UnicodeEncodeError:
            shown = os.fsencode(entry.name)
            raise InputError(f"{root / folder}: the name {shown!r} is not UTF-8; rename that file") from None
        if any(unicodedata.category(one) == "Cc" for one in entry.name):
            raise InputError(f"{root / folder}: the name {entry.name!r} holds control characters; rename that file")
        if entry.name.startswith("."):
            continue
        path = f"{folder}{entry.name}"
        if entry.is_symlink():
            _check_link(root, real_root, path)
        if entry.is_dir():
            yield from _walk(root, real_root, path + "/")
        elif entry.is_file():
            yield path
        else:
            raise InputError(f"{root / path} is neither a file nor a folder; remove it")


def _check_link(root: pathlib.Path, real_root: pathlib.Path, path: str) -> None:
    """Links inside the tree are as good as files; those out of it, to nothing or around in circles are refused."""
    target = pathlib.Path(os.path.realpath(root / path))
    above = [(root / parent).resolve() for parent in pathlib.PurePosixPath(path).parents]
    if any(folder.is_relative_to(target) for folder in above):
        raise InputError(f"{root / path} is a link to {target}, in which it lies itself; remove it")
    if not target.is_relative_to(real_root):
        raise InputError(f"{root / path} is a link to {target}, out of the tree; copy what it names into the tree")
    if not target.exists():
        raise InputError(f"{root / path} is a link to {target}, which does not exist; remove it")


def fingerprint(root: pathlib.Path, paths: Sequence[str], *, times: bool = False) -> str:
    """16 hexadecimal digits that change with any of the files' names or sizes, and with their times if `times`."""
    digest = hashlib.sha256()
    for path in paths:
        about = (root / path).stat()
        digest.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns if times else ''}\n".encode())
    return digest.hexdigest()[:16]


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file of the user's; InputError if it is malformed."""
    return files.read_json(path, "mend it, or give it as it was published")


def extract(archive: pathlib.Path, folder: pathlib.Path, max_bytes: int) -> None:
    """Unpacks a zip or tar archive below `folder`.

    Args:
        archive: the file.
        folder: where to; made if missing.
        max_bytes: greatest size of all members together.

    Raises:
        InputError: it is no such archive, it is damaged, a member would land outside `folder` or is neither
            file nor folder, or it grows beyond `max_bytes`.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _check_members(archive, [_zip_member(item) for item in opened.infolist()], max_bytes)
                opened.extractall(folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                _check_members(archive, [_tar_member(item) for item in opened], max_bytes)
                opened.extractall(folder, **_TAR_FILTER)
        else:
            raise InputError(f"{archive} is neither a zip nor a tar archive; download it again")
    except InputError:
        raise
    except Exception as error:  # of damaged archives the standard library raises anything, IndexError for example
        if disk_full(error) is not None:
            raise
        words = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{archive} is damaged, or {folder} takes no files ({words}); download it again") from error


def _zip_member(item: zipfile.ZipInfo) -> tuple[str, int, bool]:
    kind = stat.S_IFMT(item.external_attr >> 16)
    return item.filename, item.file_size, kind in (0, stat.S_IFREG, stat.S_IFDIR)


def _tar_member(item: tarfile.TarInfo) -> tuple[str, int, bool]:
    return item.name, item.size, item.isfile() or item.isdir()


def _check_members(archive: pathlib.Path, members: Sequence[tuple[str, int, bool]], max_bytes: int) -> None:
    for name, _, plain in members:
        parts = pathlib.PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in str(parts).partition("/")[0]:
            raise InputError(f"{archive}: member {name!r} would be written outside its folder; do not use this archive")
        if not plain:
            raise InputError(f"{archive}: member {name!r} is a link or a device; do not use this archive")
    total = sum(size for _, size, _ in members)
    if total > max_bytes:
        raise InputError(
            f"{archive} unpacks to {total / 1e9:.1f} GB, more than {max_bytes / 1e9:.1f} GB; "
            "it is not the archive that was published"
        )
