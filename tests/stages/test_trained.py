"""What later stages get of a finished training stage, and of the dataset."""

import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.stages.checks import read_settings
from rgbd_reid_jax.stages.job import Job
from rgbd_reid_jax.stages.table import STAGES
from rgbd_reid_jax.stages.workdir import Workdir


def job_in(workdir: Workdir, data_dir: str = "") -> Job:
    config = cli._load("configs/distill.py").to_dict()
    config["dataset"] |= {"config": "tiny", "data_dir": data_dir}
    return Job(read_settings(config, tuple(STAGES)), workdir, config)


@pytest.fixture
def workdir(tmp_path):
    """A finished teacher stage: the checkpoint of step 8 was the best, that of step 16 the last."""
    with Workdir(tmp_path) as workdir:
        with Checkpoints(workdir.checkpoints("teacher")) as checkpoints:
            for step, score in ((8, 0.9), (16, 0.1)):
                params = {"embedding": {"bias": jnp.full(3, float(step))}, "classifier": {"bias": jnp.zeros(2)}}
                state = {"trainable": params, "frozen": {}, "batch_stats": {"mean": jnp.zeros(3)}}
                checkpoints.save(step, state, {}, score)
        workdir.finish("teacher", 1.0, 8)
        yield workdir


def test_the_chosen_checkpoint_is_used_by_encoders_without_its_classifier(workdir):
    job = job_in(workdir)
    assert set(job.trained("teacher")[0]) == {"embedding", "classifier"}
    params, batch_stats = job.trained_encoder("depth", "teacher")
    assert set(params) == {"embedding"}
    np.testing.assert_array_equal(params["embedding"]["bias"], 8.0)
    np.testing.assert_array_equal(batch_stats["mean"], 0.0)


def test_scores_are_computed_on_the_devices_of_one_process(workdir, monkeypatch):
    """Those of the others belong to processes that do not rank."""
    own = jax.devices()[2:5]
    monkeypatch.setattr(jax, "local_devices", lambda: own)
    monkeypatch.setattr("rgbd_reid_jax.stages.job.Comparison", lambda *given: given)
    given: Any = job_in(workdir).comparison(("student", "teacher"))
    assert given[-1].devices.ravel().tolist() == own


def remove(folder) -> None:
    shutil.rmtree(folder)


def damage(folder) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


@pytest.mark.parametrize("harm", [remove, damage])
def test_a_chosen_checkpoint_that_is_gone_is_not_replaced_by_another(workdir, harm):
    harm(workdir.checkpoints("teacher") / "8")
    with pytest.raises(InputError) as caught:
        job_in(workdir).trained("teacher")
    text = str(caught.value)
    folder, mark = workdir.path / "checkpoints" / "teacher", workdir.path / "stages" / "teacher.json"
    assert f"checkpoint {folder / '8'}, which stage teacher chose, is missing or damaged" in text
    assert f"delete {folder} and {mark} and run the same command again" in text
    assert len(text.splitlines()) == 1


def test_a_mark_without_a_step_is_refused(workdir):
    workdir.finish("teacher", 1.0)
    with pytest.raises(InputError, match="missing or damaged"):
        job_in(workdir).trained("teacher")


def test_a_stage_that_is_not_done_is_named(workdir):
    with pytest.raises(InputError, match="stage student is not done"):
        job_in(workdir).trained("student")


def test_data_of_another_fingerprint_are_refused(workdir, tiny_data_dir):
    assert job_in(workdir, str(tiny_data_dir)).dataset.info.name == "synthetic_rgbd"
    path = workdir.path / "dataset.json"
    content = json.loads(path.read_text())
    assert content["name"].startswith("synthetic_rgbd/tiny/")
    assert len(content["fingerprint"]) == 16
    path.write_text(json.dumps(content | {"fingerprint": "0" * 16}))
    with pytest.raises(InputError, match=r"holds a run on other data \(fingerprint is '0{16}' there"):
        _ = job_in(workdir, str(tiny_data_dir)).dataset
