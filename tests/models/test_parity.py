"""Forward parity with PyTorch itself on the same random weights, through the weight files that PyTorch writes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

torch = pytest.importorskip("torch")

from rgbd_reid_jax.core.errors import InputError  # noqa: E402
from rgbd_reid_jax.models.batch_norm import NormMode  # noqa: E402
from rgbd_reid_jax.models.network import Model  # noqa: E402
from rgbd_reid_jax.models.pretrained import load_pretrained, renamed  # noqa: E402
from rgbd_reid_jax.models.resnet import PARTS, RESNETS, ResNet  # noqa: E402
from rgbd_reid_jax.models.vit import VITS, ViT, ViTSpec  # noqa: E402
from tests.models import torch_networks as networks  # noqa: E402


def randomised(network):
    """Random weights and statistics.

    Branches are weak, as in trained networks: with strong ones random networks amplify rounding, and PyTorch in float32
    is itself 3e-4 from PyTorch in float64 at a ResNet-50's third stage.
    """
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            for tensor, low, high in (
                (module.weight, 0.5, 1.0),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                torch.nn.init.uniform_(tensor, low, high)
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    for module in network.modules():
        if isinstance(module, networks.Block):
            torch.nn.init.uniform_(getattr(module, f"bn{module.count}").weight, 0.1, 0.3)
    return network


def images(height, width, batch=2):
    return np.random.default_rng(1).normal(size=(batch, height, width, 3)).astype(np.float32)


def to_torch(x):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def loaded(model, network, path, height, width):
    """Our parameters with the network's, by way of a file."""
    torch.save(network.state_dict(), path)
    params, stats = jax.eval_shape(lambda: model.init(jax.random.key(0), height, width))
    params, stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), (params, stats))
    return load_pretrained(path, model.backbone, params, stats, grid=model.patch_grid(height, width))


@pytest.mark.parametrize("train", [False, True], ids=["running", "batch"])
@pytest.mark.parametrize(
    ("name", "last_stride"),
    [
        ("resnet18", 2),
        ("resnet50", 1),
        pytest.param("resnet34", 1, marks=pytest.mark.slow),
        pytest.param("resnet101", 2, marks=pytest.mark.slow),
    ],
)
def test_every_stage_of_a_resnet_agrees(name, last_stride, train, tmp_path):
    """The stem's map, those of the four stages, and every running statistic."""
    theirs = randomised(networks.ResNet(name, last_stride)).train(train)
    params, stats = loaded(Model(name), theirs, tmp_path / "net.pth", 256, 128)
    x = images(256, 128)
    module = ResNet(RESNETS[name], last_stride)

    @jax.jit
    def ours(params, stats, x):
        maps = []
        for part in range(PARTS):
            variables = {"params": params, "batch_stats": stats}
            x, state = module.apply(variables, x, NormMode(train), part, part + 1, mutable=["batch_stats"])
            maps, stats = [*maps, x], state["batch_stats"]
        return maps, stats

    maps, updated = ours(params["backbone"], stats["backbone"], jnp.asarray(x))
    before, counts = {name: value.clone() for name, value in theirs.state_dict().items()}, {}
    for path, layer in theirs.named_modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_hook(
                lambda _, inputs, __, path=path: counts.update({path: inputs[0].numel() // inputs[0].shape[1]})
            )
    with torch.no_grad():
        expected = [stage.numpy().transpose(0, 2, 3, 1) for stage in theirs.stages(to_torch(x))]
    for part, (one, other) in enumerate(zip(maps, expected, strict=True)):
        assert np.abs(other).max() > 0.5, "the comparison would be of zeros"
        assert np.abs(one - other).max() < 1e-4, f"part {part}"
    after = dict(theirs.state_dict())
    for path, count in counts.items():  # ours are of the batch, theirs unbiased (`batch_norm`)
        kept = 0.9 * before[f"{path}.running_var"] if train else after[f"{path}.running_var"]
        after[f"{path}.running_var"] = kept + (after[f"{path}.running_var"] - kept) * (count - 1) / count
    wanted, _ = renamed({path: value.numpy() for path, value in after.items()}, name)
    found: Any = traverse_util.flatten_dict(updated, sep="/")
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, wanted[f"batch_stats/backbone/{path}"], rtol=1e-4, atol=1e-5, err_msg=path)


def test_a_published_teacher_of_triplets_gives_its_embeddings(tmp_path):
    theirs = randomised(networks.OpenReid("resnet18", 1024, 16)).eval()
    torch.save(theirs.state_dict(), tmp_path / "best.pth")
    model = Model("resnet18", embedding_dim=16, neck="triplet")
    params, stats = jax.device_get(jax.jit(model.init, static_argnums=(1, 2))(jax.random.key(0), 64, 32))
    params, stats = load_pretrained(tmp_path / "best.pth", "resnet18", params, stats)
    x = images(64, 32, 3)
    with torch.no_grad():
        expected = theirs.classifier(theirs(to_torch(x))).numpy()
    ours = jax.jit(model.embed)(params, stats, jnp.asarray(x))
    assert np.abs(expected).max() > 0.1
    assert np.abs(np.asarray(ours) - expected).max() < 1e-4


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_checkpoint_of_the_papers_code_gives_its_embeddings(legacy, tmp_path):
    theirs = randomised(networks.OpenReid("resnet18", 16, 7)).eval()
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    checkpoint = {"state_dict": state, "epoch": 3, "best_top1": np.float64(0.5)}
    torch.save(checkpoint, tmp_path / "best.pth.tar", _use_new_zipfile_serialization=not legacy)
    model = Model("resnet18", embedding_dim=16, num_identities=4)
    params, stats = jax.device_get(jax.jit(model.init, static_argnums=(1, 2))(jax.random.key(0), 64, 32))
    new_params, new_stats = load_pretrained(tmp_path / "best.pth.tar", "resnet18", params, stats)
    np.testing.assert_array_equal(new_params["classifier"]["kernel"], params["classifier"]["kernel"])
    x = images(64, 32, 3)
    with torch.no_grad():
        expected = theirs(to_torch(x)).numpy()
    ours = jax.jit(model.embed)(new_params, new_stats, jnp.asarray(x))
    assert np.abs(expected).max() > 0.1
    assert np.abs(np.asarray(ours) - expected).max() < 1e-4
    # And with the batch's statistics, of which the neck's batch norm sees as many values as the batch has images.
    x = images(64, 32, 16)
    with torch.no_grad():
        expected = theirs.train()(to_torch(x)).numpy()
    output, _ = jax.jit(model.train)(new_params, new_stats, jnp.asarray(x), jax.random.key(0))
    assert np.abs(expected).max() > 0.1
    assert np.abs(np.asarray(output.embedding) - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "spec", "side", "height", "width"),
    [
        ("tiny14", (2, 24, 3), 5, 112, 56),
        pytest.param("vit_small14", (12, 384, 6), 37, 252, 126, marks=pytest.mark.slow),  # DINOv2's, near 256x128
    ],
)
def test_a_vision_transformer_agrees_at_another_size_than_it_learned(
    name, spec, side, height, width, tmp_path, monkeypatch
):
    if name not in VITS:
        monkeypatch.setitem(VITS, name, ViTSpec(*spec))
    torch.manual_seed(0)
    depth, tokens, heads = spec
    theirs = networks.ViT(depth, tokens, heads, 14, side).eval()
    model = Model(name, pool="cls")
    params, _ = loaded(model, theirs, tmp_path / "net.pth", height, width)
    x = images(height, width)
    token, patches = jax.jit(lambda p, x: ViT(VITS[name]).apply({"params": p}, x))(params["backbone"], x)
    with torch.no_grad():
        expected = theirs(to_torch(x)).numpy()
    assert np.abs(token - expected[:, 0]).max() < 1e-4
    assert np.abs(np.asarray(patches).reshape(expected[:, 1:].shape) - expected[:, 1:]).max() < 1e-4


