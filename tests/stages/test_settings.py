"""Every configuration can be read, and the paper's recipe is the paper's."""

import pathlib
import re
import runpy
import sys
from typing import Any

import jax
import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.stages.checks import read_settings
from rgbd_reid_jax.stages.step import abstract_variables
from rgbd_reid_jax.stages.table import STAGES
from rgbd_reid_jax.stages.workdir import plain
from rgbd_reid_jax.sweeps.plan import read_sweep
from rgbd_reid_jax.training.freeze import partition

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
SWEEPS = {path.stem: path for path in (CONFIGS[0].parent / "sweeps").glob("*.py")}


def settings_of(path: str):
    return read_settings(cli._load(path).to_dict(), tuple(STAGES))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstring_gives_the_exact_command(path):
    text = runpy.run_path(str(path))["__doc__"]
    assert f"python -m rgbd_reid_jax.main --config=configs/{path.name} --workdir=" in text
    for word in ("Expected result", "Hardware", "Wall time"):
        assert word in text


@pytest.mark.parametrize(
    "argument", ["", ":synthetic_rgbd", ":synthetic_rgbd/medium_128x64", ":synthetic_rgbd/large_256x128"]
)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_synthetic_rgbd_configuration_can_be_read(path, argument):
    settings = settings_of(f"{path}{argument}")
    assert settings.stages[-3:] == ("evaluation", "export", "report")
    assert set(settings.stages[:-3]) == set(settings.training)


@pytest.mark.parametrize(
    ("argument", "dataset", "protocol"),
    [
        ("biwi", "biwi_rgbd_id/paper", "twin_excluded"),
        ("biwi_rgbd_id/people", "biwi_rgbd_id/people", "twin_excluded"),
        ("robotpku", "robotpku_rgbd_id/", "twin_excluded"),
        ("tvrid", "tvrid/", "recording_excluded"),
        ("rgbd_folder", "rgbd_folder/", "recording_excluded"),
    ],
)
def test_every_dataset_has_a_configuration(argument, dataset, protocol):
    for path in CONFIGS:
        settings = settings_of(f"{path}:{argument}")
        assert f"{settings.dataset.name}/{settings.dataset.config}" == dataset
        assert settings.evaluation.protocol == protocol


@pytest.mark.parametrize("name", sorted(SWEEPS.keys() - {"norm_groups"}))
def test_every_sweep_of_methods_runs_every_configuration(name, monkeypatch):
    monkeypatch.chdir(SWEEPS[name].parents[2])
    sweep = read_sweep(str(SWEEPS[name]))
    used = {pathlib.Path(method.config.partition(":")[0]).stem for method in sweep.methods}
    assert used == {one.stem for one in CONFIGS}
    assert len(sweep.runs) > 1


def test_the_sweep_of_parts_says_how_many_rows_each_has(monkeypatch):
    monkeypatch.chdir(SWEEPS["norm_groups"].parents[2])
    for method in read_sweep(str(SWEEPS["norm_groups"])).methods:
        training: Any = cli._load(method.config).training
        rows = {
            stage: training[stage].batch_size // method.overrides[f"training.{stage}.norm_groups"]
            for stage in method.stages
            if stage in training
        }
        assert set(rows) == {"teacher", "student"}
        assert {f"rows_{count}" for count in rows.values()} == {method.name}


def test_places_of_files_are_left_out_of_what_a_run_is():
    dataset: Any = cli._load("configs/distill.py:biwi").dataset
    assert set(dataset) == {"name", "config", "knobs", "data_dir", "manual_dir", "cache", "workers"}
    assert set(plain(dataset.to_dict())) == {"name", "config", "knobs"}


@pytest.mark.parametrize(("argument", "size"), [("medium_128x64", (128, 64)), ("large_256x128", (256, 128))])
def test_larger_datasets_have_inputs_of_their_size(argument, size):
    settings = settings_of(f"configs/distill.py:synthetic_rgbd/{argument}")
    assert (settings.input.height, settings.input.width) == size


def test_the_paper_s_recipe():
    config: Any = cli._load("configs/distill.py:biwi")
    assert (config.model.backbone, config.model.embedding_dim, config.model.dropout) == ("resnet50", 128, 0.5)
    assert (config.input.height, config.input.width) == (256, 128)
    teacher, student = config.training.teacher, config.training.student
    assert (teacher.modality, student.modality) == ("depth", "rgb")
    assert (teacher.batch_size, teacher.optimizer.name, teacher.optimizer.learning_rate) == (64, "sgd", 0.1)
    assert (teacher.optimizer.weight_decay, teacher.optimizer.schedule) == (5e-4, "step")
    assert teacher.steps * 40 == teacher.optimizer.decay_steps * 100  # x 0.1 every 40 of 100 epochs
    assert {name: weight for name, weight in teacher.losses.items() if weight} == {"identity": 1.0}
    assert {name: weight for name, weight in student.losses.items() if weight} == {"sum_squared": 1.0}
    assert (student.optimizer.learning_rate, student.optimizer.schedule) == (2e-6, "constant")
    assert student.target == "cached"
    assert student.steps * 100 == teacher.steps * 30  # 30 epochs against 100
    assert student.frozen_norm == "batch"
    assert (teacher.augmentation.crop_area, teacher.augmentation.crop_ratio) == ((0.64, 1.0), (2.0, 3.0))
    assert all(student.augmentation[name] == 0 for name in ("gain", "offset", "gamma", "grey", "channel_shuffle"))


