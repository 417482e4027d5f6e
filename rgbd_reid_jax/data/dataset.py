"""The datasets by name: their configs and knobs, and a dataset ready to read, built through its builder where needed.

A builder is a module `tfds_builders.<name>.<name>_dataset_builder` with a TFDS `Builder`, `config_of(name, overrides)`
and `prepare(config, data_dir, manual_dir, workers=)`; it is imported when its dataset is asked for.
"""

import ast
import functools
import importlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.loading import without_collection

DATASETS = ("synthetic_rgbd", "biwi_rgbd_id", "robotpku_rgbd_id", "tvrid", "rgbd_folder")


def default_data_dir() -> pathlib.Path:
    """Where TFDS keeps datasets: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets"))


@functools.cache
def builder_module(name: str) -> Any:
    """The module of a dataset's builder.

    Raises:
        InputError: there is none.
    """
    if name not in DATASETS:
        raise InputError(f"dataset {name!r} has no builder; there are: {', '.join(DATASETS)}")
    with without_collection():  # it loads TFDS
        return importlib.import_module(f"tfds_builders.{name}.{name}_dataset_builder")


def config_names(name: str) -> tuple[str, ...]:
    """The named configs of a dataset, its default first."""
    builder = builder_module(name).Builder
    names = [config.name for config in builder.BUILDER_CONFIGS]
    default = builder.DEFAULT_BUILDER_CONFIG_NAME or names[0]
    return (default, *(one for one in names if one != default))


def parse_knobs(text: str) -> dict[str, Any]:
    """Knobs by name of "name=value,name=value"; a value is a number or a text, in quotes unless it is one plain word.

    Raises:
        InputError: the text is not of that form.
    """
    wrong = f"knobs={text!r}: "
    source = f"knobs({text})"
    try:
        call = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError):
        raise InputError(
            f"{wrong}it is not of the form name=value,name=value; quote texts, as in a=1,b='x y'"
        ) from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise InputError(f"{wrong}it is not of the form name=value,name=value")
    for argument in call.args:
        raise InputError(f"{wrong}{ast.get_source_segment(source, argument)!r} is not of the form name=value")
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in found:
            raise InputError(f"{wrong}give each knob once, as name=value")
        try:
            value = keyword.value
            found[keyword.arg] = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
        except (ValueError, TypeError):
            shown = ast.get_source_segment(source, keyword.value)
            raise InputError(f"{wrong}{shown!r} is no number or quoted text") from None
    return found


def dataset_config(name: str, config: str, overrides: Mapping[str, Any]) -> Any:
    """The builder config of a dataset, checked before any work is done.

    Args:
        name: one of `DATASETS`.
        config: a named BuilderConfig; "" for the default one.
        overrides: knobs of that config to change; the changed dataset gets a name and a folder of its own.

    Raises:
        InputError: unknown name, config or knob, or a value that does not fit.
    """
    return builder_module(name).config_of(config or config_names(name)[0], dict(overrides))


def open_dataset(
    name: str,
    config: str,
    overrides: Mapping[str, Any],
    data_dir: str | None,
    manual_dir: str | None = None,
    *,
    workers: int = 0,
) -> Any:
    """The TFDS builder of a dataset that is ready to read, built first where it is not there yet.

    Args:
        name: as for `dataset_config`.
        config: likewise.
        overrides: likewise.
        data_dir: TFDS data folder; `default_data_dir()` when None or empty.
        manual_dir: the user's own files, for a dataset that is made of them; None or empty where none are given.
        workers: processes that build; 0 chooses.

    Raises:
        InputError: unknown name, config or knob; files that cannot be used, or that are others than those the dataset
            was built from; damaged data; a folder or disk that cannot take it.
    """
    chosen = dataset_config(name, config, overrides)
    folder = pathlib.Path(os.path.expanduser(data_dir or default_data_dir()))
    return builder_module(name).prepare(chosen, folder, manual_dir or None, workers=workers)
