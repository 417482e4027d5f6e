"""One set of embeddings with the identities, cameras and instants they belong to, and its .npz file.

Required keys are `embedding`, `person_id` and `camera_id`; the others say more about where an image comes from, and a
protocol that needs one of them says so. docs/evaluation.md describes the file for models trained elsewhere.
"""

import dataclasses
import io
import os
import pathlib

import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.progress import say

DIRECTIONS = {  # name, as in files and logged keys: (query, gallery)
    "rgb_to_depth": ("rgb", "depth"),
    "depth_to_rgb": ("depth", "rgb"),
    "rgb_to_rgb": ("rgb", "rgb"),
    "depth_to_depth": ("depth", "depth"),
}
_REQUIRED = ("embedding", "person_id", "camera_id")
_ID_KEYS = ("person_id", "camera_id", "recording_id", "frame_id", "clothes_id", "recording_type")
_NAME_KEYS = ("camera_name", "passage_name")
_MATRIX_KEYS = ("embedding", "gate")
KEYS = ("embedding", *_ID_KEYS[:5], "modality", "recording_type", "gate", *_NAME_KEYS)
_MEANING = {
    "recording_id": "one whole number per recording of one person by one camera",
    "frame_id": "the number of the instant in its recording, equal for both modalities",
    "clothes_id": "one whole number per outfit",
    "recording_type": "1 standing, 2 walking, 0 unknown",
    "gate": "float32 [N, D], what the embedding of the other side is multiplied with",
    "camera_name": "the camera's name as text",
    "passage_name": "the name of the walk past the cameras, as text or number",
}
_CHECKED_ROWS = 8192  # rows looked at together, so that a check of a large set takes little memory


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of one modality; row i of every array is the same image.

    Attributes:
        embedding: float32 [N, D], finite; compared as they are (not normalised here).
        person_id: int64 [N] >= 0, the dataset's person.
        camera_id: int64 [N].
        recording_id: int64 [N], one continuous recording of one person by one camera; None where unknown, as below.
        frame_id: int64 [N], the instant inside its recording; both modalities of one instant share it.
        clothes_id: int64 [N], what the person wears.
        modality: one word, such as "rgb" or "depth"; "" where it is not known.
        recording_type: int64 [N], 1 standing, 2 walking, 0 unknown.
        gate: float32 [N, D], finite, for the metric `gated`.
        camera_name: text [N].
        passage_name: text [N], one walk of a person past the cameras.
        source: what messages call the set; its file where it has one.

    Raises:
        InputError: lengths, types or the modality do not fit, or a value is NaN or infinite.
    """

    embedding: np.ndarray
    person_id: np.ndarray
    camera_id: np.ndarray
    recording_id: np.ndarray | None = None
    frame_id: np.ndarray | None = None
    clothes_id: np.ndarray | None = None
    modality: str = ""
    recording_type: np.ndarray | None = None
    gate: np.ndarray | None = None
    camera_name: np.ndarray | None = None
    passage_name: np.ndarray | None = None
    source: str = "Embeddings"

    def __post_init__(self):
        for name, value in _checked({key: getattr(self, key) for key in KEYS}, self.source).items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.embedding.shape[0]

    def column(self, key: str, wanted_by: str) -> np.ndarray:
        """The array of an optional key.

        Args:
            key: such as "recording_id".
            wanted_by: what needs it, for the message.

        Raises:
            InputError: the set lacks it.
        """
        value = getattr(self, key)
        if value is None:
            raise InputError(
                f"{self.source} lacks {key}, which {wanted_by} needs; save it beside the embeddings ({_MEANING[key]})"
            )
        return value

    def take(self, rows: np.ndarray) -> "Embeddings":
        """The set of some rows, int [n] or bool [N]."""
        columns = {key: getattr(self, key) for key in KEYS if key != "modality"}
        return dataclasses.replace(
            self, **{key: None if value is None else value[rows] for key, value in columns.items()}
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the .npz at `path`, whole or not at all; equal content gives equal bytes."""
        buffer = io.BytesIO()
        arrays: dict = {key: np.asarray(getattr(self, key)) for key in KEYS if getattr(self, key) is not None}
        np.savez(buffer, **arrays)
        files.write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Embeddings":
        """Reads what `save`, or `numpy.savez` with the same keys, wrote.

        Raises:
            InputError: the file is absent or no .npz, lacks a key, or its arrays do not fit.
        """
        path = pathlib.Path(path)
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                _check_keys(archive.files, path)
                arrays: dict = {key: _read(archive, key, path) for key in archive.files if key in KEYS}
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist; give the .npz that embedding the images wrote") from error
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}); give a readable .npz file") from error
        except Exception as error:  # a damaged file can raise anything: numpy, zipfile, zlib and tokenize read it
            detail = str(error).splitlines()[0] if str(error) else "it is empty"
            raise InputError(
                f"{path} is not a readable .npz file ({detail}); write it again with numpy.savez"
            ) from error
        arrays["modality"] = _one_name(arrays.get("modality", ""), str(path))
        return cls(**arrays, source=str(path))


