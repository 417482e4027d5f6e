"""Input that cannot be used: one line that names it and the mend, exit status 2, nothing left behind."""

import json
import shutil

import jax
import pytest
from safetensors.numpy import save_file

from rgbd_reid_jax import cli
from rgbd_reid_jax.models.network import Model
from rgbd_reid_jax.stages.workdir import Workdir
from tests.models.pth_files import Trap, published, write_pth

SYNTHETIC = "--config=configs/distill.py"
ONE_STREAM = "--config=configs/one_stream.py"
TEACHER, STUDENT, BASELINE = (f"--config.training.{stage}" for stage in ("teacher", "student", "baseline"))


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
        ([SYNTHETIC, "--config.training.student.losses.l3=1.0"], ["no field 'l3'", "config.training.student.losses"]),
        ([SYNTHETIC, "--config.training.student.optimizer.name=lion"], ["'lion' is unknown", "adamw"]),
        ([SYNTHETIC, "--config.training.teacher.optimizer.schedule=cosine"], ["'cosine' is unknown", "one_cycle"]),
        ([SYNTHETIC, "--config.dataset.cache=disk"], ["'disk' is unknown", "host"]),
        ([SYNTHETIC, "--config.dataset.name=market1501"], ["'market1501' has no builder", "synthetic_rgbd"]),
        ([SYNTHETIC, "--config.dataset.knobs=seed"], ["'seed' is not of the form name=value"]),
        ([SYNTHETIC, "--config.dataset.knobs=spread=2"], ["spread", "body_spread"]),
        ([SYNTHETIC, "--config.dataset.knobs=seed=one"], ["knob seed='one'", "whole number"]),
        ([SYNTHETIC, "--config.dataset.knobs=seed=[1"], ["knobs='seed=[1'", "name=value"]),
        ([SYNTHETIC, "--config.stages=('teach',)"], ["'teach' is unknown", "teacher"]),
        ([SYNTHETIC, "--stages=baseline"], ["'baseline' is no stage of this config"]),
        ([SYNTHETIC, "--config.dataset.knobs=base_name=1"], ["no knob base_name=1"]),
        ([SYNTHETIC, "--config.dataset.knobs=seed={[]:1}"], ["'{[]:1}' is no number"]),
        ([SYNTHETIC, "--stages=,"], ["'' is no stage of this config"]),
        ([SYNTHETIC, "--stages="], ["'' is no stage of this config"]),
        ([SYNTHETIC, "--config.stages=('teacher','teacher')"], ["config.stages=", "each once"]),
        ([SYNTHETIC, "--config.stages=('baseline',)"], ["config.training.baseline is missing"]),
        ([SYNTHETIC, "--config.seed=-1"], ["config.seed=-1 must be from 0"]),
        ([SYNTHETIC, "--config.seed=4294967296"], ["config.seed=4294967296 must be from 0"]),
        ([SYNTHETIC, "--config.input.height=15"], ["config.input.height=15 must be at least 16"]),
        ([SYNTHETIC, "--config.input.width=0"], ["config.input.width=0 must be at least 16"]),
        (
            [SYNTHETIC, "--config.model.embedding_dim=0", "--config.model.neck=paper"],
            ["model.embedding_dim=0 needs model.neck='bnneck'"],
        ),
        ([SYNTHETIC, "--config.model.neck=long"], ["config.model.neck='long' is unknown", "paper, triplet, bnneck"]),
        ([SYNTHETIC, "--config.model.backbone=vit_small14"], ["input 64x32", "multiples of 14", "70x28"]),
        ([SYNTHETIC, "--config.model.pretrained=absent.pth"], ["'absent.pth' is no file", ".safetensors"]),
        ([SYNTHETIC, "--config.model.dropout=1.0"], ["config.model.dropout=1.0 must be at least 0 and below 1"]),
        ([SYNTHETIC, "--config.model.last_stride=3"], ["config.model.last_stride=3 is unknown", "0, 1, 2"]),
        ([SYNTHETIC, "--config.evaluation.splits=()"], ["config.evaluation.splits=() must be", "one or more"]),
        (
            [SYNTHETIC, "--config.evaluation.splits=('dev',)"],
            ["config.evaluation.splits='dev' is unknown", "validation"],
        ),
        ([SYNTHETIC, "--config.evaluation.batch_size=0"], ["config.evaluation.batch_size=0", "at least 1"]),
        ([SYNTHETIC, "--config.export.platforms=()"], ["config.export.platforms=()", "'cpu'"]),
        ([SYNTHETIC, "--config.export.platforms=('cuda',)"], ["config.export.platforms=('cuda',)", "'cpu'"]),
        ([SYNTHETIC, "--config.export.platforms=('cpu','npu')"], ["config.export.platforms='npu' is unknown", "tpu"]),
        ([SYNTHETIC, f"{TEACHER}.modality=both"], ["training.teacher.modality='both' is unknown", "rgb, depth"]),
        ([SYNTHETIC, f"{TEACHER}.modality=rgb"], ["say --config.training.student.modality=depth"]),
        (
            [SYNTHETIC, f"{TEACHER}.modality=rgb", f"{STUDENT}.modality=depth"],
            ["config.encoders.rgb='student'", "say --config.encoders.rgb=teacher --config.encoders.depth=student"],
        ),
        ([SYNTHETIC, "--config.encoders.rgb=teacher"], ["which sees depth; say --config.encoders.rgb=student"]),
        (
            [SYNTHETIC, f"{STUDENT}.losses.contrastive=-1.0"],
            ["losses.contrastive=-1.0 must be at least 0"],
        ),
        ([SYNTHETIC, f"{STUDENT}.frozen_norm=none"], ["training.student.frozen_norm='none' is unknown", "running"]),
        (
            [SYNTHETIC, f"{TEACHER}.loss_options.smoothing=1.0"],
            ["smoothing=1.0 must be at least 0 and below 1"],
        ),
        ([SYNTHETIC, f"{TEACHER}.score=eval/rgb_to_depth/mAP"], ["training.teacher.score=", "eval/depth_to_depth/mAP"]),
        ([SYNTHETIC, f"{STUDENT}.score=mAP"], ["training.student.score='mAP' is unknown", "eval/depth_to_rgb/rank1"]),
        ([SYNTHETIC, f"{TEACHER}.optimizer.learning_rate=0.0"], ["learning_rate=0.0 must be above 0"]),
        ([SYNTHETIC, f"{TEACHER}.optimizer.learning_rate=nan"], ["learning_rate=nan must be above 0"]),
        ([SYNTHETIC, f"{TEACHER}.optimizer.weight_decay=-0.1"], ["weight_decay=-0.1 must be at least 0"]),
        ([SYNTHETIC, f"{TEACHER}.augmentation.crop_area=(0.0,1.0)"], ["crop_area=(0.0, 1.0) must be two numbers"]),
        ([SYNTHETIC, f"{TEACHER}.augmentation.crop_area=(0.5,1.1)"], ["crop_area=(0.5, 1.1) must be", "<= 1"]),
        ([SYNTHETIC, f"{TEACHER}.augmentation.crop_ratio=(3.0,2.0)"], ["crop_ratio=(3.0, 2.0) must be two numbers"]),
        ([SYNTHETIC, f"{TEACHER}.augmentation.flip=1.5"], ["training.teacher.augmentation.flip=1.5", "from 0 to 1"]),
        ([SYNTHETIC, f"{STUDENT}.augmentation.grey=-0.1"], ["augmentation.grey=-0.1 must be from 0 to 1"]),
        ([SYNTHETIC, f"{STUDENT}.augmentation.channel_shuffle=2.0"], ["channel_shuffle=2.0 must be from 0 to 1"]),
        *(
            ([SYNTHETIC, f"{STUDENT}.augmentation.{name}=-0.5"], [f"augmentation.{name}=-0.5 must be at least 0"])
            for name in ("gain", "offset", "gamma", "depth_noise")
        ),
        ([SYNTHETIC, "--config.dataset.workers=-1"], ["config.dataset.workers=-1 must be at least 0"]),
        ([SYNTHETIC, f"{TEACHER}.sampling.name=pkk"], ["training.teacher.sampling.name='pkk' is unknown", "pk_cross"]),
        ([SYNTHETIC, f"{TEACHER}.sampling.people=0"], ["training.teacher.sampling.people=0 must be at least 1"]),
        (
            [SYNTHETIC, f"{TEACHER}.sampling.name=pk", f"{TEACHER}.sampling.people=20"],
            ["training.teacher.batch_size=64 is not", "20 x 4", "say --config.training.teacher.batch_size=80"],
        ),
        ([SYNTHETIC, f"{STUDENT}.sampling.name=pk_cross_modal"], ["training.student.sampling.name=", "choose pk or"]),
        ([SYNTHETIC, f"{STUDENT}.augmentation.hue=0.6"], ["augmentation.hue=0.6 must be from 0 to 0.5"]),
        ([SYNTHETIC, f"{STUDENT}.augmentation.erase_area=(0.4,0.02)"], ["erase_area=(0.4, 0.02) must be two numbers"]),
        *(
            ([SYNTHETIC, f"{STUDENT}.augmentation.{name}=1.5"], [f"augmentation.{name}=1.5 must be from 0 to 1"])
            for name in ("erase", "channel_exchange", "brightness", "contrast", "saturation", "depth_holes")
        ),
        ([SYNTHETIC, f"{STUDENT}.augmentation.depth_step=-1.0"], ["augmentation.depth_step=-1.0 must be at least 0"]),
        ([SYNTHETIC, f"{STUDENT}.freeze=(('[','train'),)"], ["training.student.freeze=", "regular expression"]),
        (
            [SYNTHETIC, f"{STUDENT}.freeze=(('backbone/.*','train'),)"],
            ["config.training.student.freeze: parameter embedding/bias must match", "one rule; it matches none: add"],
        ),
        (
            [SYNTHETIC, f"{STUDENT}.freeze=(('.*','train'),('embedding/.*','freeze'))"],
            ["config.training.student.freeze: parameter embedding/bias must", "'.*' and 'embedding/.*': make one"],
        ),
        ([SYNTHETIC, f"{STUDENT}.freeze=(('.*','freeze'),)"], ["training.student.freeze leaves nothing to train"]),
        (
            [SYNTHETIC, f"{TEACHER}.batch_size=12", f"{TEACHER}.sampling.people=3"],
            ["training.teacher.batch_size=12", "multiple of the 8 devices"],
        ),
        (
            [ONE_STREAM, f"{BASELINE}.batch_size=12", f"{BASELINE}.sampling.people=3"],
            ["baseline.batch_size=12", "of the 8 devices"],
        ),
        ([SYNTHETIC, "--config.mesh.fsdp=16"], ["config.mesh.fsdp=16 does not divide the 8 devices", "1, 2, 4, 8"]),
        (["--config=configs/distill.py:biwi/nope"], ["no biwi_rgbd_id config 'nope'", "paper"]),
        (["--config=configs/distill.py:biwi", "--config.dataset.manuel_dir=x"], ["did you mean 'manual_dir'"]),
    ],
)
def test_one_line_names_the_value_and_the_mend(capsys, tmp_path, arguments, words):
    workdir = [f"--workdir={tmp_path / 'run'}"] if "--workdir is missing" not in words else []
    line = refused(capsys, *arguments, *workdir)
    for word in words:
        assert word in line
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def get_config():\n    raise RuntimeError\n", ["RuntimeError"]),
        ("def get_config():\n    raise RuntimeError('first\\n\\nlast\\n')\n", ["config.py: last"]),
        ("config = 1\n", ["must define get_config()"]),
        ("def get_config():\n    return {}\n", ["must define get_config()"]),
        ("def get_config(:\n", ["invalid syntax"]),
    ],
)
def test_config_file_that_gives_no_configuration(capsys, tmp_path, content, words):
    (tmp_path / "config.py").write_text(content)
    line = refused(capsys, f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}")
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
    (tmp_path / "stages").mkdir()
    content = (tmp_path / "config.json").read_bytes()
    line = refused(capsys, *run, f"{TEACHER}.steps=7")
    steps = json.loads(content)["training"]["teacher"]["steps"]
    assert f"another configuration's run (training.teacher.steps is {steps} there, 7 here)" in line
    assert (tmp_path / "config.json").read_bytes() == content


