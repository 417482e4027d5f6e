"""This project's steps, as a run compiles them (`stages.step`), on random normalised images.

No augmentation, no loader. Speaks as `server.py` says.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from server import arguments, resident_peak, serve

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.compiler import compiler_options
from rgbd_reid_jax.core.mesh import make_mesh, replicated, shard_batch, shardings
from rgbd_reid_jax.models.convolution import PREPARED
from rgbd_reid_jax.stages.checks import read_settings
from rgbd_reid_jax.stages.step import parted, preparation, stage_step
from rgbd_reid_jax.stages.table import STAGES
from rgbd_reid_jax.training import objectives
from rgbd_reid_jax.training.loop import compiled_step
from rgbd_reid_jax.training.state import create_state


def peak_bytes() -> int:
    """Of the first device's memory; of a CPU, the process's."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or resident_peak()


def work(compiled: Any) -> dict[str, float]:
    """What XLA counts in a program of one device: operations, and the bytes of all operands and results."""
    cost = compiled.cost_analysis() or {}
    return {name: cost[key] for name, key in (("flops", "flops"), ("bytes", "bytes accessed")) if key in cost}


def make(options: argparse.Namespace) -> tuple[Callable[[], Any], dict[str, Any]]:
    """What takes one step, and facts about it."""
    case: Any = options.case
    stage = "teacher" if case["kind"] == "embed" else case["kind"]
    words = [
        f"--config=configs/distill.py:biwi{',resnet18' * (case['network'] == 'resnet18')}",
        f"--config.model.backbone={case['network']}",
        f"--config.model.compute_dtype={options.dtype}",
        f"--config.input.height={case['height']}",
        f"--config.input.width={case['width']}",
        f"--config.training.{stage}.batch_size={options.batch}",
    ]
    if case["kind"] == "student":
        words.append(f"--config.training.student.target={case['target']}")
    settings = read_settings(cli.configuration(words), tuple(STAGES))
    random, size = np.random.default_rng(0), (options.batch, case["height"], case["width"], 3)
    batch: dict[str, np.ndarray] = {
        "rgb": random.normal(size=size).astype(np.float32),
        "depth": random.normal(size=size).astype(np.float32),
        "identity": random.integers(0, options.people, options.batch).astype(np.int32),
        "target": random.normal(size=(options.batch, settings.model.embedding_dim)).astype(np.float32),
    }
    objectives.train_input = lambda spec, modality, batch, key, augmentation: batch[modality]
    objectives.plain_input = lambda spec, modality, batch: batch[modality]
    mesh = make_mesh()
    step = stage_step(settings, stage, options.people)
    params, batch_stats = step.network.init(jax.random.key(0), case["height"], case["width"])
    facts = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "variant": options.dtype}
    if case["kind"] == "embed":
        weights = jax.device_put((params, batch_stats), replicated(mesh))
        images = shard_batch({"rgb": batch["rgb"]}, mesh)["rgb"]
        model = step.network.without_classifier()
        weights = ({name: part for name, part in weights[0].items() if name != "classifier"}, weights[1])
        if jax.default_backend() == "cpu":  # once for all batches, as an extraction does
            prepare = jax.jit(lambda params, stats: model.prepared(params, stats, case["height"], case["width"], "rgb"))
            weights = ({**weights[0], PREPARED: prepare(*weights)}, weights[1])
        embed = jax.jit(
            lambda params, stats, images: model.embed(params, stats, images, "rgb"),
            compiler_options=compiler_options(mesh.devices.flat[0]),
        )
        embed = embed.lower(*weights, images).compile()
        return lambda: embed(*weights, images), facts | work(embed)
    trainable, frozen, running = parted(settings.training[stage], params)
    state = create_state(jax.random.key(1), trainable, frozen, batch_stats, step.optimizer)
    place = shardings(state, mesh)
    holder = {"state": jax.device_put(jax.tree.map(jnp.copy, state), place)}
    names = {settings.training[stage].modality, *step.columns}
    given: dict[str, Any] = {}
    if "teacher" in step.given:
        names.add(settings.training["teacher"].modality)
        given["teacher"] = jax.device_put((params, batch_stats), replicated(mesh))
    rows = shard_batch({name: batch[name] for name in names}, mesh)

    def prepared(name: str, frozen: Any) -> Any:  # once for all steps, as a run does
        prepare = preparation(settings, step, settings.training[name].modality, frozen, mesh)
        return jax.jit(prepare)(params, batch_stats) if prepare else {}

    ready = prepared(stage, frozen)
    if given:
        given["teacher"] = {**given["teacher"][0], **prepared("teacher", params)}, given["teacher"][1]
    function = compiled_step(step.objective(running), step.optimizer, state, mesh)
    function = function.lower(holder["state"], rows, given=given, prepared=ready).compile()

    def one() -> Any:
        holder["state"], figures = function(holder["state"], rows, given=given, prepared=ready)
        return figures

    return one, facts | work(function) | {"trainable": sum(leaf.size for leaf in jax.tree.leaves(trainable))}


def main() -> None:
    """Serves one case."""
    step, facts = make(arguments(__doc__))
    serve(step, jax.block_until_ready, peak_bytes, **facts)


if __name__ == "__main__":
    main()
