"""The folder of compiled programs belongs to one user."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from rgbd_reid_jax.core import compile_cache

NAME = "JAX_COMPILATION_CACHE_DIR"


def test_it_is_the_users_own_folder(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    assert compile_cache.use(environment) is None
    folder = tmp_path / "rgbd_reid_jax" / "xla"
    assert environment[NAME] == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_without_xdg_it_lies_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    environment: dict[str, str] = {}
    assert compile_cache.use(environment) is None
    assert environment[NAME] == str(tmp_path / ".cache" / "rgbd_reid_jax" / "xla")


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", no_home)
    environment: dict[str, str] = {}
    assert compile_cache.use(environment) == "~/.cache/rgbd_reid_jax/xla: Could not determine home directory."
    assert environment == {}


@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_what_the_user_set_stays(given, tmp_path):
    environment = {NAME: given, "XDG_CACHE_HOME": str(tmp_path)}
    assert compile_cache.use(environment) is None
    assert environment[NAME] == given
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_is_not_used(tmp_path, mode):
    folder = tmp_path / "rgbd_reid_jax" / "xla"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    assert "can be written by others" in str(compile_cache.use(environment))
    assert NAME not in environment


def test_a_place_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    assert str(tmp_path / "file") in str(compile_cache.use(environment))
    assert NAME not in environment


def test_the_empty_text_turns_the_cache_off(tmp_path):
    """What the documentation promises of JAX."""
    program = "import jax; jax.jit(lambda x: x * 2)(1.0)"
    for name, expected in (("", False), (str(tmp_path / "kept"), True)):
        env = {**os.environ, NAME: name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "HOME": str(tmp_path)}
        subprocess.run([sys.executable, "-c", program], env=env, cwd=tmp_path, check=True, timeout=60)
        assert bool(list(tmp_path.rglob("*-cache"))) == expected
