"""Exported encoders: the live model's answers at any batch size, and refusal of a tampered program."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.inputs import InputSpec
from rgbd_reid_jax.data.representation import DEPTH_REPRESENTATIONS
from rgbd_reid_jax.evaluation.embed import RAW_IMAGES, Encoder
from rgbd_reid_jax.export import check
from rgbd_reid_jax.export.stablehlo import export_encoder
from rgbd_reid_jax.models.pair import GateSpec, Pair

_ROWS = 5


@pytest.fixture(scope="module")
def frames(make_frames):
    """Raw frames of 20x12 pixels: the program resizes them to the network's 16x8."""
    return make_frames(_ROWS, 20, 12)


def made_encoder(model, modality, representation="relative"):
    """(encoder, parameters, batch statistics)."""
    encoder = Encoder(model.without_classifier(), InputSpec(16, 8, representation), modality, normalise=True)
    return encoder, *jax.jit(encoder.model.init, static_argnums=(1, 2))(jax.random.key(0), 16, 8)


@pytest.fixture(scope="module", params=["rgb", "depth"])
def exported(request, tiny_model, frames, tmp_path_factory):
    """(modality, card's path, raw images, the live model's embeddings)."""
    modality = request.param
    encoder, params, batch_stats = made_encoder(tiny_model, modality)
    folder = tmp_path_factory.mktemp(modality)
    card = export_encoder(encoder, params, batch_stats, (20, 12), folder, ("cpu", "tpu"), {"dataset": "people"})
    images = frames.gather(np.arange(_ROWS), RAW_IMAGES[modality])
    live = np.asarray(jax.jit(encoder)(params, batch_stats, images))
    np.savez(folder / "inputs.npz", embedding=live, **images)
    return modality, card, images, live


def test_the_card_describes_the_program(exported):
    modality, card, images, live = exported
    content = json.loads(card.read_text())
    assert card.name == f"{modality}.json"
    assert content["program"] == f"{modality}.stablehlo"
    assert content["modality"] == modality
    assert content["dataset"] == "people"
    assert content["platforms"] == ["cpu", "tpu"]
    assert content["schema"] == 2
    assert content["outputs"] == {"embedding": {"shape": ["batch", live.shape[1]], "dtype": "float32"}}
    assert content["colour"] == ("rgb" if modality == "rgb" else None)
    assert content["depth_representation"] == (None if modality == "rgb" else "relative")
    assert set(content["inputs"]) == set(images)
    for name, image in images.items():
        assert content["inputs"][name]["dtype"] == image.dtype.name
        assert content["inputs"][name]["shape"] == ["batch", *image.shape[1:]]
    assert "unit vectors" in content["distance"]


@pytest.mark.parametrize("representation", DEPTH_REPRESENTATIONS)
def test_the_card_says_what_a_missing_mask_means(tiny_model, frames, tmp_path, representation):
    encoder, params, batch_stats = made_encoder(tiny_model, "depth", representation)
    card = export_encoder(encoder, params, batch_stats, (20, 12), tmp_path, ("cpu",), {})
    meaning = json.loads(card.read_text())["inputs"]["mask"]["meaning"]
    images = frames.gather(np.arange(_ROWS), RAW_IMAGES["depth"])
    encode = check.load_encoder(card)
    without = encode(images | {"mask": np.zeros_like(images["mask"])})["embedding"]
    assert ("does not use it" in meaning) == np.allclose(without, encode(images)["embedding"], atol=1e-6)
    assert ("needed" in meaning) == np.allclose(without, without[:1], atol=1e-6)  # all people look alike
    assert ("where no mask is known" in meaning) == (representation == "relative")


def test_the_program_answers_as_the_live_model_at_any_batch_size(exported):
    _, card, images, live = exported
    encode = check.load_encoder(card)
    for size in (1, 2, _ROWS):
        found = encode({name: rows[:size] for name, rows in images.items()})
        assert set(found) == {"embedding"}
        np.testing.assert_allclose(found["embedding"], live[:size], atol=1e-5)
    twice = encode({name: np.concatenate([rows, rows]) for name, rows in images.items()})["embedding"]
    np.testing.assert_allclose(twice, np.concatenate([live, live]), atol=1e-5)