def test_a_configuration_that_computed_nothing_leaves_the_workdir_free(capsys, tmp_path):
    run = [SYNTHETIC, f"--workdir={tmp_path}", "--stages=student"]
    assert "stage teacher is not done" in refused(capsys, *run)
    assert "stage teacher is not done" in refused(capsys, *run, f"{TEACHER}.steps=7")
    assert json.loads((tmp_path / "config.json").read_text())["training"]["teacher"]["steps"] == 7


def test_workdir_with_other_files(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    line = refused(capsys, SYNTHETIC, f"--workdir={tmp_path}")
    assert "thesis.tex" in line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "precious"


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


@pytest.mark.parametrize(
    ("name", "backbone", "cut", "words"),
    [
        ("net.safetensors", "small", 0, "do not fit tiny; unexpected: batch_stats/backbone/layer3_0/bn1/mean"),
        ("net.pth", "small", 0, "other shapes: batch_stats/backbone/bn1/mean [32] instead of [4]"),
        ("net.safetensors", "tiny", 7, "net.safetensors are no readable safetensors file"),
        ("net.pth", "tiny", 9, "net.pth are no readable PyTorch file"),
        ("trap.pth", "tiny", 0, "which may be code and is not run; give a file that holds tensors alone"),
    ],
)
def test_published_weights_that_cannot_be_used(capsys, tmp_path, tiny_data_dir, name, backbone, cut, words):
    model, path = Model(backbone), tmp_path / name
    state = published(*jax.eval_shape(lambda: model.init(jax.random.key(0), 16, 16)))
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        write_pth(path, state | ({"more": Trap(tmp_path / "made")} if name == "trap.pth" else {}))
    path.write_bytes(path.read_bytes()[: -cut or None])
    line = refused(
        capsys,
        SYNTHETIC,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={tiny_data_dir}",
        "--config.dataset.config=tiny",
        "--config.model.backbone=tiny",
        f"{STUDENT}.hints=(1,2)",  # the tiny network has two stages
        f"--config.model.pretrained={path}",
        f"{TEACHER}.batch_size=8",
        f"{TEACHER}.sampling.people=4",
        f"{TEACHER}.sampling.frames=2",
        f"{STUDENT}.batch_size=8",
    )
    assert str(path) in line
    assert words in line
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("sampling", "words"),
    [("shuffle", "batch_size=64 exceeds the 48 training frames"), ("pk", "sampling.people=16 exceeds the 6 people")],
)
def test_batch_larger_than_the_data(capsys, tmp_path, tiny_data_dir, sampling, words):
    line = refused(
        capsys,
        SYNTHETIC,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={tiny_data_dir}",
        "--config.dataset.config=tiny",
        f"{TEACHER}.sampling.name={sampling}",
    )
    assert f"config.training.teacher.{words}" in line


def test_a_later_stage_s_batch_is_refused_before_any_training(capsys, tmp_path, tiny_data_dir):
    line = refused(
        capsys,
        SYNTHETIC,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={tiny_data_dir}",
        "--config.dataset.config=tiny",
        *(f"{TEACHER}.{name}" for name in ("batch_size=8", "sampling.people=4", "sampling.frames=2")),
    )
    assert "config.training.student.batch_size=64 exceeds the 48 training frames" in line
    assert not (tmp_path / "run" / "checkpoints").exists()
