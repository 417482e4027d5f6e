"""The registry: datasets by name, their configs and knobs, and where they lie."""

import pathlib

import pytest

import tfds_builders
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data import dataset


@pytest.mark.parametrize("name", dataset.DATASETS)
def test_every_builder_gives_what_the_registry_asks_for(name):
    module = dataset.builder_module(name)
    assert module.Builder.name == name
    configs = dataset.config_names(name)
    assert len(set(configs)) == len(configs) == len(module.Builder.BUILDER_CONFIGS)
    default = dataset.dataset_config(name, "", {})
    assert default.name == configs[0]
    assert dataset.dataset_config(name, configs[-1], {}).name == configs[-1]
    changed = dataset.dataset_config(name, "", {"height": 48})
    assert changed.height == 48
    assert changed.name.startswith(f"{configs[0]}-"), "other data have another folder"
    with pytest.raises(InputError, match=rf"no {name} config 'nope'; there are: {configs[0]}"):
        dataset.dataset_config(name, "nope", {})
    with pytest.raises(InputError, match=r"no knob colour=1; knobs are: .*height"):
        dataset.dataset_config(name, "", {"colour": 1})


@pytest.mark.parametrize("name", dataset.DATASETS)
def test_every_dataset_has_a_page_and_a_citation(name):
    folder = pathlib.Path(tfds_builders.__path__[0]) / name
    for file in ("README.md", "CITATIONS.bib", "TAGS.txt"):
        assert (folder / file).read_text(encoding="utf-8").strip(), file


def test_an_unknown_dataset_is_named(tmp_path):
    for ask in (dataset.builder_module, dataset.config_names, lambda name: dataset.open_dataset(name, "", {}, "")):
        with pytest.raises(
            InputError, match=r"dataset 'market' has no builder; there are: synthetic_rgbd, biwi_rgbd_id"
        ):
            ask("market")


def test_a_dataset_that_is_there_is_opened(registry, drawn_tree, tmp_path, monkeypatch):
    built = dataset.open_dataset("people", "few", {"height": 40}, str(tmp_path), str(drawn_tree))
    assert built.builder_config.height == 40
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for data_dir, manual_dir in ((None, None), ("", "")):
        again = dataset.open_dataset("people", "few", {"height": 40}, data_dir, manual_dir)
        assert again.data_path == built.data_path
        assert again.info.splits["test"].num_examples == 12
    with pytest.raises(InputError, match=r"people needs files of yours .*Draw them and say --manual_dir"):
        dataset.open_dataset("people", "all", {}, None)


@pytest.mark.parametrize(
    ("text", "knobs"),
    [
        ("", {}),
        (" ", {}),
        ("seed=2", {"seed": 2}),
        ("seed=2, body_spread=-1.5e-1,", {"seed": 2, "body_spread": -0.15}),
        ("pattern='a,b=c', unit=\"mm\"", {"pattern": "a,b=c", "unit": "mm"}),
        ("bad_frames=fail", {"bad_frames": "fail"}),
        ("sides=(1, 2),on=True", {"sides": (1, 2), "on": True}),
    ],
)
def test_knobs_are_read(text, knobs):
    assert dataset.parse_knobs(text) == knobs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed", "'seed' is not of the form name=value"),
        ("seed=1,2", "not of the form name=value,name=value"),
        ("seed=", "not of the form name=value,name=value"),
        ("pattern=a b", "quote texts"),
        ("file=a/b.csv", "'a/b.csv' is no number or quoted text"),
        ("seed={[]:1}", "'{[]:1}' is no number"),
        ("seed=open('x')", "is no number or quoted text"),
        ("seed=1)(seed=2", "not of the form"),
        ("seed=1) or (2", "not of the form"),
        ("**{'seed':1}", "give each knob once"),
        ("seed=1,seed=2", "seed"),
        ("seed=\0", "not of the form"),
    ],
)
def test_knobs_that_cannot_be_read_are_one_line(text, words):
    with pytest.raises(InputError) as caught:
        dataset.parse_knobs(text)
    assert str(caught.value).startswith(f"knobs={text!r}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_data_folder_is_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert dataset.default_data_dir() == tmp_path
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dataset.default_data_dir() == tmp_path / "tensorflow_datasets"
