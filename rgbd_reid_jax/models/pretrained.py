"""Published weights into our networks: which of their names is which of ours, and what became of each.

Formats, by their names: torchvision's and timm's ResNets (`layer3.0.conv2.weight`), checkpoints of the paper's code,
which is based on open-reid (`module.base.layer3.0.conv2.weight`, `feat`, `feat_bn`, and `classifier`, a triplet
teacher's second dense layer), and DINOv2's vision transformers (`blocks.3.attn.qkv.weight`).
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.modalities import MODALITIES
from rgbd_reid_jax.models.torch_files import read_state
from rgbd_reid_jax.models.vit import VITS

Tree = Mapping[str, Any]
Transform = Callable[[np.ndarray], np.ndarray]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _convolution(array: np.ndarray) -> np.ndarray:
    # [out, in, h, w] to [h, w, in, out]; another shape is reported later
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _dense(array: np.ndarray) -> np.ndarray:
    return array.T


_NORM = (("weight", "params", "scale"), ("bias", "params", "bias"), ("running_mean", "batch_stats", "mean"))
_NORM = (*_NORM, ("running_var", "batch_stats", "var"))


def _norm_rules(theirs: str, ours: str) -> list[tuple[str, str, Transform]]:
    return [(rf"{theirs}\.{one}", f"{kind}/{ours}/{leaf}", _same) for one, kind, leaf in _NORM]


RESNET_RULES: list[tuple[str, str, Transform]] = [
    (r"(?:base\.)?conv1\.weight", "params/backbone/conv1/kernel", _convolution),
    *_norm_rules(r"(?:base\.)?bn1", "backbone/bn1"),
    (r"(?:base\.)?layer(\d)\.(\d+)\.conv(\d)\.weight", r"params/backbone/layer\1_\2/conv\3/kernel", _convolution),
    *_norm_rules(r"(?:base\.)?layer(\d)\.(\d+)\.bn(\d)", r"backbone/layer\1_\2/bn\3"),
    (
        r"(?:base\.)?layer(\d)\.(\d+)\.downsample\.0\.weight",
        r"params/backbone/layer\1_\2/downsample_conv/kernel",
        _convolution,
    ),
    *_norm_rules(r"(?:base\.)?layer(\d)\.(\d+)\.downsample\.1", r"backbone/layer\1_\2/downsample_bn"),
    (r"feat\.weight", "params/embedding/kernel", _dense),
    (r"feat\.bias", "params/embedding/bias", _same),
    *_norm_rules("feat_bn", "embedding_bn"),
]
OUT_RULES: list[tuple[str, str, Transform]] = [
    (r"classifier\.weight", "params/embedding_out/kernel", _dense),
    (r"classifier\.bias", "params/embedding_out/bias", _same),
]
_BLOCK = r"blocks\.(\d+)\."
VIT_RULES: list[tuple[str, str, Transform]] = [
    ("cls_token", "params/backbone/cls_token", _same),
    ("pos_embed", "params/backbone/pos_embed", _same),
    (r"patch_embed\.proj\.weight", "params/backbone/patch_embed/kernel", _convolution),
    (r"patch_embed\.proj\.bias", "params/backbone/patch_embed/bias", _same),
    (rf"{_BLOCK}(attn|mlp)\.(\w+)\.weight", r"params/backbone/block\1/\2_\3/kernel", _dense),
    (rf"{_BLOCK}(attn|mlp)\.(\w+)\.bias", r"params/backbone/block\1/\2_\3/bias", _same),
    (rf"{_BLOCK}(norm\d)\.weight", r"params/backbone/block\1/\2/scale", _same),
    (rf"{_BLOCK}(norm\d)\.bias", r"params/backbone/block\1/\2/bias", _same),
    (rf"{_BLOCK}(ls\d)\.gamma", r"params/backbone/block\1/\2", _same),
    (r"norm\.weight", "params/backbone/norm/scale", _same),
    (r"norm\.bias", "params/backbone/norm/bias", _same),
]
_NECK = ("embedding", "embedding_bn", "embedding_out")
_STREAM = re.compile("/backbone_[a-z]+/")
_UNUSED = re.compile(r"(.*\.)?num_batches_tracked|(base\.)?fc\.\w+|classifier\.\w+|head\.\w+|mask_token")
"""Counters, and classifiers of other people or things."""


def renamed(
    state: Mapping[str, np.ndarray], backbone: str, *, triplet: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Published tensors under our paths.

    Args:
        state: published name to array.
        backbone: a key of `RESNETS` or `VITS`.
        triplet: the network's neck is that of the teacher of triplets.

    Returns:
        `params/...` or `batch_stats/...` to float32 array in our layout, and the names that no rule knows.
    """
    rules = VIT_RULES if backbone in VITS else RESNET_RULES
    rules = [*(OUT_RULES if triplet else []), *rules]
    ours, unknown = {}, []
    for name, array in state.items():
        name = name.removeprefix("module.")
        for pattern, path, transform in rules:
            match = re.fullmatch(pattern, name)
            if match:
                ours[match.expand(path)] = np.ascontiguousarray(transform(array), dtype=np.float32)
                break
        else:
            if not _UNUSED.fullmatch(name):
                unknown.append(name)
    return ours, unknown


