"""Published weights under our names, without PyTorch; tests/models/test_parity.py has the comparison with it."""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.models.pretrained import load_pretrained, resized_positions
from tests.models.pth_files import NORM_LEAVES, Trap, published, write_pth


@pytest.fixture
def fresh(tiny_model):
    return jax.device_get(jax.jit(tiny_model.init, static_argnums=(1, 2))(jax.random.key(0), 16, 8))


def test_every_backbone_array_comes_from_the_file_and_the_head_stays(fresh, tiny_model, tmp_path):
    params, stats = fresh
    state = published(params, stats)
    assert "layer2.0.downsample.0.weight" in state
    extra = {"fc.weight": np.zeros((3, 8), np.float32), "bn1.num_batches_tracked": np.zeros((), np.int64)}
    save_file({**state, **extra}, tmp_path / "net.safetensors")
    new, new_stats = load_pretrained(tmp_path / "net.safetensors", "tiny", params, stats)
    np.testing.assert_array_equal(
        new["backbone"]["layer2_0"]["conv1"]["kernel"].transpose(3, 2, 0, 1), state["layer2.0.conv1.weight"]
    )
    np.testing.assert_array_equal(new_stats["backbone"]["bn1"]["var"], state["bn1.running_var"])
    for before, after in ((params, new), (stats, new_stats)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(after):
            old = before
            for key in path:
                old = old[key.key]
            assert np.array_equal(old, leaf) == (path[0].key != "backbone"), path


def test_weights_that_do_not_fit_are_listed(fresh, tmp_path):
    state = published(*fresh)
    del state["conv1.weight"]
    state["layer9.0.conv1.weight"] = np.zeros((1, 1, 1, 1), np.float32)
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"missing: params/backbone/conv1/kernel; unexpected: .*layer9_0/conv1/kernel"):
        load_pretrained(tmp_path / "net.safetensors", "tiny", *fresh)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.pth", None, "cannot read weights"),
        ("absent.safetensors", None, "cannot read weights|no readable safetensors"),
        ("bad.safetensors", b"\x00" * 20, "no readable safetensors file"),
        ("bad.pth", b"not a pickle", "no readable PyTorch file"),
    ],
)
def test_files_that_cannot_be_read_are_one_line(name, content, words, fresh, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        load_pretrained(tmp_path / name, "tiny", *fresh)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_files_of_pytorch_are_read(legacy, fresh, tmp_path):
    state = published(*fresh)
    state["conv1.weight"] = np.asfortranarray(state["conv1.weight"])  # strides are part of a tensor
    state["bn1.bias"] = state["bn1.bias"].astype(np.float16)
    write_pth(tmp_path / "net.pth", state, legacy=legacy)
    new, new_stats = load_pretrained(tmp_path / "net.pth", "tiny", *fresh)
    np.testing.assert_array_equal(new["backbone"]["conv1"]["kernel"].transpose(3, 2, 0, 1), state["conv1.weight"])
    np.testing.assert_array_equal(new["backbone"]["bn1"]["bias"], state["bn1.bias"].astype(np.float32))
    np.testing.assert_array_equal(new_stats["backbone"]["layer2_0"]["bn2"]["var"], state["layer2.0.bn2.running_var"])


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("harm", [lambda b: b[: len(b) // 2], lambda b: b[:-9], lambda b: b"", lambda b: b[::-1]])
def test_damaged_files_of_pytorch_are_one_line(harm, legacy, fresh, tmp_path):
    write_pth(tmp_path / "net.pth", published(*fresh), legacy=legacy)
    (tmp_path / "net.pth").write_bytes(harm((tmp_path / "net.pth").read_bytes()))
    with pytest.raises(InputError, match=r"net\.pth are no readable PyTorch file .*download them again") as caught:
        load_pretrained(tmp_path / "net.pth", "tiny", *fresh)
    assert "\n" not in str(caught.value)


def test_a_truncated_safetensors_file_is_one_line(fresh, tmp_path):
    save_file(published(*fresh), tmp_path / "net.safetensors")
    (tmp_path / "net.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:-7])
    with pytest.raises(InputError, match=r"net\.safetensors are no readable safetensors file") as caught:
        load_pretrained(tmp_path / "net.safetensors", "tiny", *fresh)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(legacy, fresh, tmp_path):
    """Although all the weights are in it."""
    write_pth(tmp_path / "trap.pth", {**published(*fresh), "more": Trap(tmp_path / "made")}, legacy=legacy)
    with pytest.raises(InputError, match=r"trap\.pth name \w+\.\w+, which may be code and is not run") as caught:
        load_pretrained(tmp_path / "trap.pth", "tiny", *fresh)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def with_neck(model: Any, out: int) -> tuple[Any, dict[str, np.ndarray], Any]:
    """Fresh variables, and the published ones with the neck of the paper's code around a classifier of `out`."""
    made = jax.device_get(jax.jit(model.init, static_argnums=(1, 2))(jax.random.key(0), 16, 8))
    random = np.random.default_rng(1)
    state = published(*made)
    hidden = made[0]["embedding"]["kernel"].shape[1]
    shapes = {"feat.weight": (hidden, 8), "feat.bias": (hidden,), "classifier.weight": (out, hidden)}
    shapes |= {f"feat_bn.{leaf}": (hidden,) for leaf in NORM_LEAVES.values()} | {"classifier.bias": (out,)}
    neck = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    names = {f"module.base.{name}": value for name, value in state.items()}
    return made, names | {f"module.{name}": value for name, value in neck.items()}, neck


def test_a_checkpoint_of_the_papers_code_brings_its_neck(tiny_model, tmp_path):
    fresh, state, neck = with_neck(tiny_model, 7)
    beside = {"epoch": 3, "best_top1": np.float64(0.5), "args": argparse.Namespace(lr=0.1)}
    write_pth(tmp_path / "best.pth.tar", {"state_dict": state, **beside})
    new, new_stats = load_pretrained(tmp_path / "best.pth.tar", "tiny", *fresh)
    np.testing.assert_array_equal(new["embedding"]["kernel"], neck["feat.weight"].T)
    np.testing.assert_array_equal(new["embedding_bn"]["scale"], neck["feat_bn.weight"])
    np.testing.assert_array_equal(new_stats["embedding_bn"]["mean"], neck["feat_bn.running_mean"])
    np.testing.assert_array_equal(new["classifier"]["kernel"], fresh[0]["classifier"]["kernel"])


def test_a_published_teacher_of_triplets_has_its_second_layer_in_its_classifier(tiny_model, tmp_path):
    model = dataclasses.replace(tiny_model, neck="triplet")
    fresh, state, neck = with_neck(model, tiny_model.embedding_dim)
    write_pth(tmp_path / "best.pth", state)
    new, _ = load_pretrained(tmp_path / "best.pth", "tiny", *fresh)
    np.testing.assert_array_equal(new["embedding_out"]["kernel"], neck["classifier.weight"].T)
    np.testing.assert_array_equal(new["embedding_out"]["bias"], neck["classifier.bias"])
    np.testing.assert_array_equal(new["classifier"]["kernel"], fresh[0]["classifier"]["kernel"])
    write_pth(tmp_path / "half.pth", {name: value for name, value in state.items() if "classifier" not in name})
    with pytest.raises(InputError, match="missing: params/embedding_out/bias, params/embedding_out/kernel"):
        load_pretrained(tmp_path / "half.pth", "tiny", *fresh)


def test_positions_are_resized_without_a_shift():
    side, channels = 6, 2
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    table = np.concatenate([np.zeros((1, channels)), np.stack([rows, columns], -1).reshape(-1, channels)])[None]
    assert resized_positions(table, (side, side)) is table
    tall = resized_positions(table.astype(np.float32), (12, 6))[0, 1:].reshape(12, 6, 2)
    inner = tall[3:9, 2:4, 0]
    scale = 12.1 / 6
    expected = (np.arange(3, 9) + 0.5) / scale - 0.5
    difference = inner - np.repeat(expected[:, None], 2, axis=1)
    assert np.abs(difference).max() < 0.06, "cubic convolution with a = -0.75 keeps lines to a twentieth"
    assert abs(difference.mean()) < 0.01
    with pytest.raises(InputError, match="no class token and a square"):
        resized_positions(np.zeros((1, 8, 2), np.float32), (2, 2))
