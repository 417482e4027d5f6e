"""Files that are either whole or absent: temporary name, flush, rename."""

import hashlib
import json
import os
import pathlib
from typing import Any

from rgbd_reid_jax.core.errors import InputError

_CHUNK_BYTES = 1 << 20


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` so that `path` never holds part of it.

    Args:
        path: the file; its folder is made if missing.
        content: the whole content.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """`write_bytes` of indented JSON with a final newline."""
    write_text(path, json.dumps(content, indent=2, sort_keys=False) + "\n")


def read_json(path: str | os.PathLike[str], mend: str = "delete it and run the same command again") -> Any:
    """The JSON content of `path`.

    Args:
        path: the file.
        mend: what helps where it is damaged.

    Raises:
        InputError: the file is no JSON.
        FileNotFoundError: there is no such file.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or lists within lists without end
        raise InputError(f"{path} is not valid JSON ({error}); {mend}") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """The hexadecimal SHA-256 digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()
