"""What every stage of a run shares: settings, folder, data, devices, and trained networks by name."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.mesh import make_mesh
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.data.dataset import Frames, identities, open_dataset, read_split
from rgbd_reid_jax.evaluation.embed import Embedder, Encoder, labelled
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.stages.settings import Settings
from rgbd_reid_jax.stages.workdir import Workdir
from rgbd_reid_jax.training.freeze import merge
from rgbd_reid_jax.training.record import Record

_STREAMS = {"teacher": 1, "student": 2, "one_stream": 3}


class Job:
    """One run.

    Args:
        settings: what to do.
        workdir: where.
        config: the configuration's plain content, for the report.
    """

    def __init__(self, settings: Settings, workdir: Workdir, config: dict[str, Any]):
        self.settings, self.workdir, self.config = settings, workdir, config
        self.record = Record(workdir.path)
        self.mesh = make_mesh()

    @functools.cached_property
    def dataset(self) -> Any:
        """The TFDS builder, its data built where they were not.

        Raises:
            InputError: the data cannot be had, or the workdir's run uses other data.
        """
        wanted = self.settings.dataset
        builder = open_dataset(wanted.name, wanted.config, wanted.overrides(), wanted.data_dir)
        say("dataset", f"{builder.info.full_name} in {pathlib.Path(builder.data_dir)}")
        self.workdir.claim_dataset(builder.info.full_name, fingerprint(builder))
        return builder

    @functools.cache  # noqa: B019 (a job lives as long as the process)
    def frames(self, split: str) -> Frames:
        """One split, read once."""
        return read_split(self.dataset, split, self.settings.dataset.cache)

    @functools.cached_property
    def train_labels(self) -> tuple[np.ndarray, int]:
        """Identity labels int32 [N] of the training frames, and how many identities there are."""
        return identities(self.frames("train").labels["person_id"])

    def key(self, stage: str) -> jax.Array:
        """The PRNG key of a training stage."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), _STREAMS[stage])

    def encoder(self, modality: str) -> Encoder:
        """The encoder of one modality, without its parameters."""
        return Encoder(self.settings.network(None), self.settings.input, modality, self.settings.evaluation.normalise)

    @functools.cache  # noqa: B019
    def embedder(self, modality: str, *, raw: bool = False) -> Embedder:
        """The encoder compiled for this run's batches; with `raw`, embeddings keep their length."""
        encoder = self.encoder(modality)
        if raw:
            encoder = dataclasses.replace(encoder, normalise=False)
        return Embedder(encoder, self.settings.evaluation.batch_size, self.mesh)

    @functools.cache  # noqa: B019
    def trained(self, stage: str) -> tuple[Any, Any]:
        """(parameters without classifier, batch statistics) of the checkpoint that a finished training stage chose.

        Raises:
            InputError: the stage is not done, or that checkpoint is missing or damaged.
        """
        step = self.workdir.require(stage).get("step", 0)
        folder = self.workdir.checkpoints(stage)
        try:
            if not (folder / str(step)).is_dir():
                raise InputError("no such folder")
            with Checkpoints(folder) as checkpoints:
                parts = checkpoints.restore_parts(step)
        except InputError as error:
            raise InputError(
                f"checkpoint {folder / str(step)}, which stage {stage} chose, is missing or damaged; "
                f"delete {folder} and {self.workdir.mark(stage)} and run the same command again to train it anew"
            ) from error
        params = merge(parts["trainable"], parts["frozen"] or {})
        return {name: value for name, value in params.items() if name != "classifier"}, parts["batch_stats"]

    def embeddings(self, split: str, modality: str) -> Embeddings:
        """Embeds a split with the trained encoder of `modality`."""
        params, batch_stats = self.trained(self.settings.encoders[modality])
        frames = self.frames(split)
        return labelled(
            self.embedder(modality)(params, batch_stats, frames, f"embed {split} {modality}"), frames, modality
        )


def fingerprint(builder: Any) -> str | None:
    """What tells a dataset's content apart from that of another of the same name; None where the builder has none."""
    return (builder.info.metadata or {}).get("fingerprint")