def load_pretrained(
    path: str | os.PathLike[str], backbone: str, params: Tree, batch_stats: Tree, *, grid: tuple[int, int] | None = None
) -> tuple[Tree, Tree]:
    """Fresh parameters with the published ones in their place.

    The backbone must be covered whole; of two streams both start from the same weights. So must the neck where the file
    holds any of it; a classifier is never taken, since it knows other people.

    Args:
        path: a `.safetensors` or `.pth` file.
        backbone: a key of `RESNETS` or `VITS`.
        params: fresh parameters of the network.
        batch_stats: its fresh statistics.
        grid: rows and columns of patches of our input (vision transformers), to which positions are resized.

    Returns:
        New parameters and statistics, float32.

    Raises:
        InputError: the file cannot be read; names are missing or unknown, or shapes differ: all are listed.
    """
    found, unknown = renamed(read_state(path), backbone, triplet="embedding_out" in params)
    positions = "params/backbone/pos_embed"
    if grid is not None and positions in found:
        found[positions] = resized_positions(found[positions], grid)
    fresh = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats}, sep="/")
    fresh = {name: np.asarray(leaf) for name, leaf in fresh.items()}
    for name in fresh:  # a stream's part has the published weights of that part of the one backbone
        shared = _STREAM.sub("/backbone/", name)
        if shared != name and shared in found:
            found[name] = found[shared]
    found = {name: array for name, array in found.items() if name in fresh or not _streamed(name, fresh)}
    neck = any(name.split("/")[1] in _NECK for name in found)
    wanted = {name for name in fresh if "/backbone" in name or (neck and name.split("/")[1] in _NECK)}
    problems = [f"missing: {', '.join(sorted(wanted - found.keys()))}"] if wanted - found.keys() else []
    strangers = [*unknown, *sorted(found.keys() - fresh.keys())]
    problems += [f"unexpected: {', '.join(strangers)}"] if strangers else []
    shapes = [
        f"{name} {list(found[name].shape)} instead of {list(fresh[name].shape)}"
        for name in sorted(wanted & found.keys())
        if found[name].shape != fresh[name].shape
    ]
    problems += [f"other shapes: {', '.join(shapes)}"] if shapes else []
    if problems:
        raise InputError(
            f"weights {path} do not fit {backbone}; {'; '.join(problems)}; give the weights of that network"
        )
    whole = traverse_util.unflatten_dict({**fresh, **found}, sep="/")
    return jax.tree.map(np.asarray, whole["params"]), jax.tree.map(np.asarray, whole.get("batch_stats", {}))


def _streamed(name: str, fresh: Mapping[str, np.ndarray]) -> bool:
    """Whether a published part of the one backbone is, in ours, a part of each stream."""
    return any(name.replace("/backbone/", f"/backbone_{modality}/") in fresh for modality in MODALITIES)


def resized_positions(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Learned positions [1, 1 + n * n, C] for a grid of rows x columns patches, [1, 1 + rows * columns, C].

    Bicubic, as DINOv2 does it when it meets an image of another size: its scale is (size + 0.1) / n, no antialiasing.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side + 1 != table.shape[1]:
        raise InputError(
            f"pos_embed has {table.shape[1]} rows, which is no class token and a square; give DINOv2's weights"
        )
    if grid == (side, side):
        return table
    patches = table[0, 1:].reshape(side, side, -1)
    rows, columns = (_bicubic(side, size, (size + 0.1) / side) for size in grid)
    patches = np.einsum("iy,jx,yxc->ijc", rows, columns, patches, optimize=True)
    return np.concatenate([table[:, :1], patches.reshape(1, -1, table.shape[2])], axis=1).astype(np.float32)


def _bicubic(size_in: int, size_out: int, scale: float) -> np.ndarray:
    """Weights [size_out, size_in] of cubic convolution (Keys, a = -0.75), half-pixel centres, edges repeated."""
    centres = (np.arange(size_out) + 0.5) / scale - 0.5
    weights = np.zeros((size_out, size_in))
    for offset in range(-1, 3):
        taps = np.floor(centres).astype(int) + offset
        x, a = np.abs(centres - taps), -0.75
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        np.add.at(weights, (np.arange(size_out), np.clip(taps, 0, size_in - 1)), np.where(x <= 1, near, far))
    return weights
