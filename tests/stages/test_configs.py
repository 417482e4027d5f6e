"""Every configuration trains and is evaluated: two steps of a tiny network, from the command to the results."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rgbd_reid_jax import cli
from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.data.inputs import train_input
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS
from rgbd_reid_jax.stages.checks import read_settings
from rgbd_reid_jax.stages.step import parted, stage_step
from rgbd_reid_jax.stages.table import STAGES
from rgbd_reid_jax.training.loop import make_step
from rgbd_reid_jax.training.state import create_state

CONFIGS = {path.stem for path in (pathlib.Path(__file__).parents[2] / "configs").glob("*.py")}
DISTILLED = "synthetic_rgbd,rgb_teacher,grey"


@pytest.fixture
def run(tiny_run):
    """Runs the training and evaluation stages of a configuration to their end; gives the workdir."""

    def start(argument: str, workdir: pathlib.Path, *more: str) -> pathlib.Path:
        status, stages = tiny_run(argument, workdir, *more)
        assert status == 0
        assert all((workdir / "stages" / f"{stage}.json").exists() for stage in stages)
        return workdir

    return start


def check(workdir: pathlib.Path, method: str, gate: str) -> None:
    """The results are whole."""
    results = json.loads((workdir / "results.json").read_text())
    assert (results["schema"], results["method"], results["gate"]) == (1, method, gate)
    for name in ("results", "intervals", "chance", "queries"):
        assert set(results[name]) == set(DIRECTIONS)
    for scores in results["results"].values():
        assert set(scores) == {"mAP", "rank1", "rank5", "rank10", "mAP_trapezoid", "mINP"}
        assert all(0.0 <= score <= 1.0 for score in scores.values())
    assert all(count["num_query"] > 0 for count in results["queries"].values())
    assert ("without_gate" in results) == (gate == "middle")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [line["stage"] for line in lines if line["step"] == 2 and "loss" in line]
    assert len(trained) == len(set(trained)) == len(list((workdir / "checkpoints").iterdir()))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where distilled encoders are kept for the configurations that go on from them."""
    return tmp_path_factory.mktemp("distilled") / "run"


@pytest.fixture
def distilled(run, kept):
    """The workdir of a distilled pair, trained once; test_job.py runs the other direction, with colours."""
    return run(f"distill.py:{DISTILLED}", kept)


def test_distillation(distilled):
    check(distilled, "distillation", "none")


@pytest.mark.parametrize("gate", ["none", "self", "pairwise", "middle"])
def test_attention_on_distilled_encoders(run, distilled, tmp_path, gate):
    workdir = run(f"attention.py:{DISTILLED},{gate}", tmp_path / "run", f"--reuse={distilled}")
    marks = {path.stem: json.loads(path.read_text()) for path in (workdir / "stages").iterdir()}
    assert {stage for stage, mark in marks.items() if "reused_from" in mark} == {"teacher", "student"}
    check(workdir, f"attention_{gate}", gate)


@pytest.mark.parametrize(
    ("argument", "method"),
    [
        ("one_stream.py:synthetic_rgbd,grey", "one_stream"),
        ("two_stream.py", "two_stream"),
        ("zero_padding.py", "zero_padding"),
        ("agw.py", "agw"),
        ("mutual.py", "mutual"),
    ],
)
def test_methods_from_the_start(run, tmp_path, argument, method):
    check(run(argument, tmp_path / "run"), method, "none")


# The paper's table for the tiny network.
PAPER = (
    (r"backbone/(conv1|bn1|layer1_\d+)/.*", "train"),
    (r"(backbone/layer2_\d+|embedding|embedding_bn|classifier)/.*", "freeze"),
)