def gated(model, kind):
    """(encoder with a trained gate, parameters, batch statistics)."""
    encoder, params, batch_stats = made_encoder(model, "rgb")
    gate: Any = Pair(encoder.model, GateSpec(kind, rank=2, after=1)).gate_of()
    random = np.random.default_rng(0)
    params["gate"] = jax.tree.map(
        lambda x: random.normal(0, 0.5, x.shape).astype(np.float32), gate.init(jax.random.key(0))
    )
    return dataclasses.replace(encoder, gate=gate), params, batch_stats


def test_a_pairwise_gate_is_a_second_output(tiny_model, frames, tmp_path):
    encoder, params, batch_stats = gated(tiny_model, "pairwise")
    card = export_encoder(encoder, params, batch_stats, (20, 12), tmp_path, ("cpu",), {})
    content = json.loads(card.read_text())
    assert content["outputs"] == {name: {"shape": ["batch", 8], "dtype": "float32"} for name in ("embedding", "gate")}
    assert "metric `gated`" in content["distance"]
    images = frames.gather(np.arange(_ROWS), RAW_IMAGES["rgb"])
    live = jax.device_get(jax.jit(encoder.outputs)(params, batch_stats, images))
    found = check.load_encoder(card)(images)
    assert set(found) == set(live) == {"embedding", "gate"}
    assert np.ptp(found["gate"]) > 0.1
    for name, values in live.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)
    np.savez(tmp_path / "inputs.npz", **images, **live)
    assert check.largest_difference(card, tmp_path / "inputs.npz")["max_abs_difference"] == pytest.approx(0, abs=1e-5)
    live["gate"] = live["gate"] + np.float32(0.25)  # a difference of any output counts
    np.savez(tmp_path / "inputs.npz", **images, **live)
    difference = check.largest_difference(card, tmp_path / "inputs.npz")["max_abs_difference"]
    assert difference == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("none", "unit vectors, that is 2 - 2 cosine"), ("self", "squared Euclidean"), ("middle", "without the gate")],
)
def test_programs_without_a_pairwise_gate_give_embeddings_alone(tiny_model, tmp_path, kind, words):
    if kind == "none":
        encoder, params, batch_stats = made_encoder(tiny_model, "rgb")
    else:
        encoder, params, batch_stats = gated(tiny_model, kind)
    card = export_encoder(encoder, params, batch_stats, (20, 12), tmp_path, ("cpu",), {})
    content = json.loads(card.read_text())
    assert set(content["outputs"]) == {"embedding"}
    assert words in content["distance"]
    assert ("unit vectors" in content["distance"]) == (kind != "self")  # gated embeddings have any length


def test_largest_difference(exported, tmp_path):
    _, card, images, live = exported
    found = check.largest_difference(card, card.with_name("inputs.npz"))
    assert found["rows"] == _ROWS
    assert found["batch_sizes"] == [5, 3, 1]
    assert found["max_abs_difference"] == pytest.approx(0, abs=1e-5)
    other = live.copy()
    other[2, 1] += 0.5  # within the batches of five and three
    np.savez(tmp_path / "inputs.npz", embedding=other, **images)
    assert check.largest_difference(card, tmp_path / "inputs.npz")["max_abs_difference"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"), lambda p: p.unlink()])
def test_a_tampered_or_missing_program_is_refused(exported, tmp_path, change, capsys):
    _, card, _, _ = exported
    for path in card.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copy = tmp_path / card.name
    change(copy.with_suffix(".stablehlo"))
    with pytest.raises(InputError, match="is missing or not the program of") as caught:
        check.load_encoder(copy)
    assert str(copy.with_suffix(".stablehlo")) in str(caught.value)
    assert check.main([str(copy), str(tmp_path / "inputs.npz")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_prints_one_json_line(exported, capsys):
    _, card, _, _ = exported
    assert check.main([str(card), str(card.with_name("inputs.npz"))]) == 0
    assert json.loads(capsys.readouterr().out)["max_abs_difference"] < 1e-5


@pytest.mark.parametrize("name", ["none.json", "none.npz"])
def test_a_missing_file_is_named(exported, capsys, name):
    _, card, _, _ = exported
    arguments = [str(card.with_name("none.json")), "x"] if name == "none.json" else [str(card), "none.npz"]
    assert check.main(arguments) == 2
    assert name in capsys.readouterr().err


def test_usage(repository):
    command = [sys.executable, "-m", "rgbd_reid_jax.export.check", "only-one.json"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
    assert found.returncode == 2
    assert found.stderr == "usage: python -m rgbd_reid_jax.export.check CARD.json INPUTS.npz\n"
    assert found.stdout == ""
