"""The TFDS builder that all recorded datasets share: scan the tree, read frames in processes, keep what was read.

A subclass says how a tree is understood (`scan`) and a module-level function reads one frame (`read`). Frames are read
in chunks by a pool of processes, a few chunks ahead of the writer, so memory does not grow with the tree; chunks are
kept on disk until the dataset is whole, so a build that was killed goes on.
"""

import abc
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from rgbd_reid_jax.core import cpus
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.progress import Progress, say
from tfds_builders import chunks, knobs, schema
from tfds_builders import prepare as prepare_lib
from tfds_builders.recorded import tree
from tfds_builders.recorded.frames import SPLITS, BadFrame, Finding, Frame, Scan

FILE_FORMAT = "array_record"
READER_VERSION = 1
"""Raise this whenever the same files and knobs give other records: it is part of every fingerprint."""
_STAGE = "dataset"
_FRAMES_PER_CHUNK = 64
_FRAMES_WORTH_A_POOL = 1000
_BYTES_PER_PIXEL = 6  # colour, depth and mask; PNG does not make them larger
_SHOWN_FINDINGS = 5

Read = Callable[[pathlib.Path, Frame, dict[str, Any]], dict[str, Any]]
"""(root, frame, knob values) to the frame's features but its labels; raises BadFrame or InputError."""


@dataclasses.dataclass(eq=False, kw_only=True)
class RecordedConfig(tfds.core.BuilderConfig):
    """What all recorded datasets let one choose."""

    height: int = knobs.knob(256, 16, 1024, "rows of the stored crops")
    width: int = knobs.knob(128, 8, 1024, "columns of the stored crops")
    split_seed: int = knobs.knob(0, 0, 2**31 - 1, "seed of the split where none is published with the files")
    bad_frames: str = knobs.choice(
        "skip", ("skip", "fail"), "what becomes of a frame that cannot be used: left out and listed, or the build stops"
    )
    bad_share: float = knobs.knob(0.2, 0.0, 1.0, "greatest share of frames that may be left out; more stop the build")


class RecordedBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Subclasses set `read`, `scan`, BUILDER_CONFIGS, and may add features."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS: ClassVar[str]
    read: ClassVar[Any]
    """A `Read`, wrapped in staticmethod."""
    workers: int = 0
    """Processes that read frames; 0 takes one per core where the tree is large, else none but this one."""
    _store: chunks.ChunkStore | None = None

    @property
    def builder_config(self) -> Any:
        return super().builder_config

    @abc.abstractmethod
    def scan(self, root: pathlib.Path, paths: list[str]) -> Scan:
        """Understands a tree without reading an image.

        Args:
            root: the folder that the user gave.
            paths: all files below it, `tree.listing`.

        Raises:
            InputError: it is no such tree.
        """

    def listing(self, root: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
        """The tree's root and all files below it; a subclass may choose another root than the folder it is given."""
        return root, tree.listing(root)

    def extra_features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Features that this dataset alone has."""
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        metadata = {"fingerprint": fingerprint(self.name, config), "knobs": knobs.knob_values(config)}
        return self.dataset_info_from_configs(
            features=schema.frame_features(**self.extra_features()),
            supervised_keys=None,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(metadata),
        )

    def source(self, dl_manager: tfds.download.DownloadManager) -> pathlib.Path:
        """The folder that holds the tree; datasets that can be downloaded do it here."""
        try:
            return pathlib.Path(dl_manager.manual_dir)
        except (AssertionError, NotADirectoryError) as error:
            # TFDS: "Manual directory ... does not exist or is empty. Create it and ..."
            what = f"{error.filename} is no folder" if isinstance(error, OSError) else str(error).partition(". ")[0]
            wants = " ".join(self.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
            there = ", ".join(self._built())
            there = there and f" Built below {self.data_dir_root} are: {there}; say the same config and knobs."
            raise InputError(f"{self.name} needs files of yours (--manual_dir): {what}. {wants}{there}") from error

    def _built(self) -> list[str]:
        """The datasets of this builder that are there: each its config, and the knobs that make it another one."""
        found = []
        for file in sorted(pathlib.Path(self.data_dir_root, self.name).glob(f"*/{self.VERSION}/metadata.json")):
            try:
                base = knobs.named_config(self.BUILDER_CONFIGS, self.name, file.parts[-3].partition("-")[0])
                usual, values = knobs.knob_values(base), json.loads(file.read_text(encoding="utf-8"))["knobs"]
            except (InputError, OSError, ValueError, KeyError):
                continue  # damaged, or of a config that is no more: no help to anybody
            given = ",".join(f"{name}={value!r}" for name, value in values.items() if value != usual.get(name))
            found.append(f"{self.name}/{base.name}" + (f" --knobs={shlex.quote(given)}" if given else ""))
        return found

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list]:
        root, paths = self.listing(self.source(dl_manager))
        scan = self.scan(root, paths)
        check_scan(root, scan)
        source = tree.fingerprint(root, paths)
        metadata: Any = self.info.metadata  # set in _info
        as_read = tree.fingerprint(root, paths, times=True)  # a PGM that was edited has its size still
        metadata.update(scan.metadata, source_fingerprint=source, source_times=as_read, findings=[])
        config = self.builder_config
        parent = pathlib.Path(self.data_dir_root) / self.name / config.name
        self._store = self._chunks_of(parent, as_read)
        needed = 10 * config.height * config.width * sum(map(len, scan.frames.values()))
        prepare_lib.check_free_space(parent, needed - self._store.size())
        reading = _Reading(self, root, scan, self._store, self._building)
        return {split: reading.shards(split) for split in SPLITS if scan.frames.get(split)}

    def _chunks_of(self, parent: pathlib.Path, as_read: str) -> chunks.ChunkStore:
        """The frames that a build of this config has read, or one of a config that only judges them otherwise."""
        judged = {name: value for name, value in knobs.knob_values(self.builder_config).items() if name != "bad_share"}
        frames = f"{_digest(self.name, judged)}-{as_read}"
        there = sorted(parent.parent.glob(f"*/{chunks.folder_name(frames)}"))
        return chunks.ChunkStore(there[0].parent if there else parent, frames)

    def download_and_prepare(self, **kwargs: Any) -> None:
        """As TFDS does it; the chunks are deleted when the dataset is whole."""
        with contextlib.ExitStack() as self._building:
            super().download_and_prepare(**kwargs)
        parent = pathlib.Path(self.data_dir_root) / self.name / self.builder_config.name
        for store in filter(None, (self._store, chunks.ChunkStore(parent, ""))):
            store.remove()


def fingerprint(name: str, config: RecordedConfig) -> str:
    """16 hexadecimal digits that change with any knob and with the reading code."""
    return _digest(name, knobs.knob_values(config))


def _digest(name: str, knob_values: dict[str, Any]) -> str:
    return knobs.digest({"reader": READER_VERSION, "dataset": name, "knobs": knob_values})[:16]


def check_scan(root: pathlib.Path, scan: Scan) -> None:
    """Raises InputError unless there are people to train and every person is in one split.

    Args:
        root: the tree, for messages.
        scan: what was understood of it.
    """
    if not any(scan.frames.values()):
        first = scan.findings[0] if scan.findings else None
        why = f" (first: {first.file}: {first.words})" if first else ""
        raise InputError(f"--manual_dir={root} holds no frame that could be used{why}; mend the files")
    seen: dict[int, str] = {}
    for split, frames in scan.frames.items():
        for frame in frames:
            if seen.setdefault(frame.person_id, split) != split:
                other = seen[frame.person_id]
                raise InputError(
                    f"{root / frame.file}: person {frame.person_id} is in split {other} and in {split}; "
                    "move all of them to one"
                )


class _Reading:
    """Reads the frames of all splits once, chunk by chunk, in order; `building` ends its processes."""

    def __init__(
        self,
        builder: RecordedBuilder,
        root: pathlib.Path,
        scan: Scan,
        store: chunks.ChunkStore,
        building: contextlib.ExitStack,
    ):
        self._builder, self._root, self._scan, self._store = builder, root, scan, store
        self._building = building
        self._config = builder.builder_config
        self._total = sum(len(frames) for frames in scan.frames.values())
        self._done, self._findings = 0, list(scan.findings)
        there = (
            len(part)
            for split in scan.frames
            for number, part in enumerate(self._parts(split))
            if store.path(_chunk_name(split, number)).exists()
        )
        if present := sum(there):
            say(_STAGE, f"{present} of {self._total} frames were read before: {store.folder}")
        self._progress = Progress(_STAGE, self._total, unit="frame", start=present, items="frames")

    def _parts(self, split: str) -> list[Sequence[Frame]]:
        frames = self._scan.frames[split]
        return [frames[start : start + _FRAMES_PER_CHUNK] for start in range(0, len(frames), _FRAMES_PER_CHUNK)]

    def shards(self, split: str) -> list[Callable[[], Iterator]]:
        chunk_bytes = _FRAMES_PER_CHUNK * _BYTES_PER_PIXEL * self._config.height * self._config.width
        return chunks.shards(self._usable(split), len(self._parts(split)), chunk_bytes)

    def _usable(self, split: str) -> Iterator[list[dict[str, Any]]]:
        """The chunks of a split without the frames that cannot be used, which are counted and judged at the end."""
        bad = 0
        for examples in self._chunks(split, self._parts(split)):
            found = [Finding(**example["finding"]) for example in examples if "finding" in example]
            self._findings += found
            bad += len(found)
            yield [example for example in examples if "finding" not in example]
            self._done += len(examples)
            self._progress.update(self._done)
        self._report(split, bad, len(self._scan.frames[split]))

    def _chunks(self, split: str, parts: Sequence[Sequence[Frame]]) -> Iterator[list[dict[str, Any]]]:
        """Chunks in order: from the store, or read by the pool at most twice as many ahead as it has processes."""
        knob_values = knobs.knob_values(self._config)
        arguments = [(self._builder.read, self._root, part, knob_values) for part in parts]
        submit, width = self._pool
        waiting: collections.deque = collections.deque()
        upcoming = 0
        for number in range(len(parts)):
            while upcoming < len(parts) and len(waiting) < 2 * width:
                there = self._store.get(_chunk_name(split, upcoming))
                waiting.append(there if there is not None else submit(_read_chunk, *arguments[upcoming]))
                upcoming += 1
            chunk = waiting.popleft()
            if not isinstance(chunk, list):
                try:
                    content = chunk.result()
                except concurrent.futures.BrokenExecutor as error:
                    raise InputError(
                        f"a process that reads frames of {self._root} was killed, for want of memory perhaps; run "
                        "again with fewer --workers: finished parts are kept"
                    ) from error
                self._store.put(_chunk_name(split, number), content)
                chunk = chunks.unpack(content) or []
            yield chunk

    @functools.cached_property
    def _pool(self) -> tuple[Callable[..., Any], int]:
        return self._building.enter_context(_pool(self._builder.workers, self._total))

    def _report(self, split: str, bad: int, total: int) -> None:
        """Says what was left out of a split; InputError where it is too much."""
        if not bad:
            self._keep()
            return
        listed = self._findings[-bad:]
        share = bad / total
        stops = share > self._config.bad_share or bad == total
        for finding in listed[:_SHOWN_FINDINGS]:
            say(_STAGE, f"left out: {finding.file}: {finding.words}")
        if bad > _SHOWN_FINDINGS:
            where = "" if stops else "; the check lists them all"  # which needs a dataset
            say(_STAGE, f"left out: {bad - _SHOWN_FINDINGS} more frames of {split}{where}")
        if stops:
            mend = f", or allow it with the knob bad_share={min(share + 0.005, 1.0):.2f}" if bad < total else ""
            raise InputError(
                f"{bad} of the {total} frames of split {split} cannot be used (first: {self._root / listed[0].file}: "
                f"{listed[0].words}); mend the files{mend}"
            )
        self._keep()

    def _keep(self) -> None:
        metadata: Any = self._builder.info.metadata
        metadata["findings"] = [dataclasses.asdict(finding) for finding in self._findings]


def _chunk_name(split: str, number: int) -> str:
    """The name tells how many frames a chunk holds."""
    return f"{split}-{_FRAMES_PER_CHUNK}x{number:06d}"


@contextlib.contextmanager
def _pool(workers: int, frames: int) -> Iterator[tuple[Callable[..., Any], int]]:
    """(submit, number of processes); a small tree is read in this process, for a pool takes seconds to start."""
    count = workers or (cpus.usable() if frames >= _FRAMES_WORTH_A_POOL else 1)
    if count == 1:
        yield _Now, 1
        return
    # Not forked: the process may hold JAX's threads.
    executor = concurrent.futures.ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _follow_parent)
    try:
        yield executor.submit, count
    finally:
        executor.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Ends this process with the one that started it, however that ends, and leaves an interrupt to that one."""
    parent = multiprocessing.parent_process()
    assert parent, "this runs in a process of a pool"

    def end_with_it() -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_it, daemon=True).start()


