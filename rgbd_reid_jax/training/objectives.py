"""What a stage minimises, as a function of the parameters and a batch.

An objective gets the state's parts, a batch, a key and what the step is given beside them (`given`, a pytree that does
not train), and returns `(loss, (new batch statistics, figures))`; `figures` are scalars to log. Objectives:

- identity: losses on identities, of one modality (the paper's teacher, step I) or of a network that sees both, its even
  rows as RGB and its odd ones as depth (one-stream, two-stream, zero-padding, AGW).
- distillation: the student's embedding against the teacher's of the same instant (step II).
- pair: two encoders trained together, with a gate between them (attention) or without (mutual distillation).

All are sums of the losses that `losses.weighted` knows, weighted by the configuration.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rgbd_reid_jax.core.modalities import BOTH, MODALITIES, other
from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.inputs import InputSpec, plain_input, train_input
from rgbd_reid_jax.losses.gated import gated_squared
from rgbd_reid_jax.losses.pairs import l2_normalise
from rgbd_reid_jax.losses.weighted import BANK, LOGITS, MAPS, LossOptions, Views, used, weighted_loss
from rgbd_reid_jax.models.network import Model, Output
from rgbd_reid_jax.models.pair import Pair
from rgbd_reid_jax.training.hard_pairs import hardest

Batch = dict[str, jax.Array]
Figures = dict[str, jax.Array]
Objective = Callable[..., tuple[jax.Array, tuple[Any, Figures]]]
TARGETS = ("cached", "online", "same_view")
NONE_RUNNING: frozenset[str] = frozenset()


def in_turn(rgb: jax.Array, depth: jax.Array) -> jax.Array:
    """Rows [B, ...] of both modalities as [2 B, ...], RGB first; stacked, so that rows stay on their devices."""
    return jnp.stack([rgb, depth], axis=1).reshape(-1, *rgb.shape[1:])


def identity_objective(
    model: Model,
    spec: InputSpec,
    modality: str,
    augmentation: Augmentation,
    losses: Mapping[str, float],
    options: LossOptions,
    *,
    running: frozenset[str] = NONE_RUNNING,
) -> Objective:
    """Losses on identities; the batch holds `identity` int32 [B] and the images of `modality`, of both for "both".

    `running` names batch-norm layers that keep their running statistics.
    """

    def objective(params: Any, batch_stats: Any, batch: Batch, key: jax.Array, given: Any = None):
        if modality == BOTH:
            rgb_key, depth_key, dropout_key = jax.random.split(key, 3)
            rgb = train_input(spec, "rgb", batch, rgb_key, augmentation)
            images = in_turn(rgb, train_input(spec, "depth", batch, depth_key, augmentation))
        else:
            augment_key, dropout_key = jax.random.split(key)
            images = train_input(spec, modality, batch, augment_key, augmentation)
        output, new_stats = model.train(params, batch_stats, images, dropout_key, running, modality)
        views = Views(batch["identity"], model.metric_feature(output), output.logits, modality == BOTH)
        loss, figures = weighted_loss(losses, options, views)
        return loss, (new_stats, figures)

    return objective


def distillation_objective(
    model: Model,
    spec: InputSpec,
    modality: str,
    augmentation: Augmentation,
    losses: Mapping[str, float],
    options: LossOptions,
    *,
    target: str = "cached",
    hints: Sequence[int] = (),
    running: frozenset[str] = NONE_RUNNING,
) -> Objective:
    """Distance between the student's embedding, after dropout in losses of twins, and the teacher's.

    Metric losses see the student's rows beside the teacher's, as two modalities.

    Args:
        model: the student.
        spec: size and representation.
        modality: the student's.
        augmentation: of the student's image.
        losses: weights by name.
        options: of the losses.
        target: the teacher's embedding: "cached", the column `target` float32 [B, D] of the batch; "online", computed
            in the step from the plain image; "same_view", from the image in the student's crop and mirroring. The last
            two need the teacher's images in the batch and `given["teacher"]`, its (params, batch_stats), as the losses
            "logits" and "maps" do. The loss "bank_similarity" needs `given["bank"]`, float32 [N, D].
        hints: residual stages, ascending from 1, after which the loss "maps" compares the maps of both; the teacher's
            are of its own image in the student's crop and mirroring, whatever `target` is.
        running: batch-norm layers that keep their running statistics.

    Returns:
        An objective whose batch holds the images and `identity` int32 [B].
    """
    seen = other(modality)
    ends = [stage + 1 for stage in hints] if MAPS in used(losses) else []
    # The geometry alone: noise, colours and erasing are what the student is to stand.
    view = Augmentation(augmentation.crop_area, augmentation.crop_ratio, augmentation.flip)

    def teach(batch: Batch, key: jax.Array, given: Mapping[str, Any]) -> jax.Array:
        if target == "cached":
            return batch["target"]
        if target == "online":
            images = plain_input(spec, seen, batch)
        else:
            images = train_input(spec, seen, batch, key, view)
        params, batch_stats = given["teacher"]
        return jax.lax.stop_gradient(model.embed(params, batch_stats, images, seen))

    def teach_maps(batch: Batch, key: jax.Array, given: Mapping[str, Any]) -> list[jax.Array]:
        params, batch_stats = given["teacher"]
        x, found = train_input(spec, seen, batch, key, view), []
        for begin, end in itertools.pairwise([0, *ends]):
            x = model.lower(params, batch_stats, x, seen, end, begin)
            found.append(jax.lax.stop_gradient(x))
        return found

    def objective(params: Any, batch_stats: Any, batch: Batch, key: jax.Array, given: Any = None):
        augment_key, dropout_key = jax.random.split(key)
        images = train_input(spec, modality, batch, augment_key, augmentation)
        x, maps = images, []
        for begin, end in itertools.pairwise([0, *ends]):
            x, batch_stats = model.train(params, batch_stats, x, dropout_key, running, modality, (begin, end))
            maps.append(x)
        last = (ends[-1] if ends else 0, None)
        output, new_stats = model.train(params, batch_stats, x, dropout_key, running, modality, last)
        taught = teach(batch, augment_key, given)
        sides = {modality: output.embedding, seen: taught}
        logits = None
        if LOGITS in used(losses):
            logits = output.logits, model.classify(given["teacher"][0], taught)
        views = Views(
            batch["identity"],
            feature=in_turn(sides["rgb"], sides["depth"]),
            logits=output.logits,
            both=True,
            twins=(output.dropped, taught),
            twin_logits=logits,
            bank=given["bank"] if BANK in used(losses) else None,
            maps=(maps, teach_maps(batch, augment_key, given)) if ends else None,
        )
        loss, figures = weighted_loss(losses, options, views)
        return loss, (new_stats, figures)

    return objective


def pair_objective(
    pair: Pair,
    spec: InputSpec,
    augmentation: Augmentation,
    losses: Mapping[str, float],
    options: LossOptions,
    *,
    normalise: bool,
    running: frozenset[str] = NONE_RUNNING,
) -> Objective:
    """Two encoders on both images of each frame; the batch holds them and `identity` int32 [B].

    With a gate in the middle, the pairs that batch-hard losses look at (`hard_pairs.hardest` by the plain distance) get
    their gated distance in the matrix of distances, the others keep the plain one: as in the test, which re-ranks the
    nearest alone.

    Args:
        pair: the encoders and their gate.
        spec: size and representation.
        augmentation: of both images, each with a geometry of its own.
        losses: weights by name.
        options: of the losses.
        normalise: embeddings are scaled to unit length before they are gated and compared, as in the evaluation.
        running: batch-norm layers ("rgb/backbone/bn1") that keep their running statistics.
    """

    def objective(params: Any, batch_stats: Any, batch: Batch, key: jax.Array, given: Any = None):
        sides = {
            name: _side(pair, spec, name, params, batch_stats[name], batch, own_key, augmentation, running)
            for name, own_key in zip(MODALITIES, jax.random.split(key, len(MODALITIES)), strict=True)
        }
        gate_keys = {name: side[3] for name, side in sides.items()}
        outputs = {name: side[0] for name, side in sides.items()}
        scaled = {name: l2_normalise(one.embedding) if normalise else one.embedding for name, one in outputs.items()}
        gate = pair.gate_of()
        gates = {name: jnp.ones_like(one) for name, one in scaled.items()}
        if gate is not None and pair.gate.kind in ("self", "pairwise"):
            gates = {name: gate(params[f"gate_{name}"], scaled[name], gate_keys[name]) for name in MODALITIES}
        if pair.gate.kind == "self":
            scaled = {name: scaled[name] * gates[name] for name in MODALITIES}
            gates = {name: jnp.ones_like(one) for name, one in scaled.items()}
        squared = gated_squared(scaled["rgb"], scaled["depth"], gates["rgb"], gates["depth"])
        if gate is not None and pair.gate.kind == "middle":
            maps: Any = {name: side[1] for name, side in sides.items()}
            identity = batch["identity"]
            squared = _with_gated_maps(pair, params, batch_stats, maps, squared, identity, gate_keys, normalise)
        logits = None
        if "classifier" in params:
            logits = {name: pair.network.classify(params, one.dropped) for name, one in outputs.items()}
        views = Views(
            batch["identity"],
            feature=in_turn(*(pair.network.metric_feature(outputs[name]) for name in MODALITIES)),
            logits=None if logits is None else in_turn(logits["rgb"], logits["depth"]),
            both=True,
            twins=(outputs["rgb"].embedding, outputs["depth"].embedding),
            twin_logits=None if logits is None else (logits["rgb"], logits["depth"]),
            symmetric=True,
            squared=squared,
        )
        loss, figures = weighted_loss(losses, options, views)
        return loss, ({name: side[2] for name, side in sides.items()}, figures)

    return objective


def _side(
    pair: Pair,
    spec: InputSpec,
    name: str,
    params: Any,
    batch_stats: Any,
    batch: Batch,
    key: jax.Array,
    augmentation: Augmentation,
    running: frozenset[str],
) -> tuple[Output, jax.Array | None, Any, jax.Array]:
    """One encoder: its output, its map (with a gate in the middle), new statistics, and a key for its gate."""
    augment_key, dropout_key, gate_key = jax.random.split(key, 3)
    images = train_input(spec, name, batch, augment_key, augmentation)
    own = frozenset(path.removeprefix(f"{name}/") for path in running if path.startswith(f"{name}/"))

    def run(x: jax.Array, stats: Any, parts: tuple[int, int | None]) -> tuple[Any, Any]:
        return pair.network.train(params[name], stats, x, dropout_key, own, name, parts)

    maps, begin = None, 0
    if pair.gate.kind == "middle":
        begin = pair.gate.part
        images, batch_stats = run(images, batch_stats, (0, begin))
        maps = images
    output, batch_stats = run(images, batch_stats, (begin, None))
    return output, maps, batch_stats, gate_key


def _with_gated_maps(
    pair: Pair,
    params: Any,
    batch_stats: Any,
    maps: Mapping[str, jax.Array],
    squared: jax.Array,
    identity: jax.Array,
    keys: Mapping[str, jax.Array],
    normalise: bool,
) -> jax.Array:
    """float32 [B, B], `squared` with the distances of the hardest pairs after gating each other's maps.

    The layers above the gate run with their running statistics here, as they do in the test.
    """
    gate = pair.gate_of()
    assert gate is not None, "called with a gate alone"
    places = dict(zip(MODALITIES, hardest(squared, identity), strict=True))
    gates = {name: gate(params[f"gate_{name}"], maps[name].mean(axis=(1, 2)), keys[name]) for name in MODALITIES}
    found = []
    for name in MODALITIES:
        chosen = gates[other(name)][places[other(name)]]
        gated = maps[name][places[name]] * chosen[:, None, None].astype(maps[name].dtype)
        found.append(pair.network.upper(params[name], batch_stats[name], gated, name, pair.gate.part))
    if normalise:
        found = [l2_normalise(one) for one in found]
    distance = jnp.sum((found[0] - found[1]) ** 2, axis=1)
    return squared.at[places["rgb"], places["depth"]].set(distance)