def test_the_paper_s_teacher_of_triplets():
    config: Any = cli._load("configs/distill.py:biwi,triplet_teacher")
    teacher = config.training.teacher
    assert (config.model.neck, teacher.loss_options.margin) == ("triplet", 0.5)
    assert {name: weight for name, weight in teacher.losses.items() if weight} == {"triplet": 1.0}
    assert (teacher.sampling.name, teacher.sampling.people, teacher.sampling.frames) == ("pk", 16, 4)
    assert (teacher.optimizer.name, teacher.optimizer.learning_rate) == ("adam", 2e-4)
    assert (teacher.optimizer.weight_decay, teacher.optimizer.schedule) == (5e-4, "late_decay")
    assert settings_of("configs/distill.py:biwi,triplet_teacher").stages[0] == "teacher"


def test_of_a_resnet18_other_layers_train():
    found = settings_of("configs/distill.py:biwi,resnet18")
    params, _ = abstract_variables(found, "student", 3)
    trainable, _ = partition(params, found.training["student"].freeze)
    assert set(trainable["backbone"]) == {"conv1", "bn1", "layer1_0", "layer1_1", "layer2_0", "layer2_1"}


@pytest.mark.parametrize(
    ("argument", "count", "size"),
    [  # DINOv2's own counts, whose positions are those of 37 x 37 patches
        ("biwi,vit_small14", 22_056_576, (252, 126)),
        ("biwi,vit_base14", 86_580_480, (252, 126)),
        ("synthetic_rgbd,rgb_teacher,vit_small14", 22_056_576, (70, 28)),
    ],
)
def test_of_a_vision_transformer_the_last_blocks_stay(argument, count, size):
    found = settings_of(f"configs/distill.py:{argument}")
    assert (found.input.height, found.input.width) == size
    params, _ = abstract_variables(found, "student", 3)
    trainable, frozen = partition(params, found.training["student"].freeze)
    assert set(trainable["backbone"]) == {"patch_embed", "cls_token", "pos_embed", *(f"block{at}" for at in range(8))}
    assert set(frozen["backbone"]) == {"norm", *(f"block{at}" for at in range(8, 12))}
    _, positions, width = params["backbone"]["pos_embed"].shape
    sizes = sum(leaf.size for leaf in jax.tree.leaves(params["backbone"]))
    # DINOv2 has a token for masked patches beside, which no image of ours needs.
    assert sizes + (37 * 37 + 1 - positions) * width + width == count


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("argument", ["synthetic_rgbd", "biwi"])
def test_every_method_trains_on_as_many_images_as_teacher_and_student_together(path, argument):
    both: Any = cli._load(f"configs/distill.py:{argument}").training
    images = both.teacher.steps * both.teacher.batch_size + both.student.steps * both.student.batch_size
    found: Any = cli._load(f"{path}:{argument}").training
    total = sum(
        stage.steps * stage.batch_size * (2 if stage.modality == "both" else 1) for stage in dict(found).values()
    )
    on_top = both.student.steps // 2 * both.student.batch_size if path.stem == "attention" else 0
    assert total == images + on_top


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_can_be_read_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if pathlib.Path(one) != path.parents[1]])
    for name in ("configs", "configs.distill"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    config: Any = cli._load(str(path))
    assert config.stages[-1] == "report"


def reversed_config() -> dict:
    """An RGB teacher and a depth student."""
    config = cli._load("configs/distill.py").to_dict()
    config["training"]["teacher"] |= {"modality": "rgb", "score": "eval/rgb_to_rgb/mAP"}
    config["training"]["student"] |= {"modality": "depth", "score": "eval/depth_to_rgb/rank1"}
    config["encoders"] = {"rgb": "teacher", "depth": "student"}
    return config


def test_the_other_direction_of_distillation_can_be_chosen():
    settings = read_settings(reversed_config(), tuple(STAGES))
    assert settings.directions("teacher") == (("rgb", "rgb"),)
    assert settings.directions("student") == (("rgb", "depth"), ("depth", "rgb"))


def test_the_last_checkpoint_can_be_chosen_instead_of_a_score():
    config = reversed_config()
    config["training"]["student"]["score"] = ""
    assert read_settings(config, tuple(STAGES)).training["student"].score == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["training"]["teacher"].pop("steps"), "training.teacher.steps is missing"),
        (lambda config: config["evaluation"].update(rule="x"), "evaluation.rule is unknown"),
        (lambda config: config["encoders"].update(rgb="nobody"), "encoders.rgb='nobody' is unknown"),
        (lambda config: config["encoders"].update(infrared="teacher"), "must be given for rgb and depth"),
        (lambda config: config["model"].update(num_identities=3), "config.model.num_identities is unknown"),
        (lambda config: config["training"].pop("teacher"), "config.training.teacher is missing"),
        (lambda config: config["training"].update(third=config["training"]["teacher"]), "config.training='third'"),
        (lambda config: config.update(net={"fsdp": 1}), "config.net is unknown; config has: method"),
        (lambda config: config["input"].update(height="tall"), "config.input.height='tall' must be at least 16"),
    ],
)
def test_a_config_file_with_a_fault_is_refused(change, message):
    config = cli._load("configs/distill.py").to_dict()
    change(config)
    with pytest.raises(InputError, match=re.escape(message)):
        read_settings(config, tuple(STAGES))
