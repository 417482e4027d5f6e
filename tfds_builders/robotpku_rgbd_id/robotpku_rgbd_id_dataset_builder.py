"""The TFDS builder of `robotpku_rgbd_id`, from the layout that the paper's code prepared or from a raw tree."""

import dataclasses
import pathlib

import tensorflow_datasets as tfds

from tfds_builders import knobs
from tfds_builders.recorded import builder as recorded
from tfds_builders.recorded import prepared_layout, splits
from tfds_builders.recorded.frames import Scan
from tfds_builders.robotpku_rgbd_id import scan as raw
from tfds_builders.robotpku_rgbd_id.read import read_frame


@dataclasses.dataclass(eq=False, kw_only=True)
class RobotPkuConfig(recorded.RecordedConfig):
    """How the two layouts are read."""

    fold: int = knobs.knob(0, 0, 4, "which split of splits.json (prepared layout)")
    grey_mm: float = knobs.knob(prepared_layout.GREY_MM, *prepared_layout.GREY_MM_RANGE, prepared_layout.GREY_MM_DOC)
    mapping: str = knobs.text(
        "", f"how files of a raw tree are named, such as `{raw.EXAMPLE_MAPPING}` (`*` is any text); empty: discovered"
    )
    depth_unit_mm: float = knobs.knob(1.0, 0.001, 1000.0, "millimetres of one level of 16-bit depth (raw tree)")
    crop: str = knobs.choice(
        "auto",
        ("auto", "foreground", "whole"),
        "cut out the nearest person, or use images whole; auto: cut where they are wider than high (raw tree)",
    )
    crop_margin: float = knobs.knob(
        0.06, 0.0, 0.5, "margin around the person's box, share of the crop's height (raw tree, foreground)"
    )


CONFIGS = (RobotPkuConfig(name="paper", description="90 people, two recordings each: 40 train, 10 validate, 40 test."),)


class Builder(recorded.RecordedBuilder):
    """RobotPKU RGBD-ID; see README.md beside this file."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    get RobotPKU RGBD-ID from its authors (Liu, Hu and Ma 2017) and give as --manual_dir the folder with its images, or
    the one that holds pku/ and pku_depth/ as the paper's code prepared them
    """
    BUILDER_CONFIGS = list(CONFIGS)
    DEFAULT_BUILDER_CONFIG_NAME = "paper"
    read = staticmethod(read_frame)

    def listing(self, root: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
        return prepared_layout.listing(root)

    def scan(self, root: pathlib.Path, paths: list[str]) -> Scan:
        config = self.builder_config
        if config.mapping or not prepared_layout.is_prepared(paths):
            scan = raw.scan(root, paths, config.mapping, config.split_seed)
        else:
            scan = prepared_layout.scan(root, paths, fold=config.fold, sizes=raw.SIZES, seed=config.split_seed)
            scan.metadata["cameras"] = {"0": "sequence 00", "1": "sequence 01"}
        needs = f"the prepared layout with its splits.json in {root}"
        splits.check_fold(config.fold, scan.metadata["split"]["source"], needs)
        return scan


config_of, prepare = recorded.entry_points(Builder)
