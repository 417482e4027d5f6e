"""Weights that PyTorch wrote, as numpy arrays: `.safetensors`, and `.pth` without running what a pickle asks to run.

A `.pth` file is a pickle that rebuilds tensors from storages. Only that rebuilding is understood here. What checkpoints
hold beside tensors (scores, options, shapes) becomes an inert object; a pickle that names anything else is refused, so
nothing in the file is executed. Both layouts are read: the zip archive (PyTorch 1.6 and later) and the older
sequence of pickles followed by raw storages.
"""

import io
import os
import pathlib
import pickle
import struct
import zipfile
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from rgbd_reid_jax.core.errors import InputError

_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_BESIDE = {
    ("argparse", "Namespace"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("scalar", "_reconstruct")
    ),
    ("pathlib", "PosixPath"),
    *(("torch", name) for name in ("Size", "device", "float64", "float32", "float16", "bfloat16", "int64", "int32")),
    *(("torch", name) for name in ("int16", "int8", "uint8", "bool")),
}
"""What checkpoints hold beside tensors."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_state(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a weights file by name.

    Args:
        path: a `.safetensors` file, or a `.pth`, `.pt` or `.pth.tar` file: a state dict itself, or a checkpoint that
            holds one under "state_dict" or "model".

    Returns:
        Name to array, in the file's dtype (bfloat16 as `ml_dtypes.bfloat16`).

    Raises:
        InputError: the file is absent, no such file, damaged, or names code.
    """
    path = pathlib.Path(os.path.expanduser(path))
    try:
        if path.suffix == ".safetensors":
            from safetensors import numpy as safetensors_numpy

            return safetensors_numpy.load_file(path)
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read weights {path} ({error.strerror or error}); give a file on this machine"
        ) from error
    except Exception as error:  # safetensors raises a class of its own
        raise InputError(f"weights {path} are no readable safetensors file ({error}); download them again") from error
    try:
        tree = _read_zip(content) if zipfile.is_zipfile(io.BytesIO(content)) else _read_legacy(io.BytesIO(content))
    except _Code as error:
        raise InputError(
            f"weights {path} name {error}, which may be code and is not run; give a file that holds tensors "
            "alone, such as a state dict"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"weights {path} are no readable PyTorch file ({detail}); download them again") from error
    return _state_of(tree, path)


def _state_of(tree: Any, path: pathlib.Path) -> dict[str, np.ndarray]:
    for key in ("state_dict", "model"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    state = (
        {name: value for name, value in tree.items() if isinstance(value, np.ndarray)} if isinstance(tree, dict) else {}
    )
    if not state:
        raise InputError(f"weights {path} hold no named tensors; give a state dict or a checkpoint with 'state_dict'")
    return state


class _Inert:
    """Stands for what a checkpoint holds beside tensors; takes everything, does nothing."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *_: Any, **__: Any) -> "_Inert":
        return self

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


class _Dict(dict):
    """A state dict; what PyTorch hangs on it besides is dropped."""

    def __setstate__(self, _: Any) -> None:
        pass


class _Tensor:
    """A view of a storage that may be read later."""

    def __init__(self, storage: tuple[np.dtype, str], offset: int, size: Any, stride: Any, *_: Any):
        self.storage, self.offset, self.size, self.stride = storage, int(offset), tuple(size), tuple(stride)

    def array(self, storages: dict[str, bytes]) -> np.ndarray:
        dtype, key = self.storage
        values = np.frombuffer(storages[key], dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if 0 in self.size:
            return np.zeros(self.size, dtype)
        if min((self.offset, *self.stride)) < 0 or last >= len(values):
            raise ValueError(f"a tensor of shape {list(self.size)} reaches beyond its storage of {len(values)} values")
        steps = [step * dtype.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.size, steps, writeable=False).copy()


def _parameter(data: Any, *_: Any) -> Any:
    return data


class _Code(Exception):
    """A pickle names what weights do not need."""


class _Unpickler(pickle.Unpickler):
    """Rebuilds dicts, lists, numbers, texts and tensors; `_BESIDE` is inert."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _Tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _parameter
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) in _BESIDE:
            return _Inert
        raise _Code(f"{module}.{name}")

    def persistent_load(self, saved_id: Any) -> Any:
        kind, dtype, key = saved_id[:3]
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise ValueError(f"it refers to {kind!r} of an unknown type")
        return dtype, str(key)


def _resolved(tree: Any, storages: dict[str, bytes]) -> Any:
    if isinstance(tree, _Tensor):
        return tree.array(storages)
    if isinstance(tree, dict):
        return {name: _resolved(value, storages) for name, value in tree.items()}
    return tree


def _read_zip(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive without data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder").strip() != b"little":
            raise ValueError("it was written on a big-endian machine")
        tree = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
        data = f"{root}data/"
        storages = {name.removeprefix(data): archive.read(name) for name in archive.namelist() if name.startswith(data)}
    return _resolved(tree, storages)


def _read_legacy(file: BinaryIO) -> Any:
    if _Unpickler(file).load() != _LEGACY_MAGIC:
        raise ValueError("it does not start as PyTorch files do")
    _Unpickler(file).load()  # the protocol's version
    _Unpickler(file).load()  # sizes of C types where it was written
    reader = _LegacyUnpickler(file)
    tree = reader.load()
    storages = {}
    for key in _Unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        size = count * reader.dtypes[str(key)].itemsize
        storages[str(key)] = file.read(size)
        if len(storages[str(key)]) != size:
            raise ValueError("it ends too early")
    return _resolved(tree, storages)


class _LegacyUnpickler(_Unpickler):
    """Also notes each storage's dtype, which the raw storages behind the pickle do not repeat."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def persistent_load(self, saved_id: Any) -> Any:
        dtype, key = super().persistent_load(saved_id)
        if len(saved_id) > 5 and saved_id[5] is not None:
            raise ValueError("it holds storages that share memory")
        self.dtypes[key] = dtype
        return dtype, key
