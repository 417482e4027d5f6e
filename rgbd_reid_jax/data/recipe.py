"""A recipe of configs/ made to fit a dataset: too few people or frames for its batches, galleries its rule empties."""

import pathlib
import runpy
from collections.abc import Mapping
from typing import Any

import numpy as np

from rgbd_reid_jax.core.modalities import BOTH, MODALITIES
from rgbd_reid_jax.data.sampling import Sampling, usable

_BY_STRICTNESS = ("recording_excluded", "cross_camera", "market", "twin_excluded")
Rules = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]


def content(file: str, argument: str) -> dict[str, Any]:
    """The configuration of `file:argument` as nested dicts; empty where the file is not there or knows no such data."""
    if not pathlib.Path(file).is_file():
        return {}
    try:
        return runpy.run_path(file)["get_config"](argument).to_dict()
    except ValueError:
        return {}


def fitting_flags(recipe: Mapping[str, Any], labels: Mapping[str, np.ndarray], rules: Rules) -> list[str]:
    """The flags that a recipe needs to take a dataset; none where it takes it as it is.

    Args:
        recipe: as `content` gives it, with overrides already applied.
        labels: of the training split, int [N] by name, N > 0.
        rules: as `problems.rule_counts` gives them.
    """
    return [
        f"--config.{name}={value}" for name, value in {**_batches(recipe, labels), **_protocol(recipe, rules)}.items()
    ]


def _batches(recipe: Mapping[str, Any], labels: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage, training in recipe["training"].items():
        sampling = Sampling(**training["sampling"])
        modality = training["modality"]
        chosen = usable(sampling, labels, MODALITIES if modality == BOTH else (modality,))
        people = len(np.unique(labels["person_id"][chosen]))
        batch_size = min(training["batch_size"], int(chosen.sum()))
        if sampling.name != "shuffle":
            if people < sampling.people:
                found[f"training.{stage}.sampling.people"] = people
            batch_size = min(people, sampling.people) * sampling.frames
        if batch_size != training["batch_size"]:
            found[f"training.{stage}.batch_size"] = batch_size
    return found


def _protocol(recipe: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    """A rule that leaves every direction of every split something to find, if the recipe's own does not."""
    directions = [of_direction for split in rules.values() for of_direction in split.values()]
    able = [
        rule
        for rule in _BY_STRICTNESS
        if directions and all(found[rule]["emptied"] < found[rule]["queries"] for found in directions)
    ]
    wanted = recipe["evaluation"]["protocol"]
    return {"evaluation.protocol": able[0]} if able and wanted not in able else {}
