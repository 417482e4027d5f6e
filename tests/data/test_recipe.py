"""Recipes made to fit a dataset: their flags are checked by what a run does with them."""

import numpy as np
import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.modalities import BOTH, MODALITIES
from rgbd_reid_jax.data.recipe import content, fitting_flags
from rgbd_reid_jax.data.sampling import Sampling, batch_rows, usable
from rgbd_reid_jax.metrics.galleries import check_galleries, emptied
from rgbd_reid_jax.metrics.ranking import RULES

RECIPES = [
    *(
        ("distill", name)
        for name in ("synthetic_rgbd", "biwi_rgbd_id", "robotpku_rgbd_id", "tvrid", "rgbd_folder/small")
    ),
    *(("one_stream", "rgbd_folder"), ("agw", "synthetic_rgbd"), ("mutual", "rgbd_folder")),
]


def labels_of(people: int, cameras: int, frames: int) -> dict[str, np.ndarray]:
    """`frames` instants of each person before each camera, a recording per person and camera."""
    person, camera, frame = (one.ravel() for one in np.indices((people, cameras, frames)))
    ids = {"person_id": person, "camera_id": camera, "recording_id": person * cameras + camera, "frame_id": frame}
    return ids | {"modalities": np.full(len(person), 3)}


def rules_of(labels: dict[str, np.ndarray]) -> dict:
    """As the check counts them."""
    counts = {rule: emptied(labels, labels, rule) for rule in RULES}
    rules = {rule: {"queries": len(empty), "emptied": int(empty.sum())} for rule, empty in counts.items()}
    return {"test": {"rgb_to_depth": rules}}


def run_takes(words: list[str], labels: dict[str, np.ndarray]) -> None:
    """Does with the data what a run does; InputError where it would refuse them."""
    found = cli.configuration(words)
    for training in found["training"].values():
        sampling = Sampling(**training["sampling"])
        modality = training["modality"]
        chosen = usable(sampling, labels, MODALITIES if modality == BOTH else (modality,))
        batch_rows(sampling, {name: column[chosen] for name, column in labels.items()}, training["batch_size"], 0)
    check_galleries(labels, labels, found["evaluation"]["protocol"], "test")


@pytest.mark.parametrize(("file", "argument"), RECIPES)
@pytest.mark.parametrize("size", [(3, 1, 2), (3, 2, 2), (20, 2, 1), (5, 1, 40)])
def test_a_run_takes_small_data_with_these_flags(file, argument, size, repository):
    labels, file = labels_of(*size), f"{repository}/configs/{file}.py"
    words = [f"--config={file}:{argument}"]
    flags = fitting_flags(content(file, argument), labels, rules_of(labels))
    run_takes(words + flags, labels)
    for left_out in range(len(flags)):
        with pytest.raises(InputError):
            run_takes(words + flags[:left_out] + flags[left_out + 1 :], labels)


@pytest.mark.parametrize(("file", "argument"), RECIPES)
def test_data_that_fit_need_no_flags(file, argument, repository):
    labels = labels_of(20, 2, 4)
    assert fitting_flags(content(f"{repository}/configs/{file}.py", argument), labels, rules_of(labels)) == []


def test_recipes_that_are_not_there_have_no_content(repository, tmp_path):
    assert content(f"{repository}/configs/distill.py", "people/all") == {}
    assert content(f"{tmp_path}/distill.py", "rgbd_folder") == {}
