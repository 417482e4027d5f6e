"""Every knob of the synthetic dataset, the named configs, and the fingerprint that tells data apart."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rgbd_reid_jax.core.errors import InputError
from tfds_builders import knobs as knobs_lib
from tfds_builders.knobs import knob

RENDERER_VERSION = 1
"""Raise this whenever the same knobs give other pixels: it is part of every fingerprint."""

SPLITS = ("train", "validation", "test")
_DATASET = "synthetic_rgbd"


@dataclasses.dataclass(frozen=True)
class CameraSpec:
    """One fixed camera and how people stand before it.

    Attributes:
        height_m: height of the optical centre above the floor, metres.
        pitch_deg: downward tilt of the optical axis, degrees.
        distance_m: least and greatest horizontal distance of a person, metres.
        heading_mean_deg: mean direction a person faces; 0 is towards the camera, positive turns the
            person to their own left (anticlockwise seen from above).
        heading_range_deg: headings are uniform within the mean plus or minus this.
        lateral_m: people stand within this many metres left or right of the optical axis.
        gain: exposure gain of the colour sensor.
        white_balance: gains of red, green and blue.
    """

    height_m: float
    pitch_deg: float
    distance_m: tuple[float, float]
    heading_mean_deg: float
    heading_range_deg: float
    lateral_m: float = 0.5
    gain: float = 1.0
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)


CAMERAS = (
    CameraSpec(2.0, 12.6, (2.2, 3.6), 8.0, 16.0, 0.45, 1.05, (1.06, 1.0, 0.92)),
    CameraSpec(1.1, 0.0, (2.6, 4.4), -10.0, 26.0, 0.6, 0.95, (0.94, 1.0, 1.07)),
    CameraSpec(2.6, 22.0, (2.8, 4.2), 20.0, 21.0, 0.5, 1.0, (1.0, 1.02, 1.0)),
    CameraSpec(1.5, 5.0, (2.4, 4.0), -25.0, 24.0, 0.5, 1.1, (1.03, 0.98, 0.97)),
)


def _check_cameras(value: Any) -> None:
    """InputError unless `value` is a bank of cameras that people can be rendered for."""
    if not (isinstance(value, tuple) and value and all(isinstance(one, CameraSpec) for one in value)):
        raise InputError(f"knob cameras={value!r}: give a non-empty tuple of CameraSpec")
    for camera in value:
        numbers = np.hstack([np.asarray(value, np.float64) for value in dataclasses.astuple(camera)])
        near, far = camera.distance_m
        if not np.all(np.isfinite(numbers)) or camera.height_m <= 0 or abs(camera.pitch_deg) > 60:
            raise InputError(f"knob cameras: {camera}: give a height above 0 m and a pitch from -60 to 60 degrees")
        if not 1.5 <= near <= far:
            raise InputError(f"knob cameras: distance_m={camera.distance_m}: give (least, greatest), 1.5 m or more")


def _plain_cameras(cameras: tuple[CameraSpec, ...]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(camera) for camera in cameras]


@dataclasses.dataclass(eq=False, kw_only=True)
class SyntheticRgbdConfig(tfds.core.BuilderConfig):
    """A TFDS config whose knobs say exactly what is rendered; `knob_docs()` lists them."""

    seed: int = knob(1, 0, 2**31 - 1, "data seed: other people, clothes, rooms and noise")
    train_people: int = knob(300, 1, 100_000, "people of the training split")
    validation_people: int = knob(40, 1, 100_000, "people of the validation split")
    test_people: int = knob(60, 1, 100_000, "people of the test split")
    frames_per_recording: int = knob(6, 1, 1000, "frames of each (person, camera, standing or walking) recording")
    height: int = knob(64, 16, 1024, "rows of the stored crop")
    width: int = knob(32, 8, 1024, "columns of the stored crop; the crop's aspect is width / height")
    num_cameras: int = knob(2, 1, len(CAMERAS), "how many of `cameras` are used, from the first")
    cameras: tuple[CameraSpec, ...] = knobs_lib.special(
        CAMERAS, "CAMERAS", "the bank of cameras", check=_check_cameras, plain=_plain_cameras
    )
    body_spread: float = knob(1.6, 0.0, 3.0, "factor on the spread of shape and gait between people; 0 = all alike")
    pose_spread: float = knob(1.0, 0.0, 3.0, "factor on pose changes within a person (turns, arms, sway, stride)")
    heading_scale: float = knob(1.0, 0.0, 4.0, "factor on every camera's heading range")
    walk_seconds: float = knob(1.1, 0.1, 20.0, "duration of a walking recording; 1.1 s is about one gait cycle")
    clothes_change_share: float = knob(0.6, 0.0, 1.0, "share of people who change clothes from one camera to the next")
    clothes_looseness: float = knob(1.0, 0.0, 3.0, "factor on how much loose clothes widen the body")
    bag_share: float = knob(0.2, 0.0, 1.0, "share of outfits with a backpack or shoulder bag")
    light_spread: float = knob(1.0, 0.0, 3.0, "factor on changes of light direction, colour and gain per recording")
    texture_contrast: float = knob(1.0, 0.0, 3.0, "factor on the contrast of wall and floor textures")
    clutter_share: float = knob(0.5, 0.0, 1.0, "probability of each of two objects behind or beside the person")
    crop_margin: float = knob(0.06, 0.0, 1.0, "margin around the person's box, as a share of the crop's height")
    crop_jitter: float = knob(
        0.025, 0.0, 0.5, "standard deviation of the detector's centre and size errors, share of height"
    )
    rgb_blur_px: float = knob(0.55, 0.0, 5.0, "standard deviation of the colour point-spread function, stored pixels")
    rgb_noise: float = knob(
        0.012, 0.0, 0.5, "standard deviation of colour noise at mid grey, share of full scale, linear light"
    )
    depth_noise: float = knob(1.4e-3, 0.0, 0.1, "depth noise: standard deviation in metres at 1 m, growing with z^2")
    depth_step_scale: float = knob(1.0, 0.0, 10.0, "factor on the disparity step (2.73 z^2 + 0.74 z) mm; 0 = none")
    max_depth_m: float = knob(8.0, 1.0, 60.0, "depth beyond this is invalid")
    edge_hole_rate: float = knob(0.30, 0.0, 1.0, "probability that a pixel beside a depth edge is invalid")
    grazing_hole_rate: float = knob(
        0.7, 0.0, 1.0, "probability that a pixel on a surface seen at a grazing angle is invalid"
    )
    dark_hole_rate: float = knob(
        0.4, 0.0, 1.0, "probability that a pixel on dark hair is invalid; on black cloth it is 0.3 of this"
    )
    random_hole_rate: float = knob(0.005, 0.0, 1.0, "probability that any pixel is invalid")
    projector_baseline_m: float = knob(
        0.075, 0.0, 1.0, "projector to the right of the camera: the width of parallax shadows"
    )

    def people(self, split: str) -> int:
        """Number of people of one split."""
        return getattr(self, f"{split}_people")

    @property
    def used_cameras(self) -> tuple[CameraSpec, ...]:
        """The cameras that record."""
        return self.cameras[: self.num_cameras]

    @property
    def frames_per_person(self) -> int:
        """Frames of one person over all cameras and both recordings."""
        return self.num_cameras * 2 * self.frames_per_recording

    def num_frames(self, split: str) -> int:
        """Frames of one split."""
        return self.people(split) * self.frames_per_person


def knob_fields() -> dict[str, dataclasses.Field]:
    """The fields of `SyntheticRgbdConfig` that are knobs, by name."""
    return knobs_lib.knob_fields(SyntheticRgbdConfig)


def fingerprint(config: SyntheticRgbdConfig) -> str:
    """16 hexadecimal digits that change with any knob and with the renderer."""
    return knobs_lib.digest({"renderer": RENDERER_VERSION, "knobs": knobs_lib.knob_values(config)})[:16]


def check(config: SyntheticRgbdConfig) -> None:
    """Raises InputError if a knob of `config` has a value that cannot be rendered."""
    for name in knob_fields():
        knobs_lib.checked(config, name, getattr(config, name))
    if config.num_cameras > len(config.cameras):
        raise InputError(f"knob num_cameras={config.num_cameras}: the bank `cameras` holds only {len(config.cameras)}")


def custom_config(base_name: str, /, **knobs: Any) -> SyntheticRgbdConfig:
    """A named config with some knobs changed: `tfds_builders.knobs.custom_config` of `CONFIGS`.

    Raises:
        InputError: there is no such config or knob, or a value cannot be rendered.
    """
    made = knobs_lib.custom_config(CONFIGS, _DATASET, base_name, knobs)
    check(made)
    return made


def named_config(name: str) -> SyntheticRgbdConfig:
    """The named config; InputError if there is none."""
    return knobs_lib.named_config(CONFIGS, _DATASET, name)


def knob_docs() -> str:
    """A Markdown table of every knob with default and range."""
    return knobs_lib.knob_table(SyntheticRgbdConfig)


CONFIGS = (
    SyntheticRgbdConfig(
        name="quick",
        description="400 people x 24 frames at 64x32: renders and trains in minutes on a CPU.",
    ),
    SyntheticRgbdConfig(
        name="medium_128x64",
        description="600 people x 32 frames at 128x64.",
        train_people=400,
        validation_people=80,
        test_people=120,
        frames_per_recording=8,
        height=128,
        width=64,
        rgb_blur_px=0.7,
    ),
    SyntheticRgbdConfig(
        name="large_256x128",
        description="1500 people x 48 frames at 256x128.",
        train_people=1000,
        validation_people=200,
        test_people=300,
        frames_per_recording=12,
        height=256,
        width=128,
        rgb_blur_px=1.0,
    ),
    SyntheticRgbdConfig(
        name="tiny",
        description="14 people x 8 frames at 64x32, for tests.",
        train_people=6,
        validation_people=4,
        test_people=4,
        frames_per_recording=2,
    ),
)