@pytest.mark.parametrize("data", ["biwi", "tvrid"])
@pytest.mark.parametrize("name", ["distill", "attention", "mutual"])
def test_the_paper_s_recipes_train(run, tmp_path, name, data):
    """On the embedded dataset: losses are finite, and what is new in a stage, such as a gate, moves by its rate."""
    freeze = () if name == "mutual" else (f"--config.training.student.freeze={PAPER!r}",)
    workdir = run(f"{name}.py:{data}", tmp_path / "run", "--config.dataset.name=synthetic_rgbd", *freeze)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 * len(list((workdir / "checkpoints").iterdir()))
    assert np.isfinite(losses).all()
    if name == "attention":
        with Checkpoints(workdir / "checkpoints" / "pair") as checkpoints:
            trained = checkpoints.restore_parts(2)["trainable"]
        for gate in ("gate_rgb", "gate_depth"):
            moved = np.abs(trained[gate]["expand"]["kernel"]).max()  # it starts at 0
            assert moved > 3e-5, moved


@pytest.mark.parametrize(
    ("option", "stage", "size"),
    [
        ("resnet18", "student", (32, 16)),
        ("vit_small14", "student", (28, 28)),
        ("triplet_teacher", "teacher", (32, 16)),
    ],
)
def test_the_networks_of_options_take_a_step(tiny_frames, option, stage, size):
    """At full width and depth, with few and small images: the loss is finite, and what trains moves."""
    words = [f"input.height={size[0]}", f"input.width={size[1]}", "model.compute_dtype=float32"]
    if stage == "teacher":
        words += ["model.backbone=tiny", "training.student.freeze=()"]  # the network is another option's
    content = cli.configuration([f"--config=configs/distill.py:biwi,{option}", *(f"--config.{word}" for word in words)])
    settings = read_settings(content, tuple(STAGES))
    step = stage_step(settings, stage, 4)
    network = step.network.init(jax.random.key(0), *size)
    trainable, frozen, running = parted(settings.training[stage], network[0])
    state: Any = create_state(jax.random.key(1), trainable, frozen, network[1], step.optimizer)
    target = np.random.default_rng(0).normal(0, 10, (8, settings.model.embedding_dim)).astype(np.float32)
    columns = {"target": target, "identity": tiny_frames.labels["person_id"][:8]}
    batch = tiny_frames.gather(np.arange(8), step.images) | {name: columns[name] for name in step.columns}
    after, figures = jax.jit(make_step(step.objective(running), step.optimizer))(state, batch)
    assert np.isfinite(figures["loss"])
    moved = jax.tree.map(lambda one, other: bool(jnp.any(one != other)), after.trainable, trainable)
    still = [path for path, any_moved in traverse_util.flatten_dict(moved, sep="/").items() if not any_moved]
    assert not still


def test_every_configuration_has_a_test():
    tested = {"distill", "attention", "one_stream", "two_stream", "zero_padding", "agw", "mutual"}
    assert tested == CONFIGS


@pytest.mark.parametrize("argument", ["synthetic_rgbd", "synthetic_rgbd,rgb_teacher,grey", "biwi", "tvrid"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_augmentation_gives_inputs(name, argument):
    """For the images of each stage's modalities; nothing is computed."""
    settings: Any = read_settings(cli._load(f"configs/{name}.py:{argument}").to_dict(), tuple(STAGES))
    spec = settings.input
    height, width = spec.height, spec.width
    batch = {
        image: jax.ShapeDtypeStruct((4, height, width, channels), np.dtype(dtype))
        for image, channels, dtype in (("rgb", 3, "uint8"), ("depth", 1, "uint16"), ("mask", 1, "uint8"))
    }
    for stage in settings.training.values():
        for modality in ("rgb", "depth") if stage.modality == "both" else (stage.modality,):

            def augmented(batch, key, modality=modality, augmentation=stage.augmentation):
                return train_input(spec, modality, batch, key, augmentation)

            found = jax.eval_shape(augmented, batch, jax.random.key(0))
            assert (found.shape, found.dtype) == ((4, height, width, 3), np.dtype("float32"))
