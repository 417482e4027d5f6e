"""What all builders of recorded datasets share: the files beside them, and the command that writes an example tree."""

import importlib
import os
import pathlib
import pickle
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_metadata

from rgbd_reid_jax.data import dataset
from tfds_builders import knobs

NAMES = [name for name in dataset.DATASETS if name != "synthetic_rgbd"]
FRAMES = {"biwi_rgbd_id": 16, "robotpku_rgbd_id": 30, "tvrid": 128, "rgbd_folder": 24}
OTHER_LAYOUTS = [("biwi_rgbd_id", "prepared", 33), ("robotpku_rgbd_id", "raw", 30), ("rgbd_folder", "jsonl", 24)]


def example_tree(name: str) -> Any:
    return importlib.import_module(f"tfds_builders.{name}.example_tree")


def folder_of(name: str) -> pathlib.Path:
    return pathlib.Path(dataset.builder_module(name).__file__).parent


@pytest.mark.parametrize("name", dataset.DATASETS)
def test_tfds_takes_the_tags_and_the_citation(name):
    metadata = dataset_metadata.load(epath.Path(folder_of(name)))  # refuses a tag that TFDS does not know
    assert metadata.tags == ["content.data-type.image", "content.data-type.rgb-d"]
    assert (metadata.citation or "").startswith("@")
    assert metadata.description


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_has_the_configs_and_the_table_of_knobs(name):
    readme = (folder_of(name) / "README.md").read_text("utf-8")
    configs = dataset.builder_module(name).Builder.BUILDER_CONFIGS
    assert knobs.knob_table(next(one for one in configs if one.name == dataset.config_names(name)[0])) in readme
    assert [config.name for config in configs if f"`{config.name}`" not in readme] == []


@pytest.mark.parametrize("name", NAMES)
def test_processes_that_read_frames_need_neither_tfds_nor_jax(name):
    read = dataset.builder_module(name).Builder.read
    assert pickle.loads(pickle.dumps(read)) is read
    code = f"import sys, {read.__module__}; print({{'jax', 'tensorflow_datasets'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "layout", "frames"), [*((name, "", count) for name, count in FRAMES.items()), *OTHER_LAYOUTS]
)
def test_the_example_is_written_by_a_command_and_built(name, layout, frames, tmp_path, capsys):
    output = tmp_path / "ein Baum, grün"
    command = [f"--output={output}", *([f"--layout={layout}"] if layout else [])]
    assert example_tree(name).main(command) == 0
    assert capsys.readouterr() == (f"{frames} frames in {output}\n", "")
    module = dataset.builder_module(name)
    manifest = {"manifest": "manifest.jsonl"} if layout == "jsonl" else {}
    config = module.config_of(dataset.config_names(name)[0], {"height": 16, "width": 8, **manifest})
    built = module.prepare(config, tmp_path / "data", os.path.relpath(output), workers=1)
    assert sum(split.num_examples for split in built.info.splits.values()) == frames


def _contents(built: Any, split: str) -> list[dict[str, tuple]]:
    """Each record's features as (dtype, shape, bytes), which compare NaN as equal to itself."""
    records = [{name: np.asarray(value) for name, value in one.items()} for one in built.as_data_source(split)]
    return [{name: (one.dtype, one.shape, one.tobytes()) for name, one in record.items()} for record in records]


@pytest.mark.filterwarnings("default::DeprecationWarning")  # TFDS's, with the protobuf that TensorFlow wants
@pytest.mark.parametrize("name", NAMES)
def test_tfds_s_own_command_writes_the_same_records(name, tmp_path):
    """Where what it imports is installed: pip install tensorflow-cpu apache-beam mlcroissant."""
    if missing := [one for one in ("tensorflow", "apache_beam", "mlcroissant") if find_spec(one) is None]:
        pytest.skip(f"tfds build needs {', '.join(missing)}")
    tree = tmp_path / "tree"
    assert example_tree(name).main([f"--output={tree}"]) == 0
    config = dataset.config_names(name)[0]
    command = [str(pathlib.Path(sys.executable).with_name("tfds")), "build", f"{name}_dataset_builder.py"]
    command += [f"--config={config}", "--file_format=array_record", f"--manual_dir={tree}"]
    subprocess.run([*command, f"--data_dir={tmp_path / 'theirs'}"], cwd=folder_of(name), check=True, timeout=300)
    theirs = tfds.builder_from_directory(str(tmp_path / "theirs" / name / config / "1.0.0"))
    module = dataset.builder_module(name)
    ours = module.prepare(module.config_of(config, {}), tmp_path / "ours", tree, workers=1)
    assert list(theirs.info.splits) == list(ours.info.splits)
    for split in ours.info.splits:
        assert _contents(theirs, split) == _contents(ours, split)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_writes_into_new_or_empty_folders_alone(name, tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    for place, words in ((tmp_path, "is no empty folder"), (tmp_path / "mine", "is no empty folder")):
        assert example_tree(name).main([f"--output={place}"]) == 2
        assert capsys.readouterr() == ("", f"error: --output={place} {words}; give a new one\n")
    assert example_tree(name).main([f"--output={tmp_path / 'mine' / 'below'}"]) == 2
    assert "below cannot be written (Not a directory); give another\n" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
