"""A run's settings as plain dataclasses: what `configs/*.py` say, checked once at the edge."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.dataset import dataset_config, parse_knobs
from rgbd_reid_jax.data.inputs import InputSpec
from rgbd_reid_jax.data.sampling import SHUFFLE, Sampling
from rgbd_reid_jax.metrics.embeddings import MODALITIES
from rgbd_reid_jax.models.network import Model
from rgbd_reid_jax.stages.ranges import check_choice, check_ranges
from rgbd_reid_jax.training.freeze import Rules, partition
from rgbd_reid_jax.training.optimizer import OptimizerSpec, make_optimizer

TRAINING = ("teacher", "student", "one_stream")
_FIGURES = ("mAP", "rank1", "rank5", "rank10")


@dataclasses.dataclass(frozen=True)
class DatasetSettings:
    """Which data, and how they are kept.

    Attributes:
        name: of the dataset.
        config: a named builder config.
        knobs: "name=value,name=value", changes to that config.
        data_dir: TFDS data folder; "" takes the default.
        manual_dir: the user's own files, for a dataset that is made of them and is not built yet; "" where not given.
        cache: where decoded images are kept, one of `frames.CACHES`.
        workers: threads that decode; 0 takes one for each core.
    """

    name: str
    config: str
    knobs: str
    data_dir: str
    cache: str
    workers: int = 0
    manual_dir: str = ""

    def overrides(self) -> dict[str, Any]:
        """`knobs` as a dict.

        Raises:
            InputError: not of that form.
        """
        return parse_knobs(self.knobs)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The fields of `Model` that a configuration chooses; a `last_stride` of 0 keeps the backbone's own.

    `pretrained` is a file of published weights from which teachers and baselines start, "" for random ones.
    """

    backbone: str
    embedding_dim: int
    dropout: float
    last_stride: int
    compute_dtype: str
    neck: str = "paper"
    pool: str = "average"
    remat: bool = False
    pretrained: str = ""


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How one training stage goes.

    Attributes:
        modality: what the network of this stage sees; "both" for one_stream.
        steps: updates.
        batch_size: rows of the global batch.
        log_every: steps between two logged lines.
        evaluate_every: steps between two validations with a checkpoint.
        score: validation figure that selects the checkpoint; "" takes the last.
        optimizer: optimizer and schedule.
        augmentation: of the training images.
        sampling: which frames make up a batch.
        smoothing: label smoothing of identity losses.
        loss: distillation loss (student).
        freeze: (regular expression, "train" | "freeze") rules over parameter paths (student).
        frozen_norm: statistics of frozen batch norms: "batch" as the paper's code, or "running" (student).
    """

    modality: str
    steps: int
    batch_size: int
    log_every: int
    evaluate_every: int
    score: str
    optimizer: OptimizerSpec
    augmentation: Augmentation
    sampling: Sampling = SHUFFLE
    smoothing: float = 0.0
    loss: str = ""
    freeze: Rules = ()
    frozen_norm: str = "batch"


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Which splits are embedded and how they are ranked."""

    protocol: str
    normalise: bool
    batch_size: int
    splits: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """Which JAX platforms exported programs are lowered for."""

    platforms: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Settings:
    """All of a run. `encoders` names the training stage whose network embeds each modality."""

    method: str
    seed: int
    stages: tuple[str, ...]
    encoders: Mapping[str, str]
    dataset: DatasetSettings
    input: InputSpec
    model: ModelSettings
    training: Mapping[str, TrainingSettings]
    evaluation: EvaluationSettings
    export: ExportSettings

    def network(self, num_identities: int | None) -> Model:
        """The run's network."""
        shape = dataclasses.asdict(self.model)
        del shape["pretrained"]
        return Model(**{**shape, "last_stride": self.model.last_stride or None}, num_identities=num_identities)

    def directions(self, stage: str) -> tuple[tuple[str, str], ...]:
        """(query modality, gallery modality) pairs that a training stage ranks in its validations."""
        taught = self.training["teacher"].modality if stage != "one_stream" else "depth"
        if stage == "teacher":
            return ((taught, taught),)
        own = self.training["student"].modality if stage == "student" else "rgb"
        return ((own, taught), (taught, own))