def _check_keys(names: list[str], path: pathlib.Path) -> None:
    missing = [key for key in _REQUIRED if key not in names]
    if missing:
        raise InputError(
            f"{path} lacks {', '.join(missing)} (it has: {', '.join(names)}); write it again with "
            f"numpy.savez(path, {', '.join(f'{key}=...' for key in _REQUIRED)})"
        )
    others = [name for name in names if name not in KEYS]
    if others:
        say("embeddings", f"{path}: keys {', '.join(others)} are not used; known are: {', '.join(KEYS)}")


def _read(archive: np.lib.npyio.NpzFile, key: str, path: pathlib.Path) -> np.ndarray:
    try:
        return archive[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        kind = "float32" if key in _MATRIX_KEYS else "str_" if key in (*_NAME_KEYS, "modality") else "int64"
        raise InputError(
            f"{path}: {key} is an array of Python objects, which are not read from files; save "
            f"numpy.asarray({key}, numpy.{kind})"
        ) from error


def _checked(values: dict, source: str) -> dict:
    """The fields as they are stored (float32, int64, str), or an InputError that names `source`."""
    checked: dict = {"embedding": _matrix(values["embedding"], "embedding", source)}
    shape = checked["embedding"].shape
    for key in (*_ID_KEYS, *_NAME_KEYS):
        if values[key] is None and key not in _REQUIRED:
            checked[key] = None
            continue
        column = np.asarray(values[key])
        if column.shape != shape[:1]:
            raise InputError(
                f"{source}: {key} has shape {list(column.shape)}, expected [{shape[0]}]; give one value per embedding"
            )
        checked[key] = _names(column, key, source) if key in _NAME_KEYS else _whole_numbers(column, key, source)
    if shape[0] and checked["person_id"].min() < 0:
        count = int((checked["person_id"] < 0).sum())
        raise InputError(
            f"{source}: person_id is negative in {count} rows, which datasets use for images that are nobody's; "
            "leave these rows out"
        )
    if values["gate"] is None:
        checked["gate"] = None
    else:
        checked["gate"] = _matrix(values["gate"], "gate", source)
        if checked["gate"].shape != shape:
            raise InputError(
                f"{source}: gate has shape {list(checked['gate'].shape)}, embedding {list(shape)}; save one gate of "
                "the embedding's width per row"
            )
    modality = str(values["modality"])
    if modality and not modality.isidentifier():
        raise InputError(f"{source}: modality is {modality!r}, expected one word, such as rgb, depth or infrared")
    return {**checked, "modality": modality}


def _one_name(value: np.ndarray | str, source: str) -> str:
    """The modality of a whole file, where one value per row is allowed too."""
    names = np.unique(_names(np.asarray(value), "modality", source))
    if len(names) > 1:
        raise InputError(f"{source} mixes the modalities {', '.join(map(str, names))}; save one file for each")
    return str(names[0]) if len(names) else ""


def _matrix(value: np.ndarray, key: str, source: str) -> np.ndarray:
    """float32 [N, D], finite."""
    matrix = np.asarray(value)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or not matrix.shape[1]:
        raise InputError(
            f"{source}: {key} is {matrix.dtype} {list(matrix.shape)}, expected float32 [N, D]; save one row of D "
            "numbers per image with .astype('float32')"
        )
    blocks = range(0, len(matrix), _CHECKED_ROWS)
    if matrix.dtype.kind == "f":
        wrong = np.concatenate(
            [np.zeros(0, bool), *(~np.isfinite(matrix[at : at + _CHECKED_ROWS]).all(1) for at in blocks)]
        )
        if wrong.any():
            row = int(np.argmax(wrong))
            number = matrix[row][~np.isfinite(matrix[row])][0]
            raise InputError(
                f"{source}: {key} row {row} holds {number} ({int(wrong.sum())} such rows); the model has diverged or "
                "got a bad image: evaluate an earlier checkpoint, or mend the image"
            )
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(matrix, np.float32)
    if matrix.dtype.itemsize > 4 and not all(np.isfinite(stored[at : at + _CHECKED_ROWS]).all() for at in blocks):
        raise InputError(f"{source}: {key} exceeds the range of float32; scale or normalise it")
    return stored


def _whole_numbers(column: np.ndarray, key: str, source: str) -> np.ndarray:
    if column.dtype.kind not in "iu" and column.size:
        mend = (
            f"number them with numpy.unique({key}, return_inverse=True)[1]"
            if column.dtype.kind in "SU"
            else "save it with .astype('int64')"
        )
        raise InputError(f"{source}: {key} is {column.dtype}, expected whole numbers; {mend}")
    numbers = column.astype(np.int64, copy=False)
    if column.dtype == np.uint64 and (numbers < 0).any():
        raise InputError(
            f"{source}: {key} exceeds 2^63 - 1; number them with numpy.unique({key}, return_inverse=True)[1]"
        )
    return numbers


def _names(column: np.ndarray, key: str, source: str) -> np.ndarray:
    if column.dtype.kind not in "SUiu":
        raise InputError(f"{source}: {key} is {column.dtype}, expected text; save it with numpy.asarray({key}, str)")
    try:
        return np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column.astype(np.str_)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source}: {key} is no UTF-8 text ({error}); save it with numpy.asarray({key}, str)"
        ) from error
