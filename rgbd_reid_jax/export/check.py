"""Runs an exported encoder on saved inputs, in a process that knows neither model nor configuration.

    python -m rgbd_reid_jax.export.check CARD.json INPUTS.npz

INPUTS.npz holds the card's inputs and outputs, the live model's answer. The batch is run whole and in
pieces of other sizes. Prints one JSON line `{"max_abs_difference": ..., "rows": ..., "batch_sizes": [...]}`.
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError


def load_encoder(card_path: pathlib.Path):
    """The function of an exported encoder.

    Returns:
        A function of a dict of raw images, which gives the card's outputs by name: `embedding` float32 [B, D], and of
        an encoder with a pairwise gate `gate` float32 [B, D].

    Raises:
        InputError: the program is missing or not the one that the card describes.
    """
    import jax.export

    from rgbd_reid_jax.core.compiler import compiler_options

    card = files.read_json(card_path)
    path = card_path.with_name(card["program"])
    if not path.exists() or files.sha256(path) != card["sha256"]:
        raise InputError(f"{path} is missing or not the program of {card_path}; run the export stage again")
    program: Any = jax.export.deserialize(bytearray(path.read_bytes()))
    call = jax.jit(program.call, compiler_options=compiler_options(jax.devices()[0]))
    return lambda images: {name: np.asarray(value) for name, value in call(images).items()}


def largest_difference(card_path: pathlib.Path, inputs_path: pathlib.Path) -> dict[str, object]:
    """Compares the exported encoder with saved embeddings, for several batch sizes."""
    encode = load_encoder(card_path)
    names = files.read_json(card_path)["outputs"]
    with np.load(inputs_path) as saved:
        expected = {name: saved[name] for name in names}
        images = {name: saved[name] for name in saved.files if name not in names}
    rows = len(expected["embedding"])
    sizes = sorted({rows, 1, min(3, rows)}, reverse=True)
    worst = 0.0
    for size in sizes:
        got = encode({name: value[:size] for name, value in images.items()})
        for name, values in expected.items():
            worst = float(np.max(np.abs(got[name] - values[:size]), initial=worst))  # unlike max(), keeps NaN
    return {"max_abs_difference": worst, "rows": rows, "batch_sizes": sizes}


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    if len(arguments) != 2:
        print("usage: python -m rgbd_reid_jax.export.check CARD.json INPUTS.npz", file=sys.stderr)
        return 2
    try:
        print(json.dumps(largest_difference(pathlib.Path(arguments[0]), pathlib.Path(arguments[1]))))
    except (InputError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
