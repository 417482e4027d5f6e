"""The peer: a PyTorch DataLoader over JPEG and PNG files, written as its users would; knows nothing of this project.

A sample is the colour and the depth image of one instant with one random crop and flip for both (the paper's:
64..100 % of the area, height/width 2..3, ten tries), resized, as normalised float32 tensors. Decoder and resize are
Pillow's, or OpenCV's as the faster choice. Prints {"images_per_s": ...}; a sample counts as two images.
"""

import argparse
import json
import math
import pathlib
import random
import time

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
_STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
_RANGE_MM = 8000.0


def random_box(height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop."""
    for _ in range(10):
        area, ratio = random.uniform(0.64, 1.0) * height * width, random.uniform(2.0, 3.0)
        tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if tall <= height and wide <= width:
            top, left = random.randint(0, height - tall), random.randint(0, width - wide)
            return left, top, left + wide, top + tall
    return 0, 0, width, height


class Frames(Dataset):
    """Files `<number>.jpg` and `<number>.png` of a folder."""

    def __init__(self, folder: pathlib.Path, decoder: str):
        self._files = sorted(folder.glob("*.jpg"))
        self._sample = {"pillow": self._pillow, "opencv": self._opencv}[decoder]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rgb, depth = self._sample(self._files[index])
        rgb = torch.from_numpy(rgb).permute(2, 0, 1).float().div_(255).sub_(_MEAN).div_(_STD)
        depth = torch.from_numpy(depth).float()
        depth = torch.where(depth == 0, 1.0, depth.div(_RANGE_MM).clamp_(0, 1).mul_(2).sub_(1))
        return rgb, depth[None].expand(3, -1, -1)

    def _pillow(self, file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
        rgb, depth = Image.open(file), Image.open(file.with_suffix(".png"))
        size, box, flip = rgb.size, random_box(rgb.height, rgb.width), random.random() < 0.5
        rgb = rgb.convert("RGB").resize(size, Image.Resampling.BILINEAR, box)
        depth = Image.fromarray(np.asarray(depth, np.float32)).resize(size, Image.Resampling.BILINEAR, box)
        if flip:
            rgb, depth = (one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in (rgb, depth))
        return np.array(rgb), np.array(depth)

    def _opencv(self, file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
        rgb, depth = cv2.imread(str(file), cv2.IMREAD_COLOR_RGB), cv2.imread(str(file.with_suffix(".png")), -1)
        height, width = depth.shape
        left, top, right, bottom = random_box(height, width)
        rgb, depth = (cv2.resize(one[top:bottom, left:right], (width, height)) for one in (rgb, depth))
        if random.random() < 0.5:
            rgb, depth = cv2.flip(rgb, 1), cv2.flip(depth, 1)
        return rgb, depth.astype(np.int32)


def start_worker(_: int) -> None:
    """One thread per worker, so that they do not fight for the cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def main() -> None:
    """Measures one loader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--decoder", choices=("pillow", "opencv"), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    loader = DataLoader(
        Frames(options.folder, options.decoder),
        batch_size=options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=True,
        prefetch_factor=4,
        worker_init_fn=start_worker,
    )
    for _ in loader:  # the workers start, the files come into the page cache
        pass
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < options.seconds:
        for rgb, _depth in loader:
            count += 2 * len(rgb)
    print(json.dumps({"images_per_s": count / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main()
