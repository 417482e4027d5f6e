"""One frame's pixels depend on its name alone: not on company, batch, instruction set or compiler effort."""

import hashlib
import os
import pathlib
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from tfds_builders.synthetic_rgbd import store
from tfds_builders.synthetic_rgbd.config import custom_config, named_config

DIGEST = """
import hashlib, os
import numpy as np
from numpy._core._multiarray_umath import __cpu_features__
off = os.environ.get("NPY_DISABLE_CPU_FEATURES", "").split()
assert not any(__cpu_features__[name] for name in off), f"still on: {off}"
from tfds_builders.synthetic_rgbd import store
from tfds_builders.synthetic_rgbd.config import named_config
chunk = store.render_arrays(named_config("tiny"), "test", np.arange(4))[1]
print(hashlib.sha256(b"".join(image.tobytes() for image in chunk)).hexdigest())
"""


@pytest.fixture(scope="module")
def everyone():
    return store.render_arrays(named_config("tiny"), "test", np.arange(4))


def _digest_elsewhere(**environment: str) -> subprocess.Popen:
    root = pathlib.Path(__file__).parents[2]
    # Neither the tests' compiler flags nor their compilation cache: each process runs code that it compiled itself.
    unset = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    variables = {k: v for k, v in os.environ.items() if k not in unset} | {"PYTHONPATH": str(root)} | environment
    return subprocess.Popen([sys.executable, "-c", DIGEST], env=variables, stdout=subprocess.PIPE, text=True)


def test_instruction_sets_and_compiler_effort_do_not_change_a_byte(everyone):
    here = hashlib.sha256(b"".join(image.tobytes() for image in everyone[1])).hexdigest()
    used = [name for name in __cpu_dispatch__ if __cpu_features__[name]]  # what NumPy chooses at run time, here
    old = {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2", "NPY_DISABLE_CPU_FEATURES": " ".join(used)}
    runs = [_digest_elsewhere(), _digest_elsewhere(**old)]
    digests = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert digests == [here, here]


def test_company_and_batches_do_not_change_a_byte(everyone):
    frames, images = everyone
    _, alone = store.render_arrays(named_config("tiny"), "test", np.array([2]), batch=3)
    mine = frames.labels["person_id"] == frames.labels["person_id"][0] + 2
    assert mine.sum() == len(alone.rgb) == 8
    for name in store.IMAGES:
        assert np.array_equal(getattr(images, name)[mine], getattr(alone, name)), name


def test_frames_differ(everyone):
    _, images = everyone
    for image in images:
        flat = image.reshape(len(image), -1)
        assert len(np.unique(flat, axis=0)) == len(image)


def test_another_seed_gives_other_pixels(everyone):
    _, other = store.render_arrays(custom_config("tiny", seed=2), "test", np.arange(4))
    assert not np.any(np.all(other.mask == everyone[1].mask, axis=(1, 2)))


def test_png_holds_the_pixels(everyone):
    _, images = everyone

    def decoded(image) -> Any:
        return cv2.imdecode(np.frombuffer(store.encode_png(image), np.uint8), cv2.IMREAD_UNCHANGED)

    depth = decoded(images.depth[0])
    assert depth.dtype == np.uint16
    assert np.array_equal(depth, images.depth[0])
    rgb = decoded(images.rgb[0])
    assert np.array_equal(rgb[..., ::-1], images.rgb[0])