def test_safetensors_are_read_as_well(tmp_path):
    from safetensors.numpy import save_file

    theirs = randomised(networks.ResNet("resnet18")).eval()
    save_file({name: value.numpy() for name, value in theirs.state_dict().items()}, tmp_path / "net.safetensors")
    params, stats = jax.eval_shape(lambda: Model("resnet18").init(jax.random.key(0), 64, 32))
    params, stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), (params, stats))
    params, stats = load_pretrained(tmp_path / "net.safetensors", "resnet18", params, stats)
    ours = params["backbone"]["layer2_0"]["downsample_conv"]["kernel"]
    np.testing.assert_array_equal(ours[0, 0].T, theirs.state_dict()["layer2.0.downsample.0.weight"][:, :, 0, 0])


def test_every_missing_unknown_and_misshapen_name_is_listed(tmp_path):
    theirs = networks.ResNet("resnet18")
    state = theirs.state_dict()
    del state["layer3.1.bn2.weight"], state["conv1.weight"]
    state |= {"layer5.0.conv1.weight": torch.zeros(1), "strange": torch.zeros(1), "bn1.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "net.pth")
    params, stats = jax.eval_shape(lambda: Model("resnet18").init(jax.random.key(0), 64, 32))
    params, stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), (params, stats))
    with pytest.raises(InputError) as caught:
        load_pretrained(tmp_path / "net.pth", "resnet18", params, stats)
    for words in (
        "missing: params/backbone/conv1/kernel, params/backbone/layer3_1/bn2/scale",
        "unexpected: strange, params/backbone/layer5_0/conv1/kernel",
        "params/backbone/bn1/scale [3] instead of [64]",
    ):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("harm", [lambda b: b[:1000], lambda b: b"", lambda b: b"PK" + b[2:500], lambda b: b[::-1]])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_one_line(harm, legacy, tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "a.pth").write_bytes(harm((tmp_path / "a.pth").read_bytes()))
    with pytest.raises(InputError, match=r"a\.pth .*download") as caught:
        load_pretrained(tmp_path / "a.pth", "resnet18", {}, {})
    assert "\n" not in str(caught.value)
