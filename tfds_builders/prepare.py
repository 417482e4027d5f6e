"""Building TFDS datasets so that a later run trusts exactly what is whole.

TFDS writes into a folder `incomplete.*` and renames it at the end. Around that, `prepare` adds a lock
against a second builder, a check of the free space, one-line errors, and a manifest of every file's
size and SHA-256 that is verified whenever the dataset is used again. It knows no particular dataset.
"""

import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import TypeVar

import tensorflow_datasets as tfds
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]  # compiled, no stubs
from tensorflow_datasets.core.utils import tqdm_utils

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError, disk_full
from rgbd_reid_jax.core.progress import say

MANIFEST = "manifest.json"
Built = TypeVar("Built", bound=tfds.core.DatasetBuilder)


def prepare(
    make_builder: Callable[[], Built],
    folder: str | os.PathLike[str],
    *,
    fingerprint: str,
    bytes_needed: int = 0,
    file_format: str = "array_record",
    stage: str = "dataset",
    manual_dir: pathlib.Path | None = None,
) -> Built:
    """Builds a dataset, or verifies and reuses the one in `folder`.

    Args:
        make_builder: makes the builder; called when `folder` is known to be absent or whole.
        folder: the version folder that the builder fills.
        fingerprint: changes whenever the same config would give other data.
        bytes_needed: free disk space without which building is not started.
        file_format: the TFDS file format.
        stage: the name in progress lines.
        manual_dir: where the user's own files lie, for a dataset that is made of them.

    Returns:
        The builder, ready to read.

    Raises:
        InputError: no space, or the dataset there is damaged or has another fingerprint.
    """
    folder = pathlib.Path(folder)
    if (folder / MANIFEST).is_file() and not _marker(folder).exists():  # readers do not wait for each other
        verify(folder, fingerprint)
        return _quietly_made(make_builder)
    with locked(folder, stage) as mine:
        if mine:
            _drop_unfinished(folder)
        if folder.exists():
            verify(folder, fingerprint)
            return _quietly_made(make_builder)
        check_free_space(folder.parent, bytes_needed)
        marker = _marker(folder)
        with out_of_space_is_input_error(folder):
            files.write_text(marker, fingerprint + "\n")
            builder = _quietly_made(make_builder)
            with progress_bars_off():
                config = tfds.download.DownloadConfig(manual_dir=manual_dir)
                builder.download_and_prepare(file_format=file_format, download_config=config)
            counts = count_records(builder)
            write_manifest(folder, fingerprint, counts)
            marker.unlink()
        say(stage, f"{' + '.join(f'{n} {split}' for split, n in counts.items())} examples in {folder}")
        return builder


def _quietly_made(make_builder: Callable[[], Built]) -> Built:
    """A builder whose construction and build print none of TFDS's own lines: `say` and `Progress` tell the story.

    TFDS warns of a config that is not in BUILDER_CONFIGS, with all its knobs, and has no switch for what it
    prints before and after a build ("Downloading and preparing dataset Unknown size ...").
    """
    logger = logging.getLogger("absl")
    logger.addFilter(_is_news)
    try:
        builder = make_builder()
    finally:
        logger.removeFilter(_is_news)
    builder._log_download_bytes = builder._log_download_done = lambda: None
    return builder


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Using custom data configuration")


def _marker(folder: pathlib.Path) -> pathlib.Path:
    """There while `folder` is being built: what is found beside it is then no finished dataset."""
    return folder.parent / f".building-{folder.name}"


def _drop_unfinished(folder: pathlib.Path) -> None:
    """Removes what a killed build left: TFDS's temporary folders, and a folder without its manifest."""
    for stale in folder.parent.glob(f"incomplete.*_{folder.name}"):
        shutil.rmtree(stale)
    marker = _marker(folder)
    if marker.exists():
        if folder.exists() and not (folder / MANIFEST).exists():
            shutil.rmtree(folder)
        marker.unlink()


@contextlib.contextmanager
def locked(folder: pathlib.Path, stage: str) -> Iterator[bool]:
    """One process at a time builds `folder`; the system releases the lock of a killed one.

    Args:
        folder: its parent is made where it is missing, and holds the lock.
        stage: the name in progress lines.

    Yields:
        Whether this process may write: a finished dataset on a disk that cannot be written to needs no lock.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(folder.parent / f".lock-{folder.name}", "w")  # noqa: SIM115
    except OSError as error:
        if not (folder / MANIFEST).is_file():
            raise InputError(f"cannot write to {folder.parent} ({error.strerror}); choose another data_dir") from error
        yield False
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(stage, f"another process builds {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield True


@contextlib.contextmanager
def progress_bars_off() -> Iterator[None]:
    """TFDS prints no progress bars within; afterwards they are as before."""
    before = tqdm_utils._active
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tqdm_utils.display_progress_bar(before)


def check_free_space(folder: pathlib.Path, bytes_needed: int) -> None:
    """Raises InputError if less than `bytes_needed` are free where `folder` lies."""
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise InputError(
            f"{folder} has {free / 1e6:.0f} MB free and the build needs {bytes_needed / 1e6:.0f} MB; "
            "free some space or choose another data_dir"
        )


@contextlib.contextmanager
def out_of_space_is_input_error(folder: pathlib.Path) -> Iterator[None]:
    """Turns a full disk, however deeply wrapped, into a one-line InputError."""
    try:
        yield
    except Exception as error:
        where = disk_full(error)
        if where is None:
            raise
        raise InputError(
            f"the disk of {folder.parent} is full{where}; free some space and run again: finished parts are kept"
        ) from error


def count_records(builder: tfds.core.DatasetBuilder) -> dict[str, int]:
    """Records in each split's files; InputError if they are not as many as TFDS wrote."""
    counts = {}
    for name, split in builder.info.splits.items():
        counts[name] = split.num_examples
        if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            continue
        found = sum(array_record_module.ArrayRecordReader(str(path)).num_records() for path in split.filepaths)
        if found != split.num_examples:
            raise InputError(
                f"{builder.data_path}: split {name} holds {found} records instead of {split.num_examples}; "
                "delete that folder and run again"
            )
    return counts


def write_manifest(folder: pathlib.Path, fingerprint: str, counts: dict[str, int]) -> None:
    """Writes `manifest.json` for the files of `folder`."""
    listed = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        listed[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
    files.write_json(folder / MANIFEST, {"fingerprint": fingerprint, "examples": counts, "files": listed})


def verify(folder: pathlib.Path, fingerprint: str) -> None:
    """Raises InputError unless `folder` is whole and holds the data of `fingerprint`."""
    mend = f"delete {folder} and run again"
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder / MANIFEST} is missing, so the dataset cannot be checked; {mend}")
    try:
        manifest = files.read_json(folder / MANIFEST)
        found, listed = manifest["fingerprint"], dict(manifest["files"])
        wanted = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in listed.items()}
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged ({error}); {mend}") from error
    if found != fingerprint:
        raise InputError(
            f"{folder} was built with fingerprint {found}, this code and config have {fingerprint}; {mend}"
        )
    for name, (size, digest) in wanted.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing; {mend}")
        if path.stat().st_size != size:
            raise InputError(f"{path} has {path.stat().st_size} bytes instead of {size}; {mend}")
        if files.sha256(path) != digest:
            raise InputError(f"{path} is damaged: its SHA-256 differs from {MANIFEST}; {mend}")
