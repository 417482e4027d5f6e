"""This project's pipeline on the same bytes: ArrayRecord, decoded in threads, augmented on the device (here the CPU).

Prints {"images_per_s": ..., "decode_images_per_s": ...}: with, and without the augmentation; an instant is two images.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags  # noqa: TID251 (Grain reads its flags)
from array_record.python.array_record_data_source import ArrayRecordDataSource

from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.frames import Frames
from rgbd_reid_jax.data.inputs import InputSpec, train_input
from rgbd_reid_jax.data.pipeline import training_batches
from rgbd_reid_jax.data.records import Records


def main() -> None:
    """Measures the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--size", type=int, nargs=2, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    frames = Frames(Records(ArrayRecordDataSource([str(options.file)]), "benchmark"), options.workers)
    spec = InputSpec(*options.size, "metric")

    @jax.jit
    def augment(batch: dict[str, jax.Array], step: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(0), step)
        batch = batch | {"mask": jnp.zeros_like(batch["depth"], jnp.uint8)}
        rgb, depth = (train_input(spec, modality, batch, key, Augmentation()) for modality in ("rgb", "depth"))
        return rgb, depth

    def rate(augmented: bool) -> float:
        batches = iter(training_batches(frames, images=("rgb", "depth"), columns={}, batch_size=options.batch, seed=0))
        for _ in range(len(frames) // options.batch):
            ready = augment(next(batches), np.int32(0))
        jax.block_until_ready(ready)
        before, began, count = ready, time.perf_counter(), 0
        while time.perf_counter() - began < options.seconds:
            batch = next(batches)
            if augmented:
                ready = augment(batch, np.int32(count))
                jax.block_until_ready(before)  # as the training loop: one step ahead
                before = ready
            count += 2 * options.batch
        jax.block_until_ready(before)
        return count / (time.perf_counter() - began)

    print(json.dumps({"images_per_s": rate(True), "decode_images_per_s": rate(False)}))


if __name__ == "__main__":
    main()
