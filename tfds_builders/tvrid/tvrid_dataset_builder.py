"""The TFDS builder of `tvrid`, from a folder of the user's or from Zenodo."""

import dataclasses
import pathlib

import tensorflow_datasets as tfds

from tfds_builders import knobs
from tfds_builders.recorded import builder as recorded
from tfds_builders.recorded.frames import Scan
from tfds_builders.tvrid import download
from tfds_builders.tvrid import scan as scan_lib
from tfds_builders.tvrid.read import read_frame


@dataclasses.dataclass(eq=False, kw_only=True)
class TvridConfig(recorded.RecordedConfig):
    """Square crops, a unit and who validates."""

    height: int = knobs.knob(128, 16, 1024, "rows of the stored crops; the files have 300x300 pixels")
    width: int = knobs.knob(128, 8, 1024, "columns of the stored crops")
    depth_unit_mm: float = knobs.knob(
        0.1, 0.001, 1000.0, "millimetres of one level of the depth files; 0.1 as the reference code suggests"
    )
    validation_share: float = knobs.knob(
        0.2, 0.0, 0.9, "share of the training people who validate, drawn by split_seed"
    )


CONFIGS = (
    TvridConfig(name="crops128", description="62 people to train and validate, the public test; 128x128 pixels."),
    TvridConfig(name="crops256", description="As `crops128` with 256x256 pixels.", height=256, width=256),
)


class Builder(recorded.RecordedBuilder):
    """TVRID; see README.md beside this file."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    it is downloaded from {scan_lib.PAGE} where the network allows; else download the archive of extracted crops there,
    unpack it, and give as --manual_dir the folder that holds DB_extracted/
    """
    BUILDER_CONFIGS = list(CONFIGS)
    DEFAULT_BUILDER_CONFIG_NAME = "crops128"
    read = staticmethod(read_frame)

    def extra_features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Texts as in the CSV files: `camera_name` and `passage_name`, which scenarios compare, and `gallery_id`."""
        return {name: tfds.features.Text() for name in ("camera_name", "passage_name", "gallery_id")}

    def source(self, dl_manager: tfds.download.DownloadManager) -> pathlib.Path:
        """The folder that was given or the user keeps where TFDS looks for it, else the downloaded one."""
        downloads = pathlib.Path(dl_manager.download_dir)
        usual = downloads / "manual"
        given = pathlib.Path(dl_manager._manual_dir or usual)  # the property raises where there is no such folder
        if given != usual or (usual / "DB_extracted").is_dir():
            return super().source(dl_manager)
        return download.fetch(downloads / self.name)

    def scan(self, root: pathlib.Path, paths: list[str]) -> Scan:
        config = self.builder_config
        return scan_lib.scan(root, paths, validation_share=config.validation_share, seed=config.split_seed)


config_of, prepare = recorded.entry_points(Builder)
