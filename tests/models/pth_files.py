"""Published weights, and `.pth` files as `torch.save` writes them, without PyTorch: the zip archive, and the older
sequence of pickles."""

import collections
import io
import pathlib
import pickle
import struct
import sys
import types
import zipfile
from typing import Any
from unittest import mock

import jax
import numpy as np

NORM_LEAVES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "float64": "DoubleStorage", "int64": "LongStorage"}
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def _named(module: str, name: str, kind: Any) -> Any:
    kind.__module__, kind.__qualname__, kind.__name__ = module, name, name
    return kind


_STORAGES = {kind: _named("torch", name, type(name, (), {})) for kind, name in _KINDS.items()}
_REBUILD = _named("torch._utils", "_rebuild_tensor_v2", lambda *_: None)


class _Storage:
    def __init__(self, array: np.ndarray):
        self.array = array


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, *, legacy: bool):
        super().__init__(file, protocol=2)
        self.storages: dict[str, np.ndarray] = {}
        self._legacy = legacy

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        key = str(len(self.storages))
        self.storages[key] = obj.array
        saved = ("storage", _STORAGES[obj.array.dtype.name], key, "cpu", obj.array.size)
        return (*saved, None) if self._legacy else saved

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        strides = tuple(step // obj.itemsize for step in obj.strides)
        # A storage is what lies in memory, in its order.
        flat = np.lib.stride_tricks.as_strided(obj, (obj.size,), (obj.itemsize,)).copy()
        return _REBUILD, (_Storage(flat), 0, obj.shape, strides, False, collections.OrderedDict())


class Trap:
    """Makes a file when it is unpickled as pickles usually are."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self._path,)


def published(params: Any, batch_stats: Any) -> dict[str, np.ndarray]:
    """Our backbone under torchvision's names, written out by hand, with arrays that differ everywhere."""
    random = np.random.default_rng(0)
    state = {}
    for kind in (params["backbone"], batch_stats["backbone"]):
        for path, leaf in jax.tree_util.tree_leaves_with_path(kind):
            *layers, last = [key.key for key in path]
            value = random.normal(size=leaf.shape).astype(np.float32)
            name = ".".join(layers).replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
            if name.startswith("layer"):
                name = name.replace("_", ".", 1)
            if last == "kernel":
                state[f"{name}.weight"] = np.ascontiguousarray(value.transpose(3, 2, 0, 1))
            else:
                state[f"{name}.{NORM_LEAVES[last]}"] = np.abs(value) if last == "var" else value
    return state


def write_pth(path: pathlib.Path, tree: Any, *, legacy: bool = False) -> None:
    """Writes a tree of dicts whose arrays become tensors with the arrays' strides."""
    modules = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    for name, storage in _STORAGES.items():
        setattr(modules["torch"], _KINDS[name], storage)
    modules["torch._utils"]._rebuild_tensor_v2 = _REBUILD  # pyright: ignore[reportAttributeAccessIssue]
    pickled = io.BytesIO()
    with mock.patch.dict(sys.modules, modules):
        pickler = _Pickler(pickled, legacy=legacy)
        pickler.dump(tree)
    if not legacy:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", pickled.getvalue())
            archive.writestr("archive/byteorder", "little")
            for key, array in pickler.storages.items():
                archive.writestr(f"archive/data/{key}", array.tobytes())
        return
    head = b"".join(pickle.dumps(one, protocol=2) for one in (_MAGIC, _PROTOCOL, {"little_endian": True}))
    keys = pickle.dumps(list(pickler.storages), protocol=2)
    raw = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in pickler.storages.values())
    path.write_bytes(head + pickled.getvalue() + keys + raw)
