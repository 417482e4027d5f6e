"""Writes encoders as StableHLO with a symbolic batch, and a JSON card beside each.

The file holds the weights and all of the preprocessing: raw uint8 RGB, or uint16 millimetres and the
person's mask, go in; embeddings come out.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.export
import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.data.records import IMAGE_TYPES
from rgbd_reid_jax.evaluation.embed import RAW_IMAGES, Encoder
from rgbd_reid_jax.models.pair import embedding_width

CARD_SCHEMA = 2
_MEANING = {
    "rgb": "sRGB colour, 0..255",
    "depth": "depth along the optical axis, millimetres, 0 = invalid",
}
_MASK_MEANING = {
    "metric": "non-zero on the person; this representation does not use it",
    "relative": "non-zero on the person; all zero where no mask is known: the person's depth is then the median of all "
    "valid pixels",
    "relative_masked": "non-zero on the person; needed, as all else counts as background",
}


def export_encoder(
    encoder: Encoder,
    params: Any,
    batch_stats: Any,
    size: tuple[int, int],
    folder: pathlib.Path,
    platforms: tuple[str, ...],
    facts: dict[str, Any],
) -> pathlib.Path:
    """Writes `<modality>.stablehlo` and `<modality>.json`.

    Args:
        encoder: what to export.
        params: its parameters, which become constants of the program.
        batch_stats: its running statistics, likewise.
        size: (height, width) of the raw images.
        folder: where to.
        platforms: JAX platforms the program is lowered for ("cpu", "cuda", "tpu").
        facts: what else the card tells (dataset, results, licence).

    Returns:
        The card's path.
    """
    names = RAW_IMAGES[encoder.modality]
    meaning = _MEANING | {"mask": _MASK_MEANING[encoder.spec.depth_representation]}
    height, width = size
    (batch,) = jax.export.symbolic_shape("batch")
    types = {name: (np.dtype(IMAGE_TYPES[name][0]), IMAGE_TYPES[name][1]) for name in names}
    inputs = {
        name: jax.ShapeDtypeStruct((batch, height, width, channels), dtype) for name, (dtype, channels) in types.items()
    }
    embed = functools.partial(encoder.answer, *jax.device_get((params, batch_stats)))
    program = jax.export.export(jax.jit(embed), platforms=platforms)(inputs).serialize()
    path = folder / f"{encoder.modality}.stablehlo"
    files.write_bytes(path, bytes(program))
    card = {
        "schema": CARD_SCHEMA,
        "program": path.name,
        "sha256": files.sha256(path),
        "modality": encoder.modality,
        "inputs": {
            name: {
                "shape": ["batch", height, width, channels],
                "dtype": dtype.name,
                "meaning": meaning[name],
            }
            for name, (dtype, channels) in types.items()
        },
        "outputs": {
            name: {"shape": ["batch", embedding_width(encoder.model)], "dtype": "float32"} for name in encoder.answers
        },
        "distance": _distance(encoder),
        "colour": encoder.spec.colour if encoder.modality == "rgb" else None,
        "depth_representation": encoder.spec.depth_representation if encoder.modality == "depth" else None,
        "platforms": list(platforms),
        "jax": jax.__version__,
        **facts,
    }
    card_path = folder / f"{encoder.modality}.json"
    files.write_json(card_path, card)
    return card_path


def _distance(encoder: Encoder) -> str:
    """How two embeddings are compared, in words."""
    kind = encoder.gate.spec.kind if encoder.gate else "none"
    if kind == "pairwise":
        return (
            "between modalities |q * a - g * b|, q and g the embeddings and a and b the gates of the other side "
            "(the evaluate command's metric `gated`); within a modality Euclidean"
        )
    plain = "squared Euclidean"
    if encoder.normalise and kind != "self":
        plain += " of unit vectors, that is 2 - 2 cosine"
    if kind == "middle":
        plain += "; without the gate, which compares pairs of images one by one and is not part of the program"
    return plain
