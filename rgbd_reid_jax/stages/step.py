"""What one step of a training stage computes, from the settings and the number of identities alone.

Neither data nor weights are needed: a run adds them, and a plan (`planning`) compiles the same step from shapes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import traverse_util

from rgbd_reid_jax.core.modalities import BOTH, MODALITIES
from rgbd_reid_jax.data.frames import IMAGES
from rgbd_reid_jax.evaluation.embed import RAW_IMAGES
from rgbd_reid_jax.losses.weighted import BANK, LOGITS, MAPS, NEED_CLASSIFIER, used
from rgbd_reid_jax.models.convolution import PREPARED
from rgbd_reid_jax.models.network import Model
from rgbd_reid_jax.models.pair import Pair
from rgbd_reid_jax.stages.settings import Settings, TrainingSettings
from rgbd_reid_jax.training import objectives
from rgbd_reid_jax.training.freeze import norms, partition
from rgbd_reid_jax.training.loop import Prepare
from rgbd_reid_jax.training.optimizer import make_optimizer

_ALL_TRAIN = ((".*", "train"),)


@dataclasses.dataclass(frozen=True)
class StageStep:
    """A training stage without data and weights.

    Attributes:
        network: what trains; of a pair, each of the two.
        pair: both networks with their gate; None in other stages.
        images: that a batch holds, of `IMAGES`.
        columns: further arrays of a batch: "identity" int32 [B], and where targets are cached "target" float32 [B, D].
        given: what a step gets beside its batch: "teacher" (parameters, statistics), "bank" float32 [N, D].
        objective: what is minimised, given the batch norms that keep their running statistics.
        optimizer: how.
    """

    network: Model
    pair: Pair | None
    images: tuple[str, ...]
    columns: tuple[str, ...]
    given: tuple[str, ...]
    objective: Callable[[frozenset[str]], objectives.Objective]
    optimizer: optax.GradientTransformation


def stage_step(settings: Settings, name: str, num_identities: int) -> StageStep:
    """A training stage's step.

    Args:
        settings: of the run.
        name: of the stage.
        num_identities: people of its training frames, whether its losses look at logits or not.
    """
    stage = settings.training[name]
    classes = num_identities if needs_classifier(stage) else None
    network, pair = settings.network(classes, name), None
    columns: tuple[str, ...] = ("identity",)
    given: tuple[str, ...] = ()
    images = _images(stage)
    common = (stage.losses, stage.loss_options)

    def objective(running: frozenset[str]) -> objectives.Objective:
        if pair is not None:
            return objectives.pair_objective(
                pair,
                settings.input,
                stage.augmentation,
                *common,
                normalise=settings.evaluation.normalise,
                running=running,
            )
        seen = (network, settings.input, stage.modality, stage.augmentation, *common)
        if name == "student":
            return objectives.distillation_objective(*seen, target=stage.target, hints=stage.hints, running=running)
        return objectives.identity_objective(*seen, running=running)

    if name == "pair":
        pair = settings.pair(classes)
        network, images = pair.network, IMAGES
    if name == "student":
        wanted = used(stage.losses)
        if stage.target == "cached":
            columns = (*columns, "target")
        if stage.target != "cached" or MAPS in wanted:
            images = IMAGES
        if stage.target != "cached" or MAPS in wanted or LOGITS in wanted:
            given = (*given, "teacher")
        if BANK in wanted:
            given = (*given, "bank")
    return StageStep(network, pair, images, columns, given, objective, make_optimizer(stage.optimizer, stage.steps))


def parted(stage: TrainingSettings, params: Any) -> tuple[dict[str, Any], dict[str, Any], frozenset[str]]:
    """Parameters, or their shapes, that train; those that stay; and the batch norms that keep their statistics."""
    trainable, frozen = partition(params, stage.freeze or _ALL_TRAIN)
    running = frozenset[str]()
    for part, statistics in ((frozen, stage.frozen_norm), (trainable, stage.trained_norm)):
        running |= norms(part) if statistics == "running" else frozenset()
    return trainable, frozen, running


def preparation(
    settings: Settings, step: StageStep, modality: str, frozen: Any, mesh: jax.sharding.Mesh
) -> Prepare | None:
    """What a stage's convolutions compute on CPUs from frozen kernels alone, the same in each step.

    Args:
        settings: of the run.
        step: of the stage.
        modality: that its network sees.
        frozen: parameters that stay.
        mesh: all devices.

    Returns:
        A function of all parameters and the batch statistics, to a nested dict to be merged with the parameters; None
        where the devices have no use for it, or nothing is frozen.
    """
    size, stay = settings.input, traverse_util.flatten_dict(frozen).keys()
    if not stay or mesh.devices.flat[0].platform != "cpu":
        return None

    def of(params: Any, batch_stats: Any, modality: str) -> dict[str, Any]:
        return {PREPARED: step.network.prepared(params, batch_stats, size.height, size.width, modality)}

    def prepare(params: Any, batch_stats: Any) -> dict[str, Any]:
        if step.pair is None:
            found = of(params, batch_stats, modality)
        else:
            found = {name: of(params[name], batch_stats[name], name) for name in MODALITIES}
        flat = traverse_util.flatten_dict(found)
        kernels = {path: tuple(part for part in path if part != PREPARED) for path in flat}
        return traverse_util.unflatten_dict({path: one for path, one in flat.items() if kernels[path] in stay})

    return prepare


def abstract_variables(settings: Settings, name: str, num_identities: int) -> tuple[Any, Any]:
    """Shapes of a training stage's (parameters, batch statistics), as its freeze rules see them."""
    size = settings.input
    step = stage_step(settings, name, num_identities)

    def init() -> Any:
        params, batch_stats = step.network.init(jax.random.key(0), size.height, size.width)
        if step.pair is None:
            return params, batch_stats
        return step.pair.init(dict.fromkeys(MODALITIES, (params, batch_stats)), jax.random.key(0))

    return jax.eval_shape(init)


def needs_classifier(stage: TrainingSettings) -> bool:
    """Whether one of a stage's losses looks at logits."""
    return any(name in NEED_CLASSIFIER for name in used(stage.losses))


def _images(stage: TrainingSettings) -> tuple[str, ...]:
    """The images that a stage's batches hold."""
    if stage.modality == BOTH:
        return IMAGES
    masks = stage.modality == "rgb" and stage.augmentation.background
    return ("rgb", "mask") if masks else RAW_IMAGES[stage.modality]
