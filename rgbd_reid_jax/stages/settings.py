"""A run's settings as plain dataclasses: what `configs/*.py` say, checked once at the edge."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.modalities import BOTH
from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.dataset import parse_knobs
from rgbd_reid_jax.data.inputs import InputSpec
from rgbd_reid_jax.data.sampling import SHUFFLE, Sampling
from rgbd_reid_jax.losses.weighted import LossOptions
from rgbd_reid_jax.models.network import Model
from rgbd_reid_jax.models.pair import GateSpec, Pair
from rgbd_reid_jax.training.freeze import Rules
from rgbd_reid_jax.training.optimizer import OptimizerSpec

TRAINING = ("teacher", "student", "baseline", "pair")
_LOSS_OPTIONS, _NO_GATE = LossOptions(), GateSpec()


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
    own_parts: int = 0
    pretrained: str = ""


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How one training stage goes.

    Attributes:
        modality: what the network of this stage sees; "both" for baseline and pair.
        steps: updates.
        batch_size: rows of the global batch; a row is one image, or one of each modality for "both".
        log_every: steps between two logged lines.
        evaluate_every: steps between two validations with a checkpoint.
        score: validation figure that selects the checkpoint; "" takes the last.
        optimizer: optimizer and schedule.
        augmentation: of the training images.
        losses: weight of each loss by name; those left out and those of weight 0 are not computed.
        loss_options: what losses can be told.
        sampling: which frames make up a batch.
        patience: validations without a better score after which the stage ends early; 0 never does.
        freeze: (regular expression, "train" | "freeze") rules over parameter paths; () trains all.
        frozen_norm: statistics of frozen batch norms: "batch" as the paper's code, or "running".
        trained_norm: statistics of the other batch norms, likewise.
        target: of the student: "cached", "online" or "same_view" (`objectives.distillation_objective`).
        target_mean: of the student: share of the way that cached targets are moved to the mean of their person's.
        hints: of the student: residual stages whose maps its loss "maps" compares with the teacher's.
        start: of the pair: the stage from whose network each modality starts; empty is afresh.
        gate: of the pair.
        micro_batches: parts of a batch that the network sees one after the other (`Model.train`): gradients add up.
        norm_groups: parts of each of these that have batch-norm statistics of their own.
    """

    modality: str
    steps: int
    batch_size: int
    log_every: int
    evaluate_every: int
    score: str
    optimizer: OptimizerSpec
    augmentation: Augmentation
    losses: Mapping[str, float]
    loss_options: LossOptions = _LOSS_OPTIONS
    sampling: Sampling = SHUFFLE
    patience: int = 0
    freeze: Rules = ()
    frozen_norm: str = "batch"
    trained_norm: str = "batch"
    target: str = "cached"
    target_mean: float = 0.0
    hints: tuple[int, ...] = (2, 4)
    start: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gate: GateSpec = _NO_GATE
    micro_batches: int = 1
    norm_groups: int = 1


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Which splits are embedded and how they are ranked.

    Attributes:
        protocol: exclusion rule.
        normalise: embeddings of unit length.
        batch_size: frames embedded at once.
        splits: the last one gives the results.
        multi_frame: compare recordings, each the mean of its frames' embeddings.
        top_k: with a gate in the middle, how many of a query's nearest are compared pair by pair.
    """

    protocol: str
    normalise: bool
    batch_size: int
    splits: tuple[str, ...]
    multi_frame: bool = False
    top_k: int = 50


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """Which JAX platforms exported programs are lowered for."""

    platforms: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """How the devices are shared out; changes no result beyond rounding.

    Attributes:
        fsdp: devices among which parameters and optimizer slots are sharded; all devices share each batch.
    """

    fsdp: int = 1


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
    mesh: MeshSettings = MeshSettings()

    def network(self, num_identities: int | None, stage: str = "") -> Model:
        """The run's network; with a training stage, as that stage trains it."""
        shape = dataclasses.asdict(self.model)
        del shape["pretrained"]
        shape["last_stride"] = self.model.last_stride or None
        if stage:
            trained = self.training[stage]
            shape |= {"micro_batches": trained.micro_batches, "norm_groups": trained.norm_groups}
        return Model(**shape, num_identities=num_identities)

    def pair(self, num_identities: int | None) -> Pair:
        """The two networks of stage pair."""
        return Pair(self.network(None, "pair"), self.training["pair"].gate, num_identities)

    def gate(self, stage: str) -> GateSpec:
        """The gate of a training stage's networks."""
        return self.training[stage].gate if stage == "pair" else _NO_GATE

    def directions(self, stage: str) -> tuple[tuple[str, str], ...]:
        """(query modality, gallery modality) pairs that a training stage ranks in its validations."""
        if stage == "teacher":
            taught = self.training["teacher"].modality
            return ((taught, taught),)
        return (("rgb", "depth"), ("depth", "rgb"))


def _dataclass(kind: type, values: Mapping[str, Any], path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    where = f"config.{path}" if path else "config"
    for name in values:
        if name not in fields:
            raise InputError(f"{where}.{name} is unknown; {where} has: {', '.join(fields)}")
    for name, field in fields.items():
        lacks = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in values and lacks:
            raise InputError(f"{where}.{name} is missing; add it to the config file")
    return kind(**values)


def _training(values: Mapping[str, Any], path: str) -> TrainingSettings:
    values = dict(values)
    for name, kind in (
        ("optimizer", OptimizerSpec),
        ("augmentation", Augmentation),
        ("loss_options", LossOptions),
        ("sampling", Sampling),
        ("gate", GateSpec),
    ):
        values[name] = _dataclass(kind, values.get(name, {}), f"{path}.{name}")
    return _dataclass(TrainingSettings, values, path)


def parse_settings(config: Mapping[str, Any]) -> Settings:
    """A configuration's plain content as settings, whose values are not checked yet (`checks.read_settings` does).

    Args:
        config: nested dict, `ConfigDict.to_dict()`.

    Raises:
        InputError: a key is unknown or missing; the message names it.
    """
    values = dict(config)
    for name, kind in (
        ("dataset", DatasetSettings),
        ("input", InputSpec),
        ("model", ModelSettings),
        ("evaluation", EvaluationSettings),
        ("export", ExportSettings),
        ("mesh", MeshSettings),
    ):
        values[name] = _dataclass(kind, values.get(name, {}), name)
    training = values.get("training", {})
    values["training"] = {stage: _training(part, f"training.{stage}") for stage, part in training.items()}
    return _dataclass(Settings, values, "")


def sees(stage: TrainingSettings, modality: str) -> bool:
    """Whether a stage's network is trained on a modality."""
    return stage.modality in (modality, BOTH)
