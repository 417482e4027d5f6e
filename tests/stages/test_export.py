"""The export stage: what it compares, what it allows, and what it leaves behind."""

import dataclasses
import json
import types
from typing import Any

import jax
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.inputs import InputSpec
from rgbd_reid_jax.evaluation.embed import Encoder
from rgbd_reid_jax.export import check
from rgbd_reid_jax.stages import export
from rgbd_reid_jax.stages.workdir import Workdir


@pytest.mark.parametrize(
    ("dtype", "largest", "allowed"),
    [("float32", 0.2, 1e-4), ("float32", -30.0, 3e-3), ("bfloat16", 1.0, 2e-2), ("bfloat16", 5.0, 0.1)],
)
def test_tolerance_follows_scale_and_dtype(dtype, largest, allowed):
    embeddings = np.array([[0.1, largest]], np.float32)
    assert export.tolerance(dtype, embeddings) == pytest.approx(allowed)


def make_job(workdir: Workdir, model: Any, frames: Any, dtype: str = "float32") -> Any:
    """A job with an RGB encoder that has just been initialised, un-normalised and 30 times as large."""
    model = dataclasses.replace(model.without_classifier(), compute_dtype=dtype)
    params, batch_stats = jax.jit(model.init, static_argnums=(1, 2))(jax.random.key(0), 16, 8)
    params = params | {"embedding_bn": jax.tree.map(lambda leaf: 30.0 * leaf, params["embedding_bn"])}
    settings = types.SimpleNamespace(
        method="distillation",
        encoders={"rgb": "student"},
        evaluation=types.SimpleNamespace(splits=("test",)),
        export=types.SimpleNamespace(platforms=("cpu", "tpu")),
    )
    encoder = Encoder(model, InputSpec(16, 8, "relative"), "rgb", normalise=False)
    return types.SimpleNamespace(
        settings=settings,
        workdir=workdir,
        trained=lambda _: (params, batch_stats),
        trained_encoder=lambda *_: (params, batch_stats),
        frames_of=lambda *_: frames,
        encoder=lambda *_: encoder,
        dataset=types.SimpleNamespace(info=types.SimpleNamespace(full_name="people/1.0.0")),
    )


@pytest.fixture
def workdir(tmp_path):
    """A workdir whose evaluation stage is done."""
    with Workdir(tmp_path) as workdir:
        workdir.finish("evaluation", 1.0)
        workdir.results.write_text(json.dumps({"results": {"rgb_to_depth": {"mAP": 0.5}}}))
        yield workdir


def exported(workdir: Workdir) -> list[str]:
    return sorted(path.name for path in workdir.export.glob("*"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_embeddings_pass_and_the_card_tells_of_the_check(workdir, tiny_model, tiny_frames, dtype, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")  # not for the child, which must not open an accelerator
    export.run_export(make_job(workdir, tiny_model, tiny_frames, dtype))
    assert exported(workdir) == ["rgb.json", "rgb.stablehlo"]
    assert not workdir.scratch.exists()
    card = json.loads((workdir.export / "rgb.json").read_text())
    assert card["check"]["max_abs_difference"] <= card["check"]["tolerance"]
    assert card["check"]["tolerance"] > {"float32": 1e-4, "bfloat16": 2e-2}[dtype]
    assert card["results"] == {"rgb_to_depth": {"mAP": 0.5}}
    check.load_encoder(workdir.export / "rgb.json")


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_a_program_that_differs_is_not_left(workdir, tiny_model, tiny_frames, monkeypatch, difference):
    workdir.export.mkdir()
    for name in ("rgb.json", "rgb.stablehlo"):
        (workdir.export / name).write_text("of an earlier run")
    monkeypatch.setattr(export, "_compare", lambda *_: {"max_abs_difference": difference})
    with pytest.raises(InputError, match="the exported rgb encoder differs from the live model"):
        export.run_export(make_job(workdir, tiny_model, tiny_frames))
    assert exported(workdir) == []


def test_export_needs_results(workdir, tiny_model, tiny_frames):
    workdir.reopen("evaluation")
    with pytest.raises(InputError, match="stage evaluation is not done"):
        export.run_export(make_job(workdir, tiny_model, tiny_frames))


def test_a_process_without_a_cpu_backend_is_told_so(monkeypatch):
    def none(backend: str):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    with pytest.raises(InputError, match="JAX_PLATFORMS=tpu leaves out; add ',cpu'"):
        export.cpu_device()


def test_a_program_that_answers_nan_is_found(tmp_path, monkeypatch):
    np.savez(tmp_path / "inputs.npz", rgb=np.zeros((3, 2)), embedding=np.zeros((3, 2), np.float32))
    (tmp_path / "rgb.json").write_text(json.dumps({"outputs": {"embedding": {"shape": ["batch", 2]}}}))
    nan = lambda images: {"embedding": np.full((len(images["rgb"]), 2), np.nan)}  # noqa: E731
    monkeypatch.setattr(check, "load_encoder", lambda _: nan)
    found = check.largest_difference(tmp_path / "rgb.json", tmp_path / "inputs.npz")
    assert str(found["max_abs_difference"]) == "nan"
