"""Checkpoints: whole or absent, the latest and the best kept, damage named."""

import gc
import logging
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.mesh import replicated


@pytest.fixture(scope="module", autouse=True)
def failing_reads():
    """Orbax leaves its other reads unfinished when one fails: Python tells of each when it ends or is collected."""
    known, closed = sys.unraisablehook, "Event loop is closed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda one: None if closed in str(one.exc_value) else known(one))
        yield
        gc.collect()


def state(value=0.0, width=3):
    return {
        "trainable": {"kernel": jnp.arange(width, dtype=jnp.float32) + value},
        "frozen": {},
        "step": jnp.asarray(7, jnp.int32),
        "key": jnp.asarray([1, 2], jnp.uint32),
        "slots": (jnp.zeros(2), {}, {"count": jnp.asarray(3)}),
    }


def save_all(folder, scores):
    with Checkpoints(folder) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, state(step), {"next_index": step}, score)


def kept(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.dtype == two.dtype


def test_a_new_folder_holds_nothing(tmp_path):
    with Checkpoints(tmp_path / "new" / "teacher") as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.best_step() is None
        assert checkpoints.scores() == {}


def test_round_trip(tmp_path):
    position = {"next_index": 12, "nested": {"seed": 3}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(0.5), position, 0.25)
    with Checkpoints(tmp_path) as checkpoints:
        restored, found = checkpoints.restore(5, state())
        assert checkpoints.scores() == {5: 0.25}
    assert_same(restored, state(0.5))
    assert found == position


def test_parts_are_numpy_arrays_whatever_devices_saved_them(tmp_path, mesh_of):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, jax.device_put(state(0.5), replicated(mesh_of(8))), {})
    with Checkpoints(tmp_path) as checkpoints:
        parts = checkpoints.restore_parts(5)
    assert type(parts["trainable"]["kernel"]) is np.ndarray
    assert parts["trainable"]["kernel"].tolist() == [0.5, 1.5, 2.5]
    assert parts["key"].dtype == np.uint32
    assert parts["frozen"] == {}


def test_saving_compiles_nothing(tmp_path, mesh_of, caplog):
    """Not even where each of eight devices holds all, and could write its part of it."""
    saved = jax.device_put(state(0.5, width=16), replicated(mesh_of(8)))
    with Checkpoints(tmp_path) as checkpoints, jax.log_compiles(), caplog.at_level(logging.DEBUG):
        checkpoints.save(5, saved, {})
    assert [record.message for record in caplog.records if "ompil" in record.message] == []


def test_a_state_goes_to_the_devices_it_is_asked_for(tmp_path, mesh_of):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, jax.device_put(state(0.5), replicated(mesh_of(8))), {})
    like = jax.device_put(state(), replicated(mesh_of(2)))
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(5, like)
    assert_same(jax.device_get(restored), jax.device_get(state(0.5)))
    assert restored["trainable"]["kernel"].sharding == like["trainable"]["kernel"].sharding


@pytest.mark.parametrize(
    ("scores", "best", "steps"),
    [
        ({1: 0.2, 2: 0.9, 3: 0.5, 4: 0.1}, 2, [2, 4]),
        ({1: 0.2, 2: 0.3, 3: 0.4}, 3, [3]),
        ({1: 0.5, 2: 0.5, 3: 0.5}, 1, [1, 3]),  # the first of equals
        ({1: None, 2: None, 3: None}, 3, [3]),
        ({1: 0.5, 2: None}, 1, [1, 2]),
        ({1: 0.5, 2: float("nan")}, 1, [1, 2]),
        ({1: -0.5, 2: -0.7}, 1, [1, 2]),
    ],
)
def test_the_latest_and_the_best_are_kept(tmp_path, scores, best, steps):
    save_all(tmp_path, scores)
    assert kept(tmp_path) == steps
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == best
        assert checkpoints.latest_step() == max(scores)
        restored, position = checkpoints.restore(best, state())
    assert_same(restored, state(best))
    assert position == {"next_index": best}


def test_the_best_outlives_a_restart(tmp_path):
    save_all(tmp_path, {1: 0.9, 2: 0.1})
    save_all(tmp_path, {3: 0.2, 4: 0.3})
    assert kept(tmp_path) == [1, 4]


def test_a_step_that_is_there_stays_as_it_is(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(0.5), {"next_index": 1}, 0.25)
        checkpoints.save(5, state(9.0), {"next_index": 9})
        restored, position = checkpoints.restore(5, state())
        assert checkpoints.scores() == {5: 0.25}
    assert_same(restored, state(0.5))
    assert position == {"next_index": 1}


def damage_array(folder):
    for path in (folder / "state").rglob("d/*"):
        path.write_bytes(b"\0" * path.stat().st_size)


def damage_manifest(folder):
    for path in (folder / "state").rglob("manifest.ocdbt"):
        path.write_bytes(b"")


def damage_by_deletion(folder):
    shutil.rmtree(folder / "state")


@pytest.mark.parametrize("damage", [damage_array, damage_manifest, damage_by_deletion])
def test_damage_is_named_in_one_line(tmp_path, damage):
    save_all(tmp_path, {5: None})
    damage(tmp_path / "5")
    with Checkpoints(tmp_path) as checkpoints:
        for read in (lambda: checkpoints.restore(5, state()), lambda: checkpoints.restore_parts(5)):
            with pytest.raises(InputError, match="cannot be read") as caught:
                read()
            assert f"checkpoint {tmp_path / '5'} " in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (state(width=4), r"trainable/kernel has shape \(3,\) there and \(4,\) here, one of 1 "),
        (state(width=2), r"trainable/kernel has shape \(3,\) there and \(2,\) here, one of 1 "),
        ({**state(), "more": jnp.zeros(1)}, r"more has shape none there and \(1,\) here, one of 1 "),
        ({"step": jnp.asarray(7)}, r"key has shape \(2,\) there and none here, one of 4 "),
    ],
)
def test_another_model_is_refused_before_it_is_read(tmp_path, monkeypatch, other, said):
    save_all(tmp_path, {5: None})
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(ocp.CheckpointManager, "restore", lambda *_, **__: pytest.fail("it was read"))
        with pytest.raises(InputError, match=said) as caught:
            checkpoints.restore(5, other)
    assert str(tmp_path / "5") in str(caught.value)


def test_what_a_killed_save_left_is_ignored_and_removed(tmp_path):
    save_all(tmp_path, {4: 0.5})
    left = tmp_path / "8.orbax-checkpoint-tmp-1700000000000000"
    shutil.copytree(tmp_path / "4", left)
    (left / "commit_success.txt").unlink(missing_ok=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 4
        assert checkpoints.best_step() == 4
        checkpoints.save(8, state(8), {}, 0.6)
    assert kept(tmp_path) == [8]


def test_only_what_orbax_logs_is_silenced(tmp_path, caplog):
    log = logging.getLogger("absl")
    level = log.level
    with Checkpoints(tmp_path):
        pass
    assert log.level == level
    for path, text in [(ocp.__file__, "of orbax"), (__file__, "of another")]:
        log.handle(log.makeRecord("absl", logging.ERROR, path, 1, text, (), None))
    assert [record.getMessage() for record in caplog.records] == ["of another"]


def test_the_folder_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_all(tmp_path.relative_to(tmp_path) / "checkpoints", {2: None})
    assert kept(tmp_path / "checkpoints") == [2]
