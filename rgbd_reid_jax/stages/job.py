"""What every stage of a run shares: settings, folder, data, devices, and trained networks by name."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.core.distributed import check_same, first_then_others, replicate
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.mesh import make_mesh
from rgbd_reid_jax.core.modalities import BOTH, MODALITIES
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.data.dataset import open_dataset
from rgbd_reid_jax.data.frames import Frames, having, read_split, recorded, subset
from rgbd_reid_jax.data.sampling import usable
from rgbd_reid_jax.evaluation.compare import Compared, Comparison
from rgbd_reid_jax.evaluation.embed import Embedder, Encoder, labelled
from rgbd_reid_jax.models.network import Model
from rgbd_reid_jax.models.pair import Pair
from rgbd_reid_jax.models.pretrained import load_pretrained
from rgbd_reid_jax.stages.settings import Settings
from rgbd_reid_jax.stages.workdir import Workdir
from rgbd_reid_jax.training.freeze import merge
from rgbd_reid_jax.training.record import Record

_STREAMS = {"teacher": 1, "student": 2, "baseline": 3, "pair": 4}


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
        self.mesh = make_mesh(settings.mesh.fsdp)

    @functools.cached_property
    def dataset(self) -> Any:
        """The TFDS builder, its data built where they were not.

        Raises:
            InputError: the data cannot be had, or the workdir's run uses other data.
        """
        wanted = self.settings.dataset
        source = (wanted.name, wanted.config, wanted.overrides(), wanted.data_dir, wanted.manual_dir)
        builder = first_then_others(lambda: open_dataset(*source))
        say("dataset", f"{builder.info.full_name} in {pathlib.Path(builder.data_dir)}")
        self.workdir.claim_dataset(builder.info.full_name, fingerprint(builder))
        check_same({"dataset": f"{builder.info.full_name} {fingerprint(builder)}"})
        return builder

    @functools.cache  # noqa: B019 (a job lives as long as the process)
    def frames(self, split: str) -> Frames:
        """One split, read once."""
        wanted = self.settings.dataset
        return read_split(self.dataset, split, wanted.cache, wanted.workers)

    @functools.cache  # noqa: B019
    def frames_of(self, split: str, modality: str) -> Frames:
        """The frames of a split of which `modality` was recorded.

        Raises:
            InputError: there are none.
        """
        frames = having(self.frames(split), modality)
        if not len(frames):
            raise InputError(
                f"no frame of split {split} of {self.dataset.info.full_name} has a {modality} image; "
                "choose a dataset with both modalities"
            )
        return frames

    def training_frames(self, stage: str) -> Frames:
        """The training frames that a stage can use.

        Raises:
            InputError: there are none, or some are of no use to a stage that needs all: the student's teacher sees
                the other image of each of its frames.
        """
        wanted, frames = self.settings.training[stage], self.frames("train")
        if stage == "student":
            self._check_pairs(frames)
        modalities = MODALITIES if wanted.modality == BOTH else (wanted.modality,)
        chosen = usable(wanted.sampling, frames.labels, modalities)
        if not chosen.any():
            raise InputError(
                f"no training frame of {self.dataset.info.full_name} has what stage {stage} with "
                f"training.{stage}.sampling.name={wanted.sampling.name!r} needs ({' and '.join(modalities)}); "
                "choose another dataset" + (", or pk_cross_modal" if len(modalities) > 1 else "")
            )
        return subset(frames, chosen)

    def _check_pairs(self, frames: Frames) -> None:
        lacking = np.flatnonzero(~(recorded(frames, "rgb") & recorded(frames, "depth")))
        if len(lacking):
            recording, frame = (frames.labels[name][lacking[0]] for name in ("recording_id", "frame_id"))
            raise InputError(
                f"{len(lacking)} of {len(frames)} training frames of {self.dataset.info.full_name} lack one of the two "
                f"images (the first: recording {recording}, frame {frame}), and distillation needs pairs; leave them "
                "out of the train split, or use configs/one_stream.py with "
                "--config.training.baseline.sampling.name=pk_cross_modal"
            )

    def key(self, stage: str) -> jax.Array:
        """The PRNG key of a training stage."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), _STREAMS[stage])

    def initial(self, model: Model) -> Callable[[jax.Array, int, int], tuple[Any, Any]]:
        """`model.init`, with the published weights that the configuration names in place of random ones."""
        path = self.settings.model.pretrained

        def init(key: jax.Array, height: int, width: int) -> tuple[Any, Any]:
            params, batch_stats = model.init(key, height, width)
            if not path:
                return params, batch_stats
            grid = model.patch_grid(height, width)
            return load_pretrained(path, model.backbone, params, batch_stats, grid=grid)

        return init

    def encoder(self, modality: str, stage: str) -> Encoder:
        """The encoder of one modality that a training stage trains, without its parameters."""
        settings = self.settings
        gate = Pair(settings.network(None), settings.gate(stage)).gate_of() if stage == "pair" else None
        return Encoder(settings.network(None), settings.input, modality, settings.evaluation.normalise, gate)

    @functools.cache  # noqa: B019
    def embedder(self, modality: str, stage: str, *, raw: bool = False) -> Embedder:
        """The encoder compiled for this run's batches; with `raw`, embeddings keep their length."""
        encoder = self.encoder(modality, stage)
        if raw:
            encoder = dataclasses.replace(encoder, normalise=False)
        return Embedder(encoder, self.settings.evaluation.batch_size, self.mesh)

    def compared(self, split: str, modality: str, stage: str, weights: tuple[Any, Any], name: str = "") -> Compared:
        """A split's frames as an encoder with these weights sees them; with `name`, long work prints progress."""
        frames = self.frames_of(split, modality)
        found = self.embedder(modality, stage)(*weights, frames, name)
        gate, maps = found.get("gate"), found.get("map")
        if maps is not None:
            weights = replicate(weights, self.mesh, "weights")  # one process compares pairs, with all of them
            return Compared(labelled(found["embedding"], frames, modality), weights, maps, gate)
        return Compared(labelled(found["embedding"], frames, modality, gate), weights)

    @functools.cache  # noqa: B019
    def comparison(self, stages: tuple[str, str]) -> Comparison:
        """How query and gallery are compared; `stages` are those of the RGB and of the depth encoder."""
        wanted = self.settings.evaluation
        encoders = {name: self.encoder(name, stage) for name, stage in zip(MODALITIES, stages, strict=True)}
        # One process ranks, so the devices are those of its own.
        here = make_mesh(devices=jax.local_devices())
        return Comparison(wanted.protocol, encoders, wanted.multi_frame, wanted.top_k, here)

    @functools.cache  # noqa: B019
    def trained(self, stage: str) -> tuple[Any, Any]:
        """(parameters, batch statistics) of the checkpoint that a finished training stage chose.

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
        return merge(parts["trainable"], parts["frozen"] or {}), parts["batch_stats"]

    def trained_encoder(self, modality: str, stage: str) -> tuple[Any, Any]:
        """The weights of one modality's encoder among those that a finished training stage chose."""
        return encoder_weights(stage, modality, *self.trained(stage))

    def test_set(self, split: str, modality: str) -> Compared:
        """A split as the run's trained encoder of a modality sees it."""
        stage = self.settings.encoders[modality]
        return self.compared(split, modality, stage, self.trained_encoder(modality, stage), f"embed {split} {modality}")


def encoder_weights(stage: str, modality: str, params: Any, batch_stats: Any) -> tuple[Any, Any]:
    """What one modality's encoder needs of a training stage's parameters and statistics."""
    if stage == "pair":
        gate = {"gate": params[f"gate_{modality}"]} if f"gate_{modality}" in params else {}
        return {**params[modality], **gate}, batch_stats[modality]
    return {name: value for name, value in params.items() if name != "classifier"}, batch_stats


def fingerprint(builder: Any) -> str | None:
    """What tells a dataset's content apart from that of another of the same name; None where the builder has none.

    Of what was recorded, that is how it was read and which files it was read from.
    """
    metadata = builder.info.metadata or {}
    found = [metadata[name] for name in ("fingerprint", "source_fingerprint") if name in metadata]
    return "-".join(found) or None
