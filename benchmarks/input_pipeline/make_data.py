"""Instants of the embedded dataset as JPEG colour and 16-bit PNG depth: as files, and the same bytes as ArrayRecord."""

import pathlib

import cv2
import numpy as np
from array_record.python import array_record_module

from tfds_builders import schema
from tfds_builders.synthetic_rgbd.config import custom_config
from tfds_builders.synthetic_rgbd.store import render_arrays

_JPEG_QUALITY = 95


def make(folder: pathlib.Path, height: int, width: int, count: int) -> pathlib.Path:
    """Renders `count` instants of height x width pixels into `folder`, unless they are there; the ArrayRecord file."""
    records = folder / "frames.array_record"
    if records.exists():
        return records
    folder.mkdir(parents=True, exist_ok=True)
    config = custom_config("quick", height=height, width=width)
    people = -(-count // config.frames_per_person)
    frames, images = render_arrays(config, "train", np.arange(people))
    features = schema.frame_features()
    scratch = records.with_suffix(".part")
    writer = array_record_module.ArrayRecordWriter(str(scratch), "group_size:1")
    for index in range(count):
        bgr = cv2.cvtColor(images.rgb[index], cv2.COLOR_RGB2BGR)
        rgb = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
        depth = cv2.imencode(".png", images.depth[index])[1].tobytes()
        (folder / f"{index:06d}.jpg").write_bytes(rgb)
        (folder / f"{index:06d}.png").write_bytes(depth)
        zeros = {
            name: "" if np.dtype(spec.np_dtype).hasobject else np.zeros(spec.shape, spec.np_dtype)
            for name, spec in features.items()
            if name not in ("rgb", "depth", "mask")
        }
        labels = {
            "person_id": frames.labels["person_id"][index].astype(np.int32),
            "modalities": np.int32(schema.PAIRED),
        }
        writer.write(features.serialize_example(zeros | labels | {"rgb": rgb, "depth": depth, "mask": depth}))
    writer.close()
    scratch.rename(records)
    return records
