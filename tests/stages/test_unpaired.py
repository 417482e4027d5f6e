"""Frames of one modality only: who uses them, who refuses them, and a whole run on them."""

import types

import numpy as np
import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.stages import training
from rgbd_reid_jax.stages.checks import read_settings
from rgbd_reid_jax.stages.job import Job
from rgbd_reid_jax.stages.table import STAGES, run_stages
from rgbd_reid_jax.stages.workdir import Workdir

RGB, DEPTH, BOTH = 1, 2, 3


@pytest.fixture
def job_on(tmp_path, monkeypatch, make_records, as_frames):
    """Makes a job whose every split holds frames with these modalities; further arguments change its configuration."""

    made = []

    def make(modalities, path="configs/distill.py", **changes):
        records = make_records(len(modalities))
        for record, value in zip(records, modalities, strict=True):
            record["modalities"] = np.int32(value)
            for name in {RGB: ("depth", "mask"), DEPTH: ("rgb",), BOTH: ()}[value]:
                record[name] = np.zeros_like(record[name])
        frames = as_frames(records)
        monkeypatch.setattr(Job, "frames", lambda self, split: frames)
        info = types.SimpleNamespace(full_name="people/quick/1.0.0", metadata={"fingerprint": "0" * 16})
        monkeypatch.setattr(Job, "dataset", types.SimpleNamespace(info=info))
        config = cli._load(path)
        config.update_from_flattened_dict(changes)
        plain = config.to_dict()
        job = Job(read_settings(plain, tuple(STAGES)), Workdir(tmp_path / str(len(made))), plain)
        made.append(job)
        return job

    yield make
    for job in made:
        job.workdir.__exit__()


def frame_ids(frames):
    return frames.labels["frame_id"].tolist()


def test_stages_use_the_frames_that_have_what_they_need(job_on):
    modalities = [BOTH, RGB, DEPTH, BOTH, DEPTH, RGB, BOTH, BOTH]
    job = job_on(modalities)
    assert frame_ids(job.training_frames("teacher")) == [0, 2, 3, 4, 6, 7]
    assert frame_ids(job.frames_of("test", "rgb")) == [0, 1, 3, 5, 6, 7]
    assert frame_ids(job.frames_of("test", "depth")) == [0, 2, 3, 4, 6, 7]
    one_stream = job_on(modalities, "configs/one_stream.py")
    assert frame_ids(one_stream.training_frames("baseline")) == [0, 3, 6, 7]
    cross = {"training.baseline.sampling.name": "pk_cross_modal"}
    crossed = job_on(modalities, "configs/one_stream.py", **cross).training_frames("baseline")
    assert frame_ids(crossed) == [0, 2, 3, 4, 6, 7]  # 1 and 5 are one person's, who has no depth image


def test_distillation_refuses_unpaired_frames_before_the_teacher_s_work(job_on, monkeypatch):
    monkeypatch.setattr(training, "_run", lambda *_: pytest.fail("it trains"))
    job = job_on([BOTH, BOTH, BOTH, DEPTH, RGB, BOTH])
    for stage in ("teacher", "student"):
        if stage == "student":
            monkeypatch.setattr(Job, "trained", lambda *_: ({}, {}))
        with pytest.raises(InputError) as caught:
            STAGES[stage](job)
        text = str(caught.value)
        assert "2 of 6 training frames of people/quick/1.0.0 lack one of the two images" in text
        assert "(the first: recording 0, frame 3)" in text
        assert "leave them out of the train split, or use configs/one_stream.py" in text
        assert len(text.splitlines()) == 1


def test_a_teacher_alone_needs_no_pairs(job_on, monkeypatch):
    seen = {}

    def remember(job, name, step, init, frames, columns, given=None):
        seen.update(frames=frames, identity=columns["identity"])

    monkeypatch.setattr(training, "_run", remember)
    job = job_on([DEPTH, RGB, DEPTH, RGB, BOTH, RGB, DEPTH, RGB], stages=("teacher",))
    STAGES["teacher"](job)
    assert frame_ids(seen["frames"]) == [0, 2, 4, 6]  # person_id 10, 20, 10, 20: two identities, not four
    assert seen["identity"].tolist() == [0, 1, 0, 1]


def test_data_without_a_needed_image_are_named(job_on):
    job = job_on([RGB] * 4, stages=("teacher",))
    with pytest.raises(
        InputError, match=r"no training frame of people/quick/1\.0\.0 has what stage teacher .*\(depth\)"
    ):
        job.training_frames("teacher")
    with pytest.raises(InputError, match=r"no frame of split test of people/quick/1\.0\.0 has a depth image"):
        job.frames_of("test", "depth")
    mixed = job_on([RGB, DEPTH] * 4, "configs/one_stream.py")
    with pytest.raises(InputError, match=r"\(rgb and depth\); choose another dataset, or pk_cross_modal"):
        mixed.training_frames("baseline")


def test_a_run_on_frames_of_which_none_has_both_images(job_on, tiny_model):
    """Before each of both cameras, every other recording has RGB images and the others depth images."""
    modalities = [RGB if index // 8 % 2 == 0 else DEPTH for index in range(32)]
    small = {"steps": 2, "batch_size": 16, "evaluate_every": 2}
    training_changes = {f"training.baseline.{name}": value for name, value in small.items()}
    sampling = {"name": "pk_cross_modal", "people": 4, "frames": 4}
    sampling_changes = {f"training.baseline.sampling.{name}": value for name, value in sampling.items()}
    job = job_on(
        modalities,
        "configs/one_stream.py",
        **training_changes,
        **sampling_changes,
        **{"model.backbone": "tiny", "model.embedding_dim": 8, "input.height": 16, "input.width": 16},
        **{"evaluation.splits": ("test",), "stages": ("baseline", "evaluation", "report")},
    )
    run_stages(job, job.settings.stages)
    for modality, value in (("rgb", RGB), ("depth", DEPTH)):
        saved = Embeddings.load(job.workdir.embeddings("test", modality))
        assert saved.frame_id is not None
        assert saved.frame_id.tolist() == [index for index in range(32) if modalities[index] == value]
    assert job.workdir.results.exists()
    assert 'class="paired"' not in job.workdir.report.read_text()
