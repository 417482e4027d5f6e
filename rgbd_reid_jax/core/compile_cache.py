"""Where JAX keeps compiled programs between runs: one folder per user.

A compiled program is code, so it is loaded from a folder that nobody else can write: `~/.cache/rgbd_reid_jax/xla`
(`$XDG_CACHE_HOME` if set), never a shared temporary one. It may be deleted at any time.
"""

import os
import pathlib
import stat
from collections.abc import MutableMapping

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def use(environment: MutableMapping[str, str]) -> str | None:
    """Sets `JAX_COMPILATION_CACHE_DIR` unless it is set, also to the empty text, which means no cache.

    Must precede the first import of JAX; processes that this one starts inherit it.

    Args:
        environment: `os.environ`.

    Returns:
        Why there is no cache, where its folder cannot be used; else None.
    """
    if VARIABLE in environment:
        return None
    folder = pathlib.Path("~/.cache/rgbd_reid_jax/xla")
    try:
        base = environment.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(base) / "rgbd_reid_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        usable = os.access(folder, os.W_OK | os.X_OK)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        return f"{folder}: {getattr(error, 'strerror', None) or error}"
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{folder} belongs to another user or can be written by others"
    if not usable:
        return f"{folder} cannot be written"
    environment[VARIABLE] = str(folder)
    return None
