"""The one feature schema of every RGB-D re-identification dataset here.

An example is one instant of one person: an RGB crop and a depth crop on the same pixel grid,
with the person's mask and the labels that training and evaluation need. Builders yield encoded
bytes, never arrays: that way neither building nor reading a dataset imports TensorFlow.
TFDS itself is imported by `frame_features` alone, since processes that read frames need only the numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

STANDING = 1
WALKING = 2
VALID_DEPTH = "valid depth; the files hold no person mask"
WHOLE_IMAGE = "the whole image; the files hold no person mask"
"""What a dataset's metadata says of its masks where they do not tell the person from the background."""
RECORDING_TYPES = {0: "unknown", STANDING: "standing", WALKING: "walking"}
RGB = 1
DEPTH = 2
PAIRED = RGB | DEPTH
IMAGE_TYPES = {"rgb": (np.uint8, 3), "depth": (np.uint16, 1), "mask": (np.uint8, 1)}
"""Type and channels of the images, each [H, W, channels]."""
IMAGES = tuple(IMAGE_TYPES)
LABELS = ("person_id", "camera_id", "recording_id", "recording_type", "frame_id", "clothes_id")


def frame_features(**extra: tfds.features.FeatureConnector) -> tfds.features.FeaturesDict:
    """The features of one frame; `extra` adds what one dataset alone has.

    - `rgb` uint8 [H, W, 3]: colour crop.
    - `depth` uint16 [H, W, 1]: depth crop in millimetres along the optical axis, 0 = invalid.
    - `mask` uint8 [H, W, 1]: 255 on the person, 0 elsewhere.
    - `person_id` int32: the person, unique over all splits.
    - `camera_id` int32: the camera.
    - `recording_id` int32: one person before one camera without a break, unique over all splits.
    - `recording_type` int32: a key of `RECORDING_TYPES`.
    - `frame_id` int32: the instant within its recording; the RGB and the depth image of one
      instant share (recording_id, frame_id).
    - `clothes_id` int32: the outfit, unique over all splits.
    - `person_box` float32 [4]: (ymin, xmin, ymax, xmax) of the person in pixels of the stored
      images, pixel edges, so a box that fills the image is (0, 0, H, W).
    - `intrinsics` float32 [4]: (fx, fy, cx, cy) of the stored images in pixels; pixel centres lie at
      integer + 0.5, so the pixel (row, column) with depth Z lies at
      ((column + 0.5 - cx) Z / fx, (row + 0.5 - cy) Z / fy, Z). Zeros where unknown.
    - `modalities` int32: the sum of `RGB` and `DEPTH` as far as they were recorded; an image that was
      not is stored as zeros.
    - `source` text: the file that the frame was read from, relative to the tree's root (colour, else depth), so that
      a fault can be named; "" where there is none.
    """
    import tensorflow_datasets as tfds

    image = tfds.features.Image
    return tfds.features.FeaturesDict(
        {
            **{
                name: image(shape=(None, None, channels), dtype=dtype, encoding_format="png")
                for name, (dtype, channels) in IMAGE_TYPES.items()
            },
            "person_id": tfds.features.Scalar(np.int32),
            "camera_id": tfds.features.Scalar(np.int32),
            "recording_id": tfds.features.Scalar(np.int32),
            "recording_type": tfds.features.Scalar(np.int32),
            "frame_id": tfds.features.Scalar(np.int32),
            "clothes_id": tfds.features.Scalar(np.int32),
            "person_box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "intrinsics": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "modalities": tfds.features.Scalar(np.int32),
            "source": tfds.features.Text(),
            **extra,
        }
    )
