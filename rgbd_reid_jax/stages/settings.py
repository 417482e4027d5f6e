"""A run's settings as plain dataclasses: what `configs/*.py` say, checked once at the edge."""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.dataset import CACHES, dataset_config
from rgbd_reid_jax.data.inputs import MODALITIES, InputSpec
from rgbd_reid_jax.data.representation import DEPTH_REPRESENTATIONS
from rgbd_reid_jax.losses.distillation import DISTILLATION_LOSSES
from rgbd_reid_jax.metrics.ranking import PROTOCOLS
from rgbd_reid_jax.models.network import Model
from rgbd_reid_jax.training.freeze import Rules
from rgbd_reid_jax.training.optimizer import OptimizerSpec, make_optimizer

NORM_CHOICES = ("batch", "running")


@dataclasses.dataclass(frozen=True)
class DatasetSettings:
    """Which data: `knobs` is "name=value,name=value", changes to the named builder config."""

    name: str
    config: str
    knobs: str
    data_dir: str
    cache: str

    def overrides(self) -> dict[str, Any]:
        """`knobs` as a dict.

        Raises:
            InputError: not of the form name=value,name=value.
        """
        found = {}
        for part in filter(None, (part.strip() for part in self.knobs.split(","))):
            name, equals, value = part.partition("=")
            if not equals:
                raise InputError(f"dataset.knobs={self.knobs!r}: {part!r} is not of the form name=value")
            try:
                found[name.strip()] = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError):
                raise InputError(f"dataset.knobs={self.knobs!r}: {value!r} is no number or quoted text") from None
        return found


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
    mesh: Mapping[str, int]
    dataset: DatasetSettings
    input: InputSpec
    model: Mapping[str, Any]
    training: Mapping[str, TrainingSettings]
    evaluation: EvaluationSettings
    export: ExportSettings

    def network(self, num_identities: int | None) -> Model:
        """The run's network; a `last_stride` of 0 keeps the backbone's own."""
        shape = dict(self.model)
        shape["last_stride"] = shape["last_stride"] or None
        return Model(**shape, num_identities=num_identities)


def _dataclass(kind: type, values: Mapping[str, Any], path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise InputError(f"config.{path}.{name} is unknown; config.{path} has: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise InputError(f"config.{path}.{name} is missing; add it to the config file")
    return kind(**values)


def _choice(value: str, choices: Any, path: str) -> None:
    if value not in choices:
        raise InputError(f"config.{path}={value!r} is unknown; choose one of: {', '.join(choices)}")


def _training(values: Mapping[str, Any], path: str) -> TrainingSettings:
    values = dict(values)
    for name, kind in (("optimizer", OptimizerSpec), ("augmentation", Augmentation)):
        values[name] = _dataclass(kind, values.get(name, {}), f"{path}.{name}")
    stage = _dataclass(TrainingSettings, values, path)
    for name in ("steps", "batch_size", "log_every", "evaluate_every"):
        if getattr(stage, name) < 1:
            raise InputError(f"config.{path}.{name}={getattr(stage, name)} must be at least 1")
    _choice(stage.modality, (*MODALITIES, "both"), f"{path}.modality")
    _choice(stage.frozen_norm, NORM_CHOICES, f"{path}.frozen_norm")
    if stage.loss:
        _choice(stage.loss, DISTILLATION_LOSSES, f"{path}.loss")
    make_optimizer(stage.optimizer, stage.steps)  # its names are checked before any work is done
    return stage


def read_settings(config: Mapping[str, Any], known_stages: tuple[str, ...]) -> Settings:
    """Checks a configuration's plain content.

    Args:
        config: nested dict, `ConfigDict.to_dict()`.
        known_stages: names of all stages.

    Raises:
        InputError: a key is unknown or missing, or a value is out of range; the message names it.
    """
    values = dict(config)
    for name, kind in (
        ("dataset", DatasetSettings),
        ("input", InputSpec),
        ("evaluation", EvaluationSettings),
        ("export", ExportSettings),
    ):
        values[name] = _dataclass(kind, values.get(name, {}), name)
    training = values.get("training", {})
    values["training"] = {stage: _training(part, f"training.{stage}") for stage, part in training.items()}
    settings: Settings = _dataclass(Settings, values, "")
    for stage in settings.stages:
        _choice(stage, known_stages, "stages")
    for modality in MODALITIES:
        _choice(settings.encoders.get(modality, ""), settings.training, f"encoders.{modality}")
    _choice(settings.dataset.cache, CACHES, "dataset.cache")
    _choice(settings.input.depth_representation, DEPTH_REPRESENTATIONS, "input.depth_representation")
    _choice(settings.evaluation.protocol, PROTOCOLS, "evaluation.protocol")
    dataset_config(settings.dataset.name, settings.dataset.config, settings.dataset.overrides())
    settings.network(None)
    return settings
