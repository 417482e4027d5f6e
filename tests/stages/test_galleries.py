"""Datasets of one's own from the command to the data, and protocols that suit none of their queries."""

import json
import shutil
import types
from typing import Any

import numpy as np
import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.stages.galleries import check_evaluation, check_validation
from tfds_builders.rgbd_folder import example_tree


@pytest.fixture
def one_camera(tmp_path):
    """Somebody's recordings: each person once, before one camera."""
    tree = tmp_path / "mine"
    example_tree.write(tree)
    for second in tree.glob("*/*/hall"):
        shutil.rmtree(second)
    (tree / "intrinsics.json").unlink()  # it names the other camera
    return tree


def run(tmp_path, *arguments: str) -> int:
    places = [f"--workdir={tmp_path / 'run'}", f"--config.dataset.data_dir={tmp_path / 'data'}"]
    return cli.run(["main", "--config=configs/distill.py:rgbd_folder", *places, *arguments])


@pytest.mark.parametrize("protocol", ["recording_excluded", "cross_camera", "market"])
def test_a_protocol_that_empties_every_gallery_is_refused_before_training(capsys, tmp_path, one_camera, protocol):
    arguments = [f"--config.dataset.manual_dir={one_camera}", f"--config.evaluation.protocol={protocol}"]
    assert run(tmp_path, *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "rgbd_folder/default/1.0.0 validation depth_to_depth: " in line
    assert f"protocol {protocol} (" in line
    assert "leaves none of the 2 queries a gallery item of its person" in line
    assert "say --config.evaluation.protocol=twin_excluded" in line
    assert not (tmp_path / "run" / "checkpoints").exists()
    # The data were built on the way; where they came from is no part of what the run is.
    assert (tmp_path / "data" / "rgbd_folder" / "default" / "1.0.0" / "manifest.json").exists()
    assert "manual_dir" not in json.loads((tmp_path / "run" / "config.json").read_text())["dataset"]


def test_a_protocol_that_suits_gets_on(capsys, tmp_path, one_camera):
    arguments = [f"--config.dataset.manual_dir={one_camera}", "--config.evaluation.protocol=twin_excluded"]
    assert run(tmp_path, *arguments, "--config.training.teacher.sampling.name=shuffle") == 2
    assert "batch_size=64 exceeds the 6 training frames" in capsys.readouterr().err


def test_a_dataset_whose_files_are_not_given(capsys, tmp_path):
    assert run(tmp_path) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "rgbd_folder needs files of yours" in line


def job(
    protocol: str, stages: tuple[str, ...] = ("teacher", "evaluation"), *, multi_frame: bool = False, columns: Any = ()
) -> Any:
    """A run whose validation people are seen by two cameras, its test people by one."""
    frames = {"validation": {"camera_id": [0, 1, 0, 1]}, "test": {"camera_id": [0, 0, 0, 0]}}
    common = {"person_id": [1, 1, 2, 2], "recording_id": [1, 2, 3, 4], "frame_id": [0, 0, 0, 0]}
    labels = {
        split: {name: np.array(column) for name, column in {**common, **own, **dict(columns)}.items()}
        for split, own in frames.items()
    }
    evaluation = types.SimpleNamespace(protocol=protocol, splits=("validation", "test"), multi_frame=multi_frame)
    settings = types.SimpleNamespace(
        evaluation=evaluation, stages=stages, directions=lambda stage: (("rgb", "depth"), ("depth", "rgb"))
    )
    return types.SimpleNamespace(
        settings=settings,
        dataset=types.SimpleNamespace(info=types.SimpleNamespace(full_name="people/all/1.0.0")),
        frames_of=lambda split, modality: types.SimpleNamespace(labels=labels[split]),
    )


def test_test_people_are_looked_at_before_training_too():
    check_validation(job("recording_excluded"), "teacher")
    with pytest.raises(InputError, match=r"^people/all/1\.0\.0 test rgb_to_depth: protocol cross_camera"):
        check_validation(job("cross_camera"), "teacher")
    with pytest.raises(InputError, match=r"^people/all/1\.0\.0 test rgb_to_depth: protocol cross_camera"):
        check_evaluation(job("cross_camera"))
    check_validation(job("cross_camera", stages=("teacher",)), "teacher")


def test_what_is_ranked_is_looked_at_where_that_is_recordings():
    """Frames of one recording each are no twins; as recordings they are, and their twins alone are left."""
    one_each = {"recording_id": [1, 1, 2, 2], "camera_id": [0, 0, 0, 0], "frame_id": [0, 1, 0, 1]}
    check_evaluation(job("twin_excluded", columns=one_each))
    with pytest.raises(InputError, match=r"protocol twin_excluded \(.* leaves none of the 2 queries"):
        check_evaluation(job("twin_excluded", multi_frame=True, columns=one_each))
    differing = {**one_each, "clothes_id": [0, 1, 0, 0]}
    with pytest.raises(InputError, match="validation rgb: the frames of recording_id 1 differ in clothes_id"):
        check_validation(job("twin_excluded", multi_frame=True, columns=differing), "teacher")
