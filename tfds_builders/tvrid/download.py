"""Fetches TVRID from Zenodo: what the record lists, resumed where it stopped, checked by size and MD5, unpacked safely.

The record (doi:10.5281/zenodo.17909410) has two archives, full frames and the extracted crops; the crops are fetched.
Names, sizes and MD5 come from the record itself, https://developers.zenodo.org/#records.
"""

import hashlib
import http.client
import json
import os
import pathlib
import shutil
import urllib.error
import urllib.request
from typing import Any, NamedTuple

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError, disk_full
from rgbd_reid_jax.core.progress import Progress, say
from tfds_builders import prepare as prepare_lib
from tfds_builders.recorded import tree
from tfds_builders.tvrid.scan import PAGE

RECORD = "https://zenodo.org/api/records/17909410"
_STAGE = "download"
_MARKER = "whole.json"
_BLOCK = 1 << 20
_TIMEOUT_S = 60
_MAX_RECORD_BYTES = 10_000_000
_LARGEST_GROWTH = 10  # crops are PNG, which zip hardly shrinks


class Archive(NamedTuple):
    """A file of the record: name, size in bytes, hexadecimal MD5, address."""

    name: str
    size: int
    md5: str
    url: str


def fetch(folder: pathlib.Path) -> pathlib.Path:
    """The unpacked tree of crops below `folder`, downloaded where it is not there yet.

    Args:
        folder: for the archive, which is deleted once it is unpacked, and for the tree.

    Raises:
        InputError: the network or the disk does not allow it, or what came is not what the record lists.
    """
    unpacked = folder / "unpacked"
    if not (unpacked / _MARKER).is_file():
        with prepare_lib.locked(unpacked, _STAGE):  # another config may be built at the same time
            if not (unpacked / _MARKER).is_file():
                _fetch(folder, unpacked)
    return unpacked


def _fetch(folder: pathlib.Path, unpacked: pathlib.Path) -> None:
    archive = _archive(RECORD)
    say(_STAGE, f"{archive.url}: {archive.size / 1e6:.0f} MB to {folder}")
    part = folder / f"{archive.name}.part"
    there = part.stat().st_size if part.exists() else 0
    prepare_lib.check_free_space(folder, 2 * archive.size - min(there, archive.size))
    with prepare_lib.out_of_space_is_input_error(unpacked):
        _download(archive, part)
        _check(archive, part)
        say(_STAGE, f"unpacking {archive.name}")
        shutil.rmtree(unpacked, ignore_errors=True)
        try:
            tree.extract(part, unpacked, _LARGEST_GROWTH * archive.size + 1_000_000)
        except InputError:
            part.unlink()
            raise
        files.write_json(unpacked / _MARKER, {"archive": archive.name, "bytes": archive.size, "md5": archive.md5})
    part.unlink()


def _by_hand(why: str) -> InputError:
    return InputError(
        f"{why}; or download the archive of extracted crops by hand from {PAGE}, unpack it and give its folder as "
        "--manual_dir"
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__


def _archive(record: str) -> Archive:
    """The archive of crops, as the record lists it."""
    try:
        with urllib.request.urlopen(record, timeout=_TIMEOUT_S) as answer:
            content = json.loads(answer.read(_MAX_RECORD_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise _by_hand(f"cannot reach {record} ({_reason(error)}); mend the network and run again") from error
    except ValueError as error:
        raise _by_hand(f"{record} did not answer with JSON; run again later") from error
    try:
        listed = [_listed(one) for one in content["files"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _by_hand(f"{record} lists no files that could be understood ({_reason(error)})") from error
    crops = [one for one in listed if "extract" in one.name.lower() and one.name.lower().endswith((".zip", ".tar.gz"))]
    if len(crops) != 1:
        names = ", ".join(one.name for one in listed) or "nothing"
        raise _by_hand(f"{record} holds {names}, of which not exactly one is an archive of extracted crops")
    return crops[0]


def _listed(entry: Any) -> Archive:
    kind, _, md5 = entry["checksum"].partition(":")
    name, url = entry["key"], entry["links"]["self"]
    if kind != "md5" or len(md5) != 32 or "://" not in url or name != pathlib.PurePath(name).name:
        raise ValueError(f"entry {name!r} with checksum {entry['checksum']!r} at {url!r}")
    return Archive(name, int(entry["size"]), md5, url)


def _download(archive: Archive, part: pathlib.Path) -> None:
    """Fills `part`, going on where an earlier call stopped."""
    done = part.stat().st_size if part.exists() else 0
    if done >= archive.size:
        return
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            if done and answer.status != http.client.PARTIAL_CONTENT:
                done = 0  # the server sends all of it
            progress = Progress(_STAGE, archive.size, unit="byte", start=done, items_per_unit=1e-6, items="MB")
            with open(part, "ab" if done else "wb") as file:
                while block := answer.read(min(_BLOCK, archive.size + 1 - done)):
                    file.write(block)
                    done += len(block)
                    progress.update(done)
    except (OSError, http.client.HTTPException) as error:
        if disk_full(error) is not None:
            raise
        raise _by_hand(
            f"{archive.url} stopped after {done / 1e6:.1f} of {archive.size / 1e6:.1f} MB ({_reason(error)}); run the "
            "same command again, it goes on from there"
        ) from error
    if done < archive.size:
        raise _by_hand(
            f"{archive.url} stopped after {done / 1e6:.1f} of {archive.size / 1e6:.1f} MB; run the same command again, "
            "it goes on from there"
        )


def _check(archive: Archive, part: pathlib.Path) -> None:
    """Deletes `part` and raises InputError unless it has the size and the MD5 of the record."""
    size, digest = part.stat().st_size, hashlib.md5(usedforsecurity=False)
    with open(part, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if size == archive.size and digest.hexdigest() == archive.md5:
        return
    os.unlink(part)
    what = f"{size} bytes instead of {archive.size}" if size != archive.size else "another MD5 than the record says"
    raise _by_hand(f"{archive.url} gave {what}; run again")
