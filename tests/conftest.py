"""What every test shares: eight fake CPU devices, strict JAX, a home of its own, and a tiny network."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

# All of this must precede the first import of JAX, Grain or TFDS, which read it at import time.
_HOME = tempfile.mkdtemp(prefix="rgbd_reid_jax_tests_")
os.environ["HOME"] = _HOME
os.environ["TFDS_DATA_DIR"] = os.path.join(_HOME, "tensorflow_datasets")


def _quick_compilation() -> str:
    """XLA's flags for it, tried once in a process of its own, as XLA ends where it knows a flag no more.

    Compilation takes most of the time here. Without LLVM's optimisations it takes a third of it, and with XLA's older
    way to make loops of fused operations half of that.
    """
    if "RGBD_REID_TEST_FLAGS" not in os.environ:  # workers inherit it
        flags = "--xla_backend_optimization_level=0"
        older = f"{flags} --xla_cpu_use_fusion_emitters=false"
        trial = [sys.executable, "-c", "import jax; jax.devices()"]
        env = {**os.environ, "XLA_FLAGS": older, "JAX_PLATFORMS": "cpu"}
        known = subprocess.run(trial, env=env, capture_output=True, check=False).returncode == 0
        os.environ["RGBD_REID_TEST_FLAGS"] = older if known else flags
    return os.environ["RGBD_REID_TEST_FLAGS"]


# What one test compiled, another loads; workers and the commands that tests start share the folder.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(_HOME, "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
_FLAGS = f"--xla_force_host_platform_device_count=8 {_quick_compilation()}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

from rgbd_reid_jax.core.mesh import make_mesh  # noqa: E402
from rgbd_reid_jax.data.frames import IMAGES, LABELS, CachedFrames  # noqa: E402
from rgbd_reid_jax.data.records import Records  # noqa: E402
from rgbd_reid_jax.models.network import Model  # noqa: E402
from tfds_builders import schema  # noqa: E402
from tfds_builders.synthetic_rgbd.store import encode_png  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts jobs in the background with SIGINT ignored, and children inherit that; tests send it on purpose.
    signal.signal(signal.SIGINT, signal.default_int_handler)
flags.FLAGS.mark_as_parsed()  # Grain reads its flags


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: at the end one of them would keep one worker busy and leave the others idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_unconfigure():
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The repository's root."""
    return pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def job_env(repository, tiny_data_dir) -> dict[str, str]:
    """The environment of whole jobs in processes of their own: one CPU device, the tiny dataset, quick compilation."""
    return os.environ | {
        "XLA_FLAGS": _quick_compilation(),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TFDS_DATA_DIR": str(tiny_data_dir),
        "PYTHONPATH": str(repository),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="session")
def mesh_of():
    """Meshes over the first `count` of the eight fake devices."""

    def make(count: int, fsdp: int = 1) -> jax.sharding.Mesh:
        return make_mesh(fsdp, jax.devices()[:count])

    return make


@pytest.fixture(scope="session")
def too_large():
    """A function of any arguments that wants more memory than a process can have."""
    return lambda *_, **__: jax.block_until_ready(jnp.zeros(1 << 47, jnp.uint8))


@pytest.fixture(scope="module")
def tiny_model():
    """A network of two residual blocks and 8-d embeddings that compiles in a second; for inputs of 16x8."""
    return Model("tiny", embedding_dim=8, dropout=0.0, num_identities=4)


def random_records(count: int, height: int = 16, width: int = 8) -> list[dict[str, np.ndarray]]:
    """Frames as a TFDS data source gives them: four people who differ in colour and in depth."""
    random = np.random.default_rng(7)
    records = []
    for index in range(count):
        person = index % 4
        record = dict.fromkeys(LABELS, np.int32(0))
        record |= {"person_id": np.int32(10 + 5 * person), "camera_id": np.int32(index // 4 % 2)}
        record |= {"recording_id": np.int32(index // 4), "frame_id": np.int32(index), "clothes_id": np.int32(person)}
        record["modalities"] = np.int32(3)
        rgb = random.integers(0, 60, (height, width, 3))
        rgb[:, person * width // 4 : (person + 1) * width // 4] += 180
        depth = random.integers(2000, 2100, (height, width, 1))
        depth[person * height // 4 : (person + 1) * height // 4] += 400
        depth[0, 0] = 0
        mask = np.zeros((height, width, 1))
        mask[2:-2, 2:-2] = 255
        images = zip(IMAGES, (rgb, depth, mask), (np.uint8, np.uint16, np.uint8), strict=True)
        records.append(record | {name: image.astype(dtype) for name, image, dtype in images})
    return records


@pytest.fixture(scope="session")
def make_records():
    """`random_records`, for tests that need the data source itself."""
    return random_records


def serialized(record: dict[str, Any], **encoded: bytes) -> bytes:
    """A record as builders write it; `encoded` has images that replace its own."""
    features: Any = schema.frame_features()
    images = {name: encode_png(np.squeeze(record[name])) for name in IMAGES}
    unused = {
        name: "" if np.dtype(spec.np_dtype).hasobject else np.zeros(spec.shape, spec.np_dtype)
        for name, spec in features.items()
        if name not in (*record, *IMAGES)
    }
    return features.serialize_example(unused | record | images | encoded)


class Source(list):
    """Serialized records as a TFDS data source, which also reads many at a time."""

    def __getitems__(self, keys: Any) -> list[bytes]:
        return [self[key] for key in keys]


def frames_of(records: list[dict[str, Any]], kind: Any = CachedFrames) -> Any:
    """Records as frames."""
    return kind(Records(Source(map(serialized, records)), "people/quick/1.0.0 train"))


def random_frames(*size: int, kind: Any = CachedFrames) -> Any:
    """`random_records(*size)` as frames."""
    return frames_of(random_records(*size), kind)


@pytest.fixture(scope="session")
def make_source():
    """Records, as `make_records` gives them, as a data source."""
    return lambda records: Source(map(serialized, records))


@pytest.fixture(scope="session")
def serialize():
    """`serialized`, for tests that need records with other images."""
    return serialized


@pytest.fixture(scope="session")
def as_frames():
    """`frames_of`: records, as `make_records` gives them, as frames."""
    return frames_of


@pytest.fixture(scope="session")
def make_frames():
    """`random_frames`, for tests that need another number or size."""
    return random_frames


@pytest.fixture(scope="session")
def tiny_frames() -> CachedFrames:
    """24 frames of 16x8 pixels, four people."""
    return random_frames(24)


@pytest.fixture(scope="session")
def tiny_data_dir(tmp_path_factory) -> pathlib.Path:
    """A TFDS data folder with synthetic_rgbd/tiny, built once for all pytest workers; read only."""
    from tfds_builders.synthetic_rgbd.synthetic_rgbd_dataset_builder import prepare

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tfds"
    prepare("tiny", folder)  # takes a lock of its own: the other workers wait, then reuse
    return folder
