"""Input that cannot be used: one line that names it and the mend, exit status 2, nothing left behind."""

import json
import shutil

import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.stages.workdir import Workdir

SYNTHETIC = "--config=configs/distill.py"


def refused(capsys, *arguments: str) -> str:
    """The one line that the command prints before it exits with 2."""
    assert cli.run(["main", *arguments]) == 2
    errors = capsys.readouterr().err.strip()
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("error: ")
    return errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config is missing"]),
        ([SYNTHETIC], ["--workdir is missing"]),
        (["--config=configs/nope.py"], ["configs/nope.py does not exist"]),
        (["--config=configs/distill.py:nope"], ["'nope' is unknown", "synthetic_rgbd, biwi"]),
        (["--config=configs/distill.py:synthetic_rgbd/nope"], ["nope", "quick"]),
        ([SYNTHETIC, "--wrkdir=x"], ["--wrkdir is unknown", "did you mean --workdir"]),
        ([SYNTHETIC, "surplus"], ["'surplus' is not a flag"]),
        ([SYNTHETIC, "--config.seeed=1"], ["config.seeed", "did you mean 'seed'"]),
        ([SYNTHETIC, "--config.training.teacher.stepz=1"], ["no field 'stepz'", "did you mean 'steps'"]),
        ([SYNTHETIC, "--config.seed=abc"], ["config.seed=abc"]),
        ([SYNTHETIC, "--config.training.teacher.steps=0"], ["training.teacher.steps=0", "at least 1"]),
        ([SYNTHETIC, "--config.model.backbone=resnet5"], ["'resnet5' is unknown", "resnet50"]),
        ([SYNTHETIC, "--config.model.compute_dtype=int8"], ["'int8'", "bfloat16"]),
        ([SYNTHETIC, "--config.input.depth_representation=hha"], ["'hha' is unknown", "relative"]),
        ([SYNTHETIC, "--config.evaluation.protocol=best"], ["'best' is unknown", "cross_camera"]),
        ([SYNTHETIC, "--config.training.student.loss=l3"], ["'l3' is unknown", "sum_squared"]),
        ([SYNTHETIC, "--config.training.student.optimizer.name=lion"], ["'lion' is unknown", "adamw"]),
        ([SYNTHETIC, "--config.training.teacher.optimizer.schedule=cosine"], ["'cosine' is unknown", "one_cycle"]),
        ([SYNTHETIC, "--config.dataset.cache=disk"], ["'disk' is unknown", "host"]),
        ([SYNTHETIC, "--config.dataset.name=market1501"], ["'market1501' has no builder", "synthetic_rgbd"]),
        ([SYNTHETIC, "--config.dataset.knobs=seed"], ["'seed' is not of the form name=value"]),
        ([SYNTHETIC, "--config.dataset.knobs=spread=2"], ["spread", "body_spread"]),
        ([SYNTHETIC, "--config.dataset.knobs=seed=one"], ["'one' is no number"]),
        ([SYNTHETIC, "--config.stages=('teach',)"], ["'teach' is unknown", "teacher"]),
        ([SYNTHETIC, "--stages=one_stream"], ["'one_stream' is no stage of this config"]),
        ([SYNTHETIC, "--config.mesh.fsdp=3"], ["mesh.fsdp=3", "divide"]),
        (["--config=configs/distill.py:biwi"], ["'biwi_rgbd_id' has no builder"]),
    ],
)
def test_one_line_names_the_value_and_the_mend(capsys, tmp_path, arguments, words):
    workdir = [f"--workdir={tmp_path / 'run'}"] if "missing" not in words[0] else []
    line = refused(capsys, *arguments, *workdir)
    for word in words:
        assert word in line


def test_workdir_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(capsys, SYNTHETIC, f"--workdir={tmp_path / 'file' / 'run'}")
    assert "cannot be written" in line
    assert "choose another --workdir" in line


def test_workdir_of_another_configuration(capsys, tmp_path, tiny_data_dir):
    run = [SYNTHETIC, f"--workdir={tmp_path}", f"--config.dataset.data_dir={tiny_data_dir}", "--stages=student"]
    refused(capsys, *run)  # claims the folder, then stops at the missing teacher
    before = (tmp_path / "config.json").read_bytes()
    line = refused(capsys, *run, "--config.training.teacher.steps=7")
    assert "another configuration's run (training.teacher.steps is 800 there, 7 here)" in line
    assert (tmp_path / "config.json").read_bytes() == before


def test_workdir_with_other_files(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    line = refused(capsys, SYNTHETIC, f"--workdir={tmp_path}")
    assert "thesis.tex" in line
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert not (tmp_path / "config.json").exists()


def test_workdir_in_use(capsys, tmp_path):
    with Workdir(tmp_path):
        line = refused(capsys, SYNTHETIC, f"--workdir={tmp_path}")
    assert "in use by another run" in line


def test_damaged_config_json(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"method": ')
    assert "config.json is not valid JSON" in refused(capsys, SYNTHETIC, f"--workdir={tmp_path}")


def test_stage_before_its_time(capsys, tmp_path, tiny_data_dir):
    line = refused(
        capsys,
        SYNTHETIC,
        f"--workdir={tmp_path}",
        f"--config.dataset.data_dir={tiny_data_dir}",
        "--config.dataset.config=tiny",
        "--stages=student",
    )
    assert "stage teacher is not done" in line


def test_corrupted_dataset(capsys, tmp_path, tiny_data_dir):
    data_dir = tmp_path / "data"
    shutil.copytree(tiny_data_dir, data_dir)
    shard = next(data_dir.rglob("*train*array_record*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    arguments = [
        SYNTHETIC,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={data_dir}",
        "--config.dataset.config=tiny",
    ]
    line = refused(capsys, *arguments)
    assert shard.name in line
    assert "delete" in line
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dataset"]["config"] == "tiny"


def test_batch_larger_than_the_data(capsys, tmp_path, tiny_data_dir):
    line = refused(
        capsys,
        SYNTHETIC,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={tiny_data_dir}",
        "--config.dataset.config=tiny",
    )
    assert "batch_size=64 exceeds the 48 training frames" in line
