"""Synthetic embeddings of a benchmark's size: persons are clusters in a latent space, cameras shift them. Seeded."""

import dataclasses
import pathlib

import numpy as np

_LATENT, _BLOCK = 64, 8192


@dataclasses.dataclass(frozen=True)
class Size:
    """How many of what; the numbers of images, persons and cameras are those of the dataset it is named after."""

    num_query: int
    num_gallery: int
    num_persons: int
    num_cameras: int
    width: int


SIZES = {
    "small": Size(500, 4000, 200, 6, 512),
    "market": Size(3368, 15_913, 750, 6, 2048),
    "msmt17": Size(11_659, 82_161, 3060, 15, 2048),
    "huge": Size(100_000, 1_000_000, 20_000, 20, 128),
}


def write(folder: pathlib.Path, size: Size, seed: int) -> None:
    """Writes {query,gallery}_{embedding,person,camera}.npy: float32 [N, width] and int64 [N]; piece by piece."""
    rng = np.random.default_rng(seed)
    persons = rng.normal(size=(size.num_persons, _LATENT))
    cameras = 0.5 * rng.normal(size=(size.num_cameras, _LATENT))
    basis = (rng.normal(size=(_LATENT, size.width)) / np.sqrt(_LATENT)).astype(np.float32)
    for name, count in (("query", size.num_query), ("gallery", size.num_gallery)):
        person, camera = rng.integers(0, size.num_persons, count), rng.integers(0, size.num_cameras, count)
        np.save(folder / f"{name}_person.npy", person)
        np.save(folder / f"{name}_camera.npy", camera)
        shape = (count, size.width)
        embedding = np.lib.format.open_memmap(folder / f"{name}_embedding.npy", "w+", np.float32, shape)
        for begin in range(0, count, _BLOCK):
            rows = slice(begin, min(begin + _BLOCK, count))
            latent = persons[person[rows]] + cameras[camera[rows]]
            latent += 0.7 * rng.normal(size=latent.shape)
            noise = 0.3 * rng.standard_normal((len(latent), size.width), dtype=np.float32)
            embedding[rows] = latent.astype(np.float32) @ basis + noise
        embedding.flush()
