"""Published weights under our names, without PyTorch; tests/models/test_parity.py has the comparison with it."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.models.pretrained import load_pretrained, resized_positions

_LEAVES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def published(params, batch_stats):
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
                state[f"{name}.{_LEAVES[last]}"] = value
    return state


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
