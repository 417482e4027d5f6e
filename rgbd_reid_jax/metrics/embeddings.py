"""One set of embeddings with the identities, cameras and instants they belong to, and its file."""

import dataclasses
import io
import os
import pathlib
import zipfile

import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError

MODALITIES = ("rgb", "depth")
DIRECTIONS = {  # name, as in files and logged keys: (query, gallery)
    "rgb_to_depth": ("rgb", "depth"),
    "depth_to_rgb": ("depth", "rgb"),
    "rgb_to_rgb": ("rgb", "rgb"),
    "depth_to_depth": ("depth", "depth"),
}
_ID_KEYS = ("person_id", "camera_id", "recording_id", "frame_id", "clothes_id")
_KEYS = ("embedding", *_ID_KEYS, "modality")
_MEND = "write it again with the evaluation command"


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of one modality; row i of every array is the same image.

    Attributes:
        embedding: float32 [N, D], finite; compared by Euclidean distance as they are (not normalised here).
        person_id: int64 [N], the dataset's person.
        camera_id: int64 [N].
        recording_id: int64 [N], one continuous recording of one camera.
        frame_id: int64 [N], the instant inside its recording; both modalities of one instant share it.
        clothes_id: int64 [N], what the person wears.
        modality: "rgb" or "depth".

    Raises:
        InputError: lengths, types or the modality do not fit, or a value is NaN or infinite.
    """

    embedding: np.ndarray
    person_id: np.ndarray
    camera_id: np.ndarray
    recording_id: np.ndarray
    frame_id: np.ndarray
    clothes_id: np.ndarray
    modality: str

    def __post_init__(self):
        for name, value in _checked({key: getattr(self, key) for key in _KEYS}, "Embeddings").items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.embedding.shape[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the .npz at `path`, whole or not at all; equal content gives equal bytes."""
        buffer = io.BytesIO()
        arrays: dict = {key: np.asarray(getattr(self, key)) for key in _KEYS}
        np.savez(buffer, **arrays)
        files.write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Embeddings":
        """Reads what `save` wrote.

        Raises:
            InputError: the file is absent or no .npz, lacks a key, or its arrays do not fit together.
        """
        path = pathlib.Path(path)
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                missing = [key for key in _KEYS if key not in archive.files]
                if missing:
                    raise InputError(f"{path} lacks {', '.join(missing)} (it has: {', '.join(archive.files)}); {_MEND}")
                arrays = {key: archive[key] for key in _KEYS}
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist; {_MEND}") from error
        except InputError:
            raise
        except (zipfile.BadZipFile, ValueError, EOFError, AttributeError, TypeError) as error:
            detail = str(error).splitlines()[0] if str(error) else "it is empty"
            raise InputError(f"{path} is not a readable .npz file ({detail}); {_MEND}") from error
        return cls(**_checked(arrays, str(path)))


def _checked(values: dict, source: str) -> dict:
    """The fields as they are stored (float32, int64, str), or an InputError that names `source`."""
    embedding = np.asarray(values["embedding"])
    if embedding.ndim != 2 or embedding.dtype.kind not in "fiu":
        raise InputError(
            f"{source}: embedding is {embedding.dtype} {list(embedding.shape)}, expected float32 [N, D]; {_MEND}"
        )
    finite = np.isfinite(embedding)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise InputError(
            f"{source}: embedding row {row} holds {embedding[row, column]} ({int((~finite.all(1)).sum())} such rows); "
            "the model has diverged: evaluate an earlier checkpoint"
        )
    with np.errstate(over="ignore"):
        checked: dict = {"embedding": np.ascontiguousarray(embedding, np.float32)}
    if not np.isfinite(checked["embedding"]).all():
        raise InputError(f"{source}: embedding exceeds the range of float32; scale or normalise the embeddings")
    for key in _ID_KEYS:
        ids = np.asarray(values[key])
        if ids.shape != embedding.shape[:1]:
            raise InputError(f"{source}: {key} has shape {list(ids.shape)}, expected [{len(embedding)}]; {_MEND}")
        if ids.dtype.kind not in "iu" and ids.size:
            raise InputError(f"{source}: {key} is {ids.dtype}, expected whole numbers; {_MEND}")
        checked[key] = ids.astype(np.int64)
    modality = str(values["modality"])
    if modality not in MODALITIES:
        raise InputError(f"{source}: modality is {modality!r}, expected one of {', '.join(MODALITIES)}; {_MEND}")
    return {**checked, "modality": modality}