class _Now:
    """A future that is done in this process when its result is asked for."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._function, self._arguments = function, arguments

    def result(self) -> Any:
        return self._function(*self._arguments)


def _read_chunk(read: Read, root: pathlib.Path, frames: Sequence[Frame], knob_values: dict[str, Any]) -> bytes:
    """The packed examples of some frames; one that cannot be used gives {"finding": ...} instead.

    Raises:
        InputError: a frame has what no frame of such a tree should have, or cannot be used and the config says "fail".
    """
    examples: list[dict[str, Any]] = []
    for frame in frames:
        try:
            example = read(root, frame, knob_values)
        except BadFrame as bad:
            if knob_values["bad_frames"] == "fail":
                raise InputError(
                    f"{root / bad.finding.file}: {bad.finding.words}; mend or remove it, or say bad_frames='skip'"
                ) from bad
            examples.append({"finding": dataclasses.asdict(bad.finding)})
            continue
        labels = {name: getattr(frame, name) for name in schema.LABELS}
        examples.append({**labels, "source": frame.file, **example})
    return chunks.pack(examples)


def prepare(
    kind: type[RecordedBuilder],
    config: RecordedConfig,
    data_dir: str | os.PathLike[str],
    manual_dir: str | os.PathLike[str] | None = None,
    *,
    workers: int = 0,
) -> Any:
    """Builds a recorded dataset below `data_dir`, or checks and reuses the one there.

    Args:
        kind: the builder's class.
        config: a config of it.
        data_dir: the TFDS data folder; the dataset lies in `<name>/<config>/<version>` below it.
        manual_dir: the tree; not needed where the dataset is there already.
        workers: processes that read frames; 0 chooses.

    Raises:
        InputError: the tree cannot be used, no space, or the files below `data_dir` are damaged, other data or built
            from another tree.
    """
    data_dir = pathlib.Path(os.path.expanduser(data_dir))
    root = None if manual_dir in (None, "") else pathlib.Path(os.path.expanduser(manual_dir)).absolute()

    def make() -> RecordedBuilder:
        builder = kind(config=config, data_dir=str(data_dir))
        builder.workers = workers
        return builder

    if root and data_dir.resolve().is_relative_to(root.resolve()):
        raise InputError(f"--data_dir={data_dir} lies within --manual_dir={root}; choose a folder outside of it")
    folder = data_dir / kind.name / config.name / str(kind.VERSION)
    there = folder.exists()
    builder = prepare_lib.prepare(
        make,
        folder,
        fingerprint=fingerprint(kind.name, config),
        file_format=FILE_FORMAT,
        stage=_STAGE,
        manual_dir=root,
    )
    if root and there:
        check_source(builder, root)
    return builder


def entry_points(kind: type[RecordedBuilder]) -> tuple[Callable[[str, dict[str, Any]], Any], Callable[..., Any]]:
    """`config_of` and `prepare` of a builder's module, which the registry of datasets calls.

    Args:
        kind: the builder's class.

    Returns:
        config_of(name, overrides): a named config with some knobs changed; InputError where there is none or a value
            does not fit. prepare(config, data_dir, manual_dir=None, *, workers=0): `prepare` of this kind.
    """

    def config_of(name: str, overrides: dict[str, Any]) -> Any:
        return knobs.custom_config(kind.BUILDER_CONFIGS, kind.name, name, overrides)

    return config_of, functools.partial(prepare, kind)


def check_source(builder: RecordedBuilder, root: pathlib.Path) -> None:
    """Raises InputError if a dataset that was there already was built from other files than `root` holds now.

    A tree that is gone is no harm: the dataset is whole without it.
    """
    if not root.is_dir():
        say(_STAGE, f"{root} is not there; the dataset that was built before is used as it is")
        return
    about, files, folder = builder.info.metadata or {}, builder.listing(root), builder.data_path
    if tree.fingerprint(*files) != about.get("source_fingerprint"):
        raise InputError(
            f"{folder} was built from other files than {root} holds now; delete {folder} and run again to build it "
            "from these, choose another data_dir, or leave the manual_dir away to use it as it is"
        )
    if about.get("source_times") not in (None, tree.fingerprint(*files, times=True)):
        say(
            _STAGE,
            f"files of {root} have the sizes, but not the times that they had when {folder} was built; if any was "
            "changed, delete that folder and run again to build it anew",
        )
