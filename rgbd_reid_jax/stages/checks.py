"""What the parts of a configuration must have in common, checked once at the edge before any work is done."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.modalities import BOTH, MODALITIES, other
from rgbd_reid_jax.data.dataset import dataset_config
from rgbd_reid_jax.losses.weighted import (
    BANK,
    LOSSES,
    MAPS,
    ONE_MODALITY,
    TWIN_LOSSES,
    TWO_MODALITIES,
    WITH_PAIRS,
    WITH_TEACHER,
    used,
)
from rgbd_reid_jax.models.resnet import RESNETS
from rgbd_reid_jax.stages.ranges import check_choice, check_ranges
from rgbd_reid_jax.stages.settings import TRAINING, Settings, TrainingSettings, parse_settings, sees
from rgbd_reid_jax.stages.step import abstract_variables, needs_classifier
from rgbd_reid_jax.training.freeze import partition
from rgbd_reid_jax.training.optimizer import make_optimizer

_FIGURES = ("mAP", "rank1", "rank5", "rank10")
_LOSSES = {"teacher": ONE_MODALITY, "student": WITH_TEACHER, "baseline": TWO_MODALITIES, "pair": WITH_PAIRS}
_ONE_CLASS = 1  # a classifier's size does not matter to what is checked


def read_settings(config: Mapping[str, Any], known_stages: tuple[str, ...]) -> Settings:
    """Checks a configuration's plain content.

    Args:
        config: nested dict, `ConfigDict.to_dict()`.
        known_stages: names of all stages.

    Raises:
        InputError: a key is unknown or missing, a value is out of range, or two do not fit together; the
            message names it.
    """
    settings = parse_settings(config)
    check_ranges(dataclasses.asdict(settings))
    _check_stages(settings, known_stages)
    _check_encoders(settings)
    settings.network(None).patch_grid(settings.input.height, settings.input.width)
    if settings.model.pretrained and not os.path.isfile(os.path.expanduser(settings.model.pretrained)):
        raise InputError(
            f"config.model.pretrained={settings.model.pretrained!r} is no file; give a .safetensors or .pth file"
        )
    dataset_config(settings.dataset.name, settings.dataset.config, settings.dataset.overrides())
    for stage in settings.training:
        _check_training(settings, stage)
    return settings


def _check_stages(settings: Settings, known_stages: tuple[str, ...]) -> None:
    """Every stage is known, and every training stage has its part of the configuration, and what it starts from."""
    for stage in settings.stages:
        check_choice(stage, known_stages, "stages")
    for stage in settings.training:
        check_choice(stage, TRAINING, "training")
    needed = {*settings.stages, *settings.training} & set(TRAINING)
    for stage in sorted(needed | ({"teacher"} if "student" in needed else set())):
        if stage not in settings.training:
            raise InputError(f"config.training.{stage} is missing; add it to the config file")
    if "pair" in settings.training:
        for modality, stage in settings.training["pair"].start.items():
            check_choice(
                stage, [name for name in settings.training if name != "pair"], f"training.pair.start.{modality}"
            )
            _check_seen(settings, stage, modality, f"training.pair.start.{modality}")


def _check_encoders(settings: Settings) -> None:
    """Each modality is embedded by a network that was trained on it."""
    for modality in MODALITIES:
        check_choice(settings.encoders[modality], settings.training, f"encoders.{modality}")
    if "student" in settings.training:
        taught, own = settings.training["teacher"].modality, settings.training["student"].modality
        if own == taught:
            raise InputError(
                f"config.training.student.modality={own!r} is the teacher's too; distillation needs the other one: "
                f"say --config.training.student.modality={other(taught)}"
            )
        if settings.model.own_parts:
            raise InputError(
                f"config.model.own_parts={settings.model.own_parts}: a student starts from its teacher's weights, "
                "which has none of the parts that would be the student's own; say --config.model.own_parts=0"
            )
    mends = {}
    for modality in MODALITIES:
        fitting = [name for name, one in settings.training.items() if sees(one, modality)]
        if settings.encoders[modality] not in fitting:
            mends[modality] = fitting[0] if fitting else "STAGE"
    if mends:
        modality = next(iter(mends))
        stage = settings.encoders[modality]
        raise InputError(
            f"config.encoders.{modality}={stage!r}, which sees {settings.training[stage].modality}; say "
            + " ".join(f"--config.encoders.{name}={mend}" for name, mend in mends.items())
        )
    in_the_middle = [settings.gate(stage).kind == "middle" for stage in settings.encoders.values()]
    if any(in_the_middle) and not all(in_the_middle):
        raise InputError(
            "config.encoders: a gate in the middle is for both networks of stage pair; "
            "say --config.encoders.rgb=pair --config.encoders.depth=pair"
        )
    if settings.evaluation.multi_frame and any(in_the_middle):
        raise InputError(
            "config.evaluation.multi_frame=True: a gate in the middle compares single frames, not recordings; "
            "say --config.evaluation.multi_frame=False or choose another training.pair.gate.kind"
        )


def _check_seen(settings: Settings, stage: str, modality: str, path: str) -> None:
    if not sees(settings.training[stage], modality):
        raise InputError(f"config.{path}={stage!r}, which sees {settings.training[stage].modality}; name another stage")


def _check_training(settings: Settings, name: str) -> None:
    """The optimizer can be made, the score is one that the stage measures, freeze rules fit the parameters."""
    stage = settings.training[name]
    _check_losses(settings, name)
    _check_sampling(stage, name)
    make_optimizer(stage.optimizer, stage.steps)
    pairs = settings.directions(name)
    names = [f"{query}_to_{gallery}" for query, gallery in pairs] + (["cross_modal"] if len(pairs) > 1 else [])
    if stage.score:
        check_choice(
            stage.score, [f"eval/{one}/{figure}" for one in names for figure in _FIGURES], f"training.{name}.score"
        )
    elif stage.patience:
        raise InputError(f"config.training.{name}.patience={stage.patience} needs a score to watch; give {name}.score")
    if name == "pair":
        settings.pair(None).gate_of()
    if stage.freeze:
        source = f"config.training.{name}.freeze"
        trainable, _ = partition(abstract_variables(settings, name, _ONE_CLASS)[0], stage.freeze, source)
        if not trainable:
            raise InputError(f"{source} leaves nothing to train; say 'train' in one of its rules")


def _check_losses(settings: Settings, name: str) -> None:
    """The losses are some that the stage can compute."""
    stage = settings.training[name]
    for loss, weight in stage.losses.items():
        check_choice(loss, LOSSES, f"training.{name}.losses")
        if weight:
            check_choice(loss, _LOSSES[name], f"training.{name}.losses")
    wanted = used(stage.losses)
    if not wanted:
        raise InputError(
            f"config.training.{name}.losses has no weight above 0; give one to, for example, {_LOSSES[name][0]}"
        )
    twins = [loss for loss in wanted if loss in TWIN_LOSSES]
    if name == "pair" and twins and stage.sampling.name == "pk_cross_modal":
        raise InputError(
            f"config.training.pair.losses.{twins[0]} compares both images of one instant, which "
            "sampling.name='pk_cross_modal' does not give; choose pk or pk_cross_camera"
        )
    if BANK in wanted and stage.target != "cached":
        raise InputError(
            f"config.training.{name}.losses.{BANK} looks at the cached targets of all frames; "
            f"say --config.training.{name}.target=cached"
        )
    if stage.target_mean and stage.target != "cached":
        raise InputError(
            f"config.training.{name}.target={stage.target!r} has no targets that target_mean={stage.target_mean} could "
            f"move; say --config.training.{name}.target_mean=0.0"
        )
    if MAPS in wanted:
        _check_hints(settings, name)
    teacher = settings.training.get("teacher")
    if name == "student" and teacher and needs_classifier(stage) and not needs_classifier(teacher):
        raise InputError(
            "config.training.student.losses needs the teacher's classifier, and the teacher trains none; "
            "say --config.training.teacher.losses.identity=1.0"
        )


def _check_hints(settings: Settings, name: str) -> None:
    """The network has the stages whose maps are compared."""
    hints, backbone = settings.training[name].hints, settings.model.backbone
    if backbone not in RESNETS:
        raise InputError(
            f"config.training.{name}.losses.{MAPS} compares maps of residual stages, which {backbone} has not; "
            f"say --config.training.{name}.losses.{MAPS}=0.0 or choose a ResNet"
        )
    stages = len(RESNETS[backbone].blocks)
    if hints[-1] > stages:
        raise InputError(
            f"config.training.{name}.hints={hints}: {backbone} has stages 1 .. {stages}; "
            f"say --config.training.{name}.hints='({stages},)'"
        )


def _check_sampling(stage: TrainingSettings, name: str) -> None:
    """The batch is as large as the sampling makes it, its parts are equal, and the stage can use its pairs."""
    sampling = stage.sampling
    parts = stage.micro_batches * stage.norm_groups
    if parts > 1 and (stage.batch_size % parts or stage.batch_size < 2 * parts):
        raise InputError(
            f"config.training.{name}.batch_size={stage.batch_size} does not divide into micro_batches x norm_groups = "
            f"{stage.micro_batches} x {stage.norm_groups} parts of two rows or more; choose a multiple of {parts}, "
            f"at least {2 * parts}"
        )
    rows = sampling.people * sampling.frames
    if sampling.name != "shuffle" and stage.batch_size != rows:
        raise InputError(
            f"config.training.{name}.batch_size={stage.batch_size} is not sampling.people x sampling.frames = "
            f"{sampling.people} x {sampling.frames}; say --config.training.{name}.batch_size={rows} or change these"
        )
    if sampling.name == "pk_cross_modal" and stage.augmentation.background:
        raise InputError(
            f"config.training.{name}.augmentation.background={stage.augmentation.background} takes a colour image's "
            "outline from its own depth image, and sampling.name='pk_cross_modal' pairs it with another; set it to 0"
        )
    if sampling.name == "pk_cross_modal" and stage.modality != BOTH:
        raise InputError(
            f"config.training.{name}.sampling.name='pk_cross_modal' is for networks that see both modalities; "
            "choose pk or pk_cross_camera"
        )
