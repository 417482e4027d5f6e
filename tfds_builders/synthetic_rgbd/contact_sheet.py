"""A picture of the dataset: rows of aligned RGB, depth and mask crops of several people before every camera.

python -m tfds_builders.synthetic_rgbd.contact_sheet --config=quick --output=x.png
"""

import argparse
import ast
import sys

import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.command import writable
from rgbd_reid_jax.core.errors import InputError
from tfds_builders.pictures import depth_picture, encode_sheet, write_text
from tfds_builders.schema import RECORDING_TYPES
from tfds_builders.synthetic_rgbd.config import SPLITS, SyntheticRgbdConfig, custom_config
from tfds_builders.synthetic_rgbd.store import render_arrays

_CAPTION = 14


def contact_sheet(config: SyntheticRgbdConfig, split: str, people: np.ndarray, frames: int, scale: int) -> np.ndarray:
    """The sheet, uint8 [H, W, 3] RGB: per person one row of RGB, depth and mask strips; columns are recordings.

    Args:
        config: what is rendered.
        split: the split of the people.
        people: int [N], their places in the split.
        frames: frames of each recording that are shown, spread over it.
        scale: enlargement of a pixel.
    """
    sampled, images = render_arrays(config, split, people)
    labels, per_recording = sampled.labels, config.frames_per_recording
    shown = np.unique(np.linspace(0, per_recording - 1, min(frames, per_recording)).round().astype(int))
    pictures = (images.rgb, depth_picture(images.depth), np.repeat(images.mask[..., None], 3, axis=-1))
    rows = []
    for person in range(len(people)):
        strips, captions = [], []
        for recording in range(config.num_cameras * 2):
            picked = (person * config.num_cameras * 2 + recording) * per_recording + shown
            stack = [np.concatenate(list(picture[picked]), axis=1) for picture in pictures]
            strips.append(np.pad(np.concatenate(stack, axis=0), ((0, 0), (0, 1), (0, 0)), constant_values=255))
            first = picked[0]
            captions.append(
                f"person {labels['person_id'][first]}  camera {labels['camera_id'][first]}  "
                f"{RECORDING_TYPES[int(labels['recording_type'][first])]}  clothes {labels['clothes_id'][first]}"
            )
        body = np.concatenate(strips, axis=1).repeat(scale, axis=0).repeat(scale, axis=1)
        head = np.full((_CAPTION, body.shape[1], 3), 255, np.uint8)
        for column, caption in enumerate(captions):
            write_text(head, caption, column * strips[0].shape[1] * scale + 3, _CAPTION - 4)
        rows.append(np.concatenate([head, body], axis=0))
    return np.concatenate(rows, axis=0)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="contact_sheet", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="quick", help="name of a config")
    parser.add_argument("--knobs", default="", help='changed knobs, for example "seed=2,body_spread=1.3"')
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--first", type=int, default=0, help="first person of the split")
    parser.add_argument("--people", type=int, default=6, help="number of people")
    parser.add_argument("--frames", type=int, default=4, help="frames of each recording")
    parser.add_argument("--scale", type=int, default=3, help="enlargement of a pixel")
    parser.add_argument("--output", required=True, help="the PNG file to write")
    options = parser.parse_args(arguments)
    try:
        pairs = [pair.split("=", 1) for pair in options.knobs.split(",") if pair]
        config = custom_config(options.config, **{name: ast.literal_eval(value) for name, value in pairs})
        last = min(options.first + options.people, config.people(options.split))
        if not 0 <= options.first < last:
            raise InputError(
                f"--first={options.first}: split {options.split} has {config.people(options.split)} people"
            )
        for flag in ("people", "frames", "scale"):
            if getattr(options, flag) < 1:
                raise InputError(f"--{flag}={getattr(options, flag)} must be at least 1")
        output = writable("--output", options.output)
        sheet = contact_sheet(config, options.split, np.arange(options.first, last), options.frames, options.scale)
    except (ValueError, SyntaxError) as error:
        print(f"contact_sheet: {error}", file=sys.stderr)
        return 2
    files.write_bytes(output, encode_sheet(sheet))
    return 0


if __name__ == "__main__":
    sys.exit(main())
