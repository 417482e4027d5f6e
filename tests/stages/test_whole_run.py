"""What a whole run starts from, which images it looks at, what it ranks, and how it ends where training diverges."""

import json
import re
import types
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.data.inputs import plain_input
from rgbd_reid_jax.data.records import IMAGES, Records
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS, Embeddings
from rgbd_reid_jax.stages import training
from rgbd_reid_jax.stages.table import STAGES
from rgbd_reid_jax.training import loop
from rgbd_reid_jax.training.freeze import merge
from tests.models.pth_files import published

CONFIG = "distill.py:synthetic_rgbd,rgb_teacher,grey"


@pytest.fixture(scope="module")
def watched(tiny_run, tiny_model, tmp_path_factory):
    """A run from published weights that ranks recordings: its folder, its job, and what its stages began with and saw.

    `began[stage]` is the state before the first step with the first batch, `seen` the splits whose images were decoded
    by training stages and by the evaluation.
    """
    folder = tmp_path_factory.mktemp("watched")
    weights = published(*jax.device_get(tiny_model.init(jax.random.key(3), 16, 16)))
    save_file(weights, folder / "net.safetensors")
    began, seen, jobs = {}, {"training": set(), "evaluation": set()}, []
    decode, evaluate = Records.decode, STAGES["evaluation"]

    def train(plan, state, objective, optimizer, schedule, batches, *rest):
        position = batches.get_state()
        began[plan.stage] = jax.device_get(state), next(batches)
        batches.set_state(position)
        return loop.train(plan, state, objective, optimizer, schedule, batches, *rest)

    def watch(records, indices, images):
        if len(images):
            seen["evaluation" if jobs else "training"].add(records._name.split()[-1])
        return decode(records, indices, images)

    def evaluation(job):
        jobs.append(job)
        return evaluate(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", train)
        patch.setattr(Records, "decode", watch)
        patch.setitem(STAGES, "evaluation", evaluation)
        options = (f"--config.model.pretrained={folder / 'net.safetensors'}", "--config.evaluation.multi_frame=True")
        status, _ = tiny_run(CONFIG, folder / "run", *options)
    assert status == 0
    (job,) = jobs
    return types.SimpleNamespace(
        folder=folder / "run", options=options, weights=weights, began=began, seen=seen, job=job
    )


def chosen(folder, stage) -> tuple[Any, Any]:
    """(parameters, batch statistics) of the checkpoint that a stage chose."""
    step = json.loads((folder / "stages" / f"{stage}.json").read_text())["step"]
    with Checkpoints(folder / "checkpoints" / stage) as checkpoints:
        parts = checkpoints.restore_parts(step)
    return merge(parts["trainable"], parts["frozen"] or {}), parts["batch_stats"]


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_teacher_starts_from_the_published_weights_and_a_student_from_its_teacher(watched):
    state, _ = watched.began["teacher"]
    for path, name in ((("conv1", "kernel"), "conv1"), (("layer2_0", "conv1", "kernel"), "layer2.0.conv1")):
        leaf = state.trainable["backbone"]
        for key in path:
            leaf = leaf[key]
        np.testing.assert_array_equal(leaf.transpose(3, 2, 0, 1), watched.weights[f"{name}.weight"])
    np.testing.assert_array_equal(state.batch_stats["backbone"]["bn1"]["var"], watched.weights["bn1.running_var"])

    state, _ = watched.began["student"]
    params, batch_stats = chosen(watched.folder, "teacher")
    assert not np.array_equal(
        params["backbone"]["conv1"]["kernel"].transpose(3, 2, 0, 1), watched.weights["conv1.weight"]
    )
    assert_equal(merge(state.trainable, state.frozen), {name: params[name] for name in params if name != "classifier"})
    assert_equal(state.batch_stats, batch_stats)


def test_cached_targets_are_the_trained_teacher_s_embeddings_of_the_same_instants(watched):
    """Of the RGB image of each depth image in the batch, which is looked up by its pixels; not of unit length.

    And moved half way to the mean of all of the person's.
    """
    _, batch = watched.began["student"]
    frames = watched.job.frames("train")
    images = frames.gather(np.arange(len(frames)), IMAGES)
    found = [np.flatnonzero((images["depth"] == one).all(axis=(1, 2, 3))) for one in batch["depth"]]
    assert {len(rows) for rows in found} == {1}
    rows, people = np.concatenate(found), frames.labels["person_id"]
    settings = watched.job.settings
    params, batch_stats = chosen(watched.folder, "teacher")
    bare = {name: params[name] for name in params if name != "classifier"}

    @jax.jit
    def teach(images):
        return settings.network(None).embed(bare, batch_stats, plain_input(settings.input, "rgb", images), "rgb")

    taught = np.asarray(teach({"rgb": images["rgb"]}))
    expected = [(taught[row] + taught[people == people[row]].mean(axis=0)) / 2 for row in rows]
    np.testing.assert_allclose(batch["target"], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(np.linalg.norm(expected, axis=1) - 1).min() > 0.01


def losses(folder, stage) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["stage"] == stage and "loss" in line]


def test_targets_computed_in_each_step_train_the_same_student(watched, tiny_run, tmp_path):
    for target in ("cached", "online"):
        folder = tmp_path / target
        changes = f"--config.training.student.target={target}", "--config.training.student.target_mean=0.0"
        assert tiny_run(CONFIG, folder, *watched.options, *changes, f"--reuse={watched.folder}")[0] == 0
        assert "reused_from" in json.loads((folder / "stages" / "teacher.json").read_text())
        assert "reused_from" not in json.loads((folder / "stages" / "student.json").read_text())
    cached, online = (losses(tmp_path / target, "student") for target in ("cached", "online"))
    assert online == pytest.approx(cached, rel=1e-5)
    assert cached != pytest.approx(losses(watched.folder, "student"), rel=1e-3)  # whose targets are moved


def test_while_networks_are_trained_and_chosen_no_image_of_test_people_is_looked_at(watched):
    assert watched.seen == {"training": {"train", "validation"}, "evaluation": {"test"}}


def test_recordings_are_ranked_by_the_mean_of_their_frames_embeddings(watched):
    """In loops over the exported embeddings; protocol cross_camera."""
    results = json.loads((watched.folder / "results.json").read_text())
    assert results["multi_frame"] is True
    sides = {}
    for name in ("rgb", "depth"):
        saved: Any = Embeddings.load(watched.folder / "embeddings" / f"test_{name}.npz")
        sides[name] = {}
        for recording in np.unique(saved.recording_id):
            rows = np.flatnonzero(saved.recording_id == recording)
            assert len(rows) > 1
            labels = (saved.person_id[rows[0]], saved.camera_id[rows[0]])
            sides[name][recording] = (*labels, saved.embedding[rows].mean(axis=0, dtype=np.float64))
    for direction, (query, gallery) in DIRECTIONS.items():
        precisions, first = [], []
        for person, camera, embedding in sides[query].values():
            seen = [
                (np.linalg.norm(one - embedding), who) for who, where, one in sides[gallery].values() if where != camera
            ]
            hits = [rank for rank, (_, who) in enumerate(sorted(seen), 1) if who == person]
            precisions.append(np.mean([number / rank for number, rank in enumerate(hits, 1)]))
            first.append(hits[0])
        scores = results["results"][direction]
        assert results["queries"][direction]["num_query"] == len(first)
        assert scores["mAP"] == pytest.approx(np.mean(precisions), abs=1e-6), direction
        assert scores["rank1"] == pytest.approx(np.mean([rank == 1 for rank in first]), abs=1e-6), direction


def test_a_run_that_diverges_ends_in_one_line_and_keeps_its_last_good_checkpoint(tiny_run, tmp_path, capsys):
    """Weight decay of the wrong size makes the weights 100 times as large in every step; every other step is saved."""
    options = [f"--config.training.teacher.{name}" for name in ("steps=20", "optimizer.weight_decay=1e4")]
    options += [f"--config.training.teacher.optimizer.{name}" for name in ("schedule=constant", "learning_rate=0.01")]
    status, _ = tiny_run(CONFIG, tmp_path / "run", *options, "--config.model.pool=average")
    errors = capsys.readouterr().err.strip()
    assert status == 2
    assert len(errors.splitlines()) == 1
    found = re.fullmatch(
        r"error: the (loss|gradient norm) is (nan|inf) at step (\d+) of stage teacher; lower its .*", errors
    )
    assert found, errors
    step = int(found[3])
    assert np.isfinite(losses(tmp_path / "run", "teacher")).all()
    assert len(losses(tmp_path / "run", "teacher")) == step - 1
    kept = [int(path.name) for path in (tmp_path / "run" / "checkpoints" / "teacher").iterdir()]
    assert max(kept) == (step - 1) // 2 * 2 > 0
    with Checkpoints(tmp_path / "run" / "checkpoints" / "teacher") as checkpoints:
        assert all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpoints.restore_parts(max(kept))["trainable"])
        )
    assert not (tmp_path / "run" / "stages" / "teacher.json").exists()
