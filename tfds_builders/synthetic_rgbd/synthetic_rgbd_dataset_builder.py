"""The TFDS builder of `synthetic_rgbd`, and `prepare`, which builds the dataset or reuses it."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.progress import Progress, say
from tfds_builders import chunks, knobs, schema
from tfds_builders import prepare as prepare_lib
from tfds_builders.synthetic_rgbd import config as config_lib
from tfds_builders.synthetic_rgbd.config import RENDERER_VERSION, SPLITS, SyntheticRgbdConfig
from tfds_builders.synthetic_rgbd.store import ChunkStore

FILE_FORMAT = "array_record"
_STAGE = "dataset"


class Builder(tfds.core.ShardBasedBuilder):
    """Procedural RGB-D people before simulated cameras; see docs/synthetic_rgbd.md."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "First release.", "1.1.0": "Frames say which modalities were recorded."}
    BUILDER_CONFIGS = list(config_lib.CONFIGS)
    DEFAULT_BUILDER_CONFIG_NAME = "quick"

    @property
    def builder_config(self) -> SyntheticRgbdConfig:
        config = super().builder_config
        assert isinstance(config, SyntheticRgbdConfig), "BUILDER_CONFIGS are all of that class"
        return config

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        metadata = {
            "fingerprint": config_lib.fingerprint(config),
            "renderer_version": RENDERER_VERSION,
            "knobs": knobs.knob_values(config),
        }
        return self.dataset_info_from_configs(
            features=schema.frame_features(),
            supervised_keys=None,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(metadata),
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list]:
        config_lib.check(self.builder_config)
        store = self.store()
        total = sum(self.builder_config.num_frames(split) for split in SPLITS)
        present = store.frames_present(SPLITS)
        if present:
            say(_STAGE, f"{present} of {total} frames were rendered before: {store.folder}")
        progress = Progress(_STAGE, total, unit="frame", start=present, items="frames")
        chunk_bytes = store.frames_per_chunk * _frame_bytes(self.builder_config)
        return {
            split: chunks.shards(self._chunks(split, store, progress, present), store.count(split), chunk_bytes)
            for split in SPLITS
        }

    def _chunks(self, split: str, store: ChunkStore, progress: Progress, present: int) -> Iterator:
        for number in range(store.count(split)):
            yield store.get(split, number)
            progress.update(present + store.frames_rendered)

    def store(self) -> ChunkStore:
        """The chunks of this builder's config, beside its version folders."""
        parent = pathlib.Path(self.data_dir_root) / self.name / self.builder_config.name
        return ChunkStore(self.builder_config, parent)

    def download_and_prepare(self, **kwargs) -> None:
        """As TFDS does it; the rendered chunks are deleted when the dataset is whole."""
        super().download_and_prepare(**kwargs)
        self.store().remove()


def expected_bytes(config: SyntheticRgbdConfig) -> int:
    """Disk space, in bytes, that a build needs: the dataset and its chunks, PNGs a little below raw size."""
    return 2 * _frame_bytes(config) * sum(config.num_frames(split) for split in SPLITS)


def _frame_bytes(config: SyntheticRgbdConfig) -> int:
    return 5 * config.height * config.width + 2000


def config_of(name: str, overrides: dict[str, Any]) -> SyntheticRgbdConfig:
    """A named config with some knobs changed; InputError where there is no such config or knob."""
    return config_lib.custom_config(name, **overrides)


def prepare(
    config: str | SyntheticRgbdConfig,
    data_dir: str | os.PathLike[str],
    manual_dir: str | os.PathLike[str] | None = None,
    *,
    workers: int = 0,
) -> Builder:
    """Builds the dataset below `data_dir`, or checks and reuses the one there.

    Args:
        config: a config or the name of one.
        data_dir: the TFDS data folder; the dataset lies in `synthetic_rgbd/<config>/<version>` below it.
        manual_dir: must be empty: nothing is read.
        workers: not used: the renderer takes all cores.

    Raises:
        InputError: no such config, a bad knob, no space, or the files there are damaged or other data.
    """
    del workers
    if manual_dir not in (None, ""):
        raise InputError(f"--manual_dir={manual_dir}: {Builder.name} is rendered and reads no files; leave it out")
    config = config_lib.named_config(config) if isinstance(config, str) else config
    config_lib.check(config)
    data_dir = pathlib.Path(os.path.expanduser(data_dir))
    parent = data_dir / Builder.name / config.name
    return prepare_lib.prepare(
        lambda: Builder(config=config, data_dir=str(data_dir)),
        parent / str(Builder.VERSION),
        fingerprint=config_lib.fingerprint(config),
        bytes_needed=expected_bytes(config) - ChunkStore(config, parent).size(),
        file_format=FILE_FORMAT,
        stage=_STAGE,
    )
