"""The TFDS builder of `rgbd_folder`, and `prepare`, which builds the dataset or reuses it."""

import dataclasses
import pathlib

from tfds_builders import knobs
from tfds_builders.recorded import builder as builder_lib
from tfds_builders.recorded.frames import Scan
from tfds_builders.rgbd_folder import scan as scan_lib
from tfds_builders.rgbd_folder.read import read_frame


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(builder_lib.RecordedConfig):
    """What one says of one's own tree."""

    title: str = knobs.text("", "name of these data; each name has a dataset of its own")
    manifest: str = knobs.text("", "CSV or JSONL file below the tree that lists the frames; empty: folder names tell")
    depth_unit_mm: float = knobs.knob(1.0, 1e-3, 1e3, "millimetres of one step of the depth images")
    depth_bits: int = knobs.choice(16, (16, 8), "bits of the depth images")
    crop_margin: float = knobs.knob(0.06, 0.0, 1.0, "margin around the person, as a share of the crop's height")


class Builder(builder_lib.RecordedBuilder):
    """Anybody's RGB-D recordings of people; see the README beside this file."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Give the folder that holds {scan_lib.LAYOUT}, or a manifest."
    BUILDER_CONFIGS = [
        FolderConfig(name="default", description="Crops of 256x128."),
        FolderConfig(name="small", description="Crops of 128x64.", height=128, width=64),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "default"
    read = staticmethod(read_frame)

    def scan(self, root: pathlib.Path, paths: list[str]) -> Scan:
        return scan_lib.scan(root, paths, knobs.knob_values(self.builder_config))


config_of, prepare = builder_lib.entry_points(Builder)