def _dataclass(kind: type, values: Mapping[str, Any], path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    where = f"config.{path}" if path else "config"
    for name in values:
        if name not in fields:
            raise InputError(f"{where}.{name} is unknown; {where} has: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise InputError(f"{where}.{name} is missing; add it to the config file")
    return kind(**values)


def _training(values: Mapping[str, Any], path: str) -> TrainingSettings:
    values = dict(values)
    for name, kind in (("optimizer", OptimizerSpec), ("augmentation", Augmentation), ("sampling", Sampling)):
        values[name] = _dataclass(kind, values.get(name, {}), f"{path}.{name}")
    return _dataclass(TrainingSettings, values, path)


def read_settings(config: Mapping[str, Any], known_stages: tuple[str, ...]) -> Settings:
    """Checks a configuration's plain content.

    Args:
        config: nested dict, `ConfigDict.to_dict()`.
        known_stages: names of all stages.

    Raises:
        InputError: a key is unknown or missing, a value is out of range, or two do not fit together; the
            message names it.
    """
    values = dict(config)
    for name, kind in (
        ("dataset", DatasetSettings),
        ("input", InputSpec),
        ("model", ModelSettings),
        ("evaluation", EvaluationSettings),
        ("export", ExportSettings),
    ):
        values[name] = _dataclass(kind, values.get(name, {}), name)
    training = values.get("training", {})
    values["training"] = {stage: _training(part, f"training.{stage}") for stage, part in training.items()}
    settings: Settings = _dataclass(Settings, values, "")
    check_ranges(dataclasses.asdict(settings))
    _check_stages(settings, known_stages)
    _check_encoders(settings)
    settings.network(None).patch_grid(settings.input.height, settings.input.width)
    if settings.model.pretrained and not pathlib.Path(settings.model.pretrained).expanduser().is_file():
        raise InputError(
            f"config.model.pretrained={settings.model.pretrained!r} is no file; give a .safetensors or .pth file"
        )
    dataset_config(settings.dataset.name, settings.dataset.config, settings.dataset.overrides())
    for stage in settings.training:
        _check_training(settings, stage)
    return settings


def _check_stages(settings: Settings, known_stages: tuple[str, ...]) -> None:
    """Every stage is known, and every training stage has its part of the configuration."""
    for stage in settings.stages:
        check_choice(stage, known_stages, "stages")
    for stage in settings.training:
        check_choice(stage, TRAINING, "training")
    needed = {*settings.stages, *settings.training} & set(TRAINING)
    for stage in sorted(needed | ({"teacher"} if "student" in needed else set())):
        if stage not in settings.training:
            raise InputError(f"config.training.{stage} is missing; add it to the config file")


def _check_encoders(settings: Settings) -> None:
    """Each modality is embedded by a network that was trained on it."""
    for modality in MODALITIES:
        check_choice(settings.encoders[modality], settings.training, f"encoders.{modality}")
    if "student" in settings.training:
        taught, own = settings.training["teacher"].modality, settings.training["student"].modality
        if own == taught:
            other = MODALITIES[1 - MODALITIES.index(taught)]
            raise InputError(
                f"config.training.student.modality={own!r} is the teacher's too; distillation needs the other one: "
                f"say --config.training.student.modality={other}"
            )
    mends = {}
    for modality in MODALITIES:
        fitting = [name for name, one in settings.training.items() if one.modality in (modality, "both")]
        if settings.encoders[modality] not in fitting:
            mends[modality] = fitting[0] if fitting else "STAGE"
    if mends:
        modality = next(iter(mends))
        stage = settings.encoders[modality]
        raise InputError(
            f"config.encoders.{modality}={stage!r}, which sees {settings.training[stage].modality}; say "
            + " ".join(f"--config.encoders.{name}={mend}" for name, mend in mends.items())
        )


def _check_training(settings: Settings, name: str) -> None:
    """The optimizer can be made, the score is one that the stage measures, freeze rules fit the parameters."""
    stage = settings.training[name]
    _check_sampling(stage, name)
    make_optimizer(stage.optimizer, stage.steps)
    pairs = settings.directions(name)
    scores = [f"eval/{query}_to_{gallery}/{figure}" for query, gallery in pairs for figure in _FIGURES]
    if stage.score:
        check_choice(stage.score, scores, f"training.{name}.score")
    model = settings.network(None if name == "student" else 1)
    if stage.freeze:
        size = settings.input
        params, _ = jax.eval_shape(lambda: model.init(jax.random.key(0), size.height, size.width))
        trainable, _ = partition(params, stage.freeze)
        if not trainable:
            raise InputError(f"config.training.{name}.freeze leaves nothing to train; say 'train' in one of its rules")


def _check_sampling(stage: TrainingSettings, name: str) -> None:
    """The batch is as large as the sampling makes it, and the stage can use its pairs."""
    sampling = stage.sampling
    rows = sampling.people * sampling.frames
    if sampling.name != "shuffle" and stage.batch_size != rows:
        raise InputError(
            f"config.training.{name}.batch_size={stage.batch_size} is not sampling.people x sampling.frames = "
            f"{sampling.people} x {sampling.frames}; say --config.training.{name}.batch_size={rows} or change these"
        )
    if sampling.name == "pk_cross_modal" and stage.modality != "both":
        raise InputError(
            f"config.training.{name}.sampling.name='pk_cross_modal' is for networks that see both modalities; "
            "choose pk or pk_cross_camera"
        )
