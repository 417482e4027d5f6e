"""A recorded dataset of drawn frames, each of which can be given any fault."""

import pathlib
import types
from typing import Any, ClassVar

import numpy as np
import pytest

from rgbd_reid_jax.data import dataset
from tfds_builders import knobs
from tfds_builders.recorded import builder as recorded
from tfds_builders.recorded.frames import SPLITS, Frame, Scan
from tfds_builders.recorded.images import encode_png

HEIGHT, WIDTH = 32, 16


def images_of(seed: int) -> dict[str, np.ndarray]:
    """Colour, depth and mask of a person 2 m away, before a wall at 3 m; no two seeds give equal images."""
    random = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:28, 5:11] = 255
    depth = np.where(mask > 0, 2000, 3000) + random.integers(0, 50, (HEIGHT, WIDTH))
    rgb = random.integers(0, 256, (HEIGHT, WIDTH, 3))
    return {"rgb": rgb.astype(np.uint8), "depth": depth.astype(np.uint16), "mask": mask}


def read(root: pathlib.Path, frame: Frame, knob_values: dict[str, Any]) -> dict[str, Any]:
    """The images of a frame's number, but for what its `extra` puts in their place: arrays, or the bytes of a file."""
    images: dict[str, Any] = images_of(int(frame.file[:-4])) | {
        name: value for name, value in frame.extra.items() if name in ("rgb", "depth", "mask")
    }
    encoded = {name: one if isinstance(one, bytes) else encode_png(one) for name, one in images.items()}
    where = {"person_box": np.zeros(4, np.float32), "intrinsics": np.zeros(4, np.float32)}
    return {**encoded, **where, "modalities": frame.extra.get("modalities", 3)}


class People(recorded.RecordedBuilder, skip_registration=True):
    """Frames are given, not found; the tree's files say only which tree it is."""

    name = "people"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Draw them and say --manual_dir."
    BUILDER_CONFIGS: ClassVar = [
        recorded.RecordedConfig(name="all", description="All people."),
        recorded.RecordedConfig(name="few", description="Few people."),
    ]
    read = staticmethod(read)
    given = Scan({})

    def scan(self, root: pathlib.Path, paths: list[str]) -> Scan:
        return self.given


def people(cameras: int = 2, frames: int = 3) -> dict[str, list[Frame]]:
    """Per split two people before each camera; the files are numbered through: 0.png, 1.png, ..."""
    found: dict[str, list[Frame]] = {}
    number = 0
    for place, split in enumerate(SPLITS):
        found[split] = []
        for person in (2 * place, 2 * place + 1):
            for camera in range(cameras):
                for frame_id in range(frames):
                    ids = (person, camera, 10 * person + camera, frame_id)
                    found[split].append(Frame(*ids, rgb=f"{number}.png", clothes_id=person))
                    number += 1
    return found


class _Module:
    """What the registry takes a builder's module for."""

    Builder = People

    @staticmethod
    def config_of(name: str, overrides: dict[str, Any]) -> Any:
        return knobs.custom_config(People.BUILDER_CONFIGS, "people", name, overrides)

    @staticmethod
    def prepare(config: Any, data_dir: Any, manual_dir: Any = None, *, workers: int = 0) -> Any:
        return recorded.prepare(People, config, data_dir, manual_dir, workers=workers)


@pytest.fixture
def registry(monkeypatch):
    """The registry with the dataset "people" in it, and what a test may change: `given`, `people`, `images_of`."""
    original = dataset.builder_module
    monkeypatch.setattr(dataset, "DATASETS", (*dataset.DATASETS, "people"))
    monkeypatch.setattr(dataset, "builder_module", lambda name: _Module if name == "people" else original(name))

    def give(frames: dict[str, list[Frame]], **more: Any) -> None:
        monkeypatch.setattr(People, "given", Scan(frames, **more))

    give(people())
    return types.SimpleNamespace(give=give, people=people, images_of=images_of)


@pytest.fixture
def drawn_tree(tmp_path) -> pathlib.Path:
    """A folder that stands for the user's files."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"x")
    return folder
