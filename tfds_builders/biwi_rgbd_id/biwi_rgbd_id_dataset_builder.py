"""The TFDS builder of `biwi_rgbd_id`, from the raw tree or from the layout that the paper's code prepared of it."""

import dataclasses
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from rgbd_reid_jax.core.errors import InputError
from tfds_builders import knobs
from tfds_builders.biwi_rgbd_id import read as read_lib
from tfds_builders.biwi_rgbd_id import scan as scan_lib
from tfds_builders.recorded import builder as recorded
from tfds_builders.recorded import prepared_layout, splits, tree
from tfds_builders.recorded.frames import Finding, Scan


@dataclasses.dataclass(eq=False, kw_only=True)
class BiwiConfig(recorded.RecordedConfig):
    """Which recordings, and who counts as one person in them."""

    identities: str = knobs.choice(
        "clothes", ("clothes", "people"), "a person_id is a person in one set of clothes, as in the paper, or a person"
    )
    recordings: str = knobs.choice(
        "all", tuple(scan_lib.KEPT), "all; or Training and, of Testing, Still or Walking alone"
    )
    fold: int = knobs.knob(0, 0, 4, "which split of splits.json, where identities='clothes' and that file is there")
    crop_margin: float = knobs.knob(
        0.06, 0.0, 0.5, "margin around the person's box, share of the crop's height (raw tree)"
    )
    grey_mm: float = knobs.knob(prepared_layout.GREY_MM, *prepared_layout.GREY_MM_RANGE, prepared_layout.GREY_MM_DOC)


CONFIGS = (
    BiwiConfig(name="paper", description="The paper's 78 identities: a person in one set of clothes."),
    BiwiConfig(
        name="people",
        description="50 people; those recorded again in other clothes stay one person, on one side of the split.",
        identities="people",
    ),
    BiwiConfig(
        name="still",
        description="As `people`, of the recordings of the second day only those where people stand.",
        identities="people",
        recordings="still",
    ),
    BiwiConfig(
        name="walking",
        description="As `people`, of the recordings of the second day only those where people walk.",
        identities="people",
        recordings="walking",
    ),
)


class Builder(recorded.RecordedBuilder):
    """BIWI RGBD-ID; see README.md beside this file."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    ask for BIWI RGBD-ID at http://robotics.dei.unipd.it/reid, unpack it, and give as --manual_dir the folder that
    holds Training/ and Testing/ (or the one that holds biwi/ and biwi_depth/, as the paper's code prepared them)
    """
    BUILDER_CONFIGS = list(CONFIGS)
    DEFAULT_BUILDER_CONFIG_NAME = "paper"
    read = staticmethod(read_lib.read_frame)

    def extra_features(self) -> dict[str, tfds.features.FeatureConnector]:
        """What only this dataset has; all NaN where it was not recorded.

        - `skeleton` float32 [20, 10]: of each joint of the Kinect SDK x, y, z in metres as recorded; u, v in pixels of
          the stored images; state 0 not tracked, 1 inferred, 2 tracked; the quaternion qx, qy, qz, qw of its bone.
        - `ground_plane` float32 [4]: (a, b, c, d) of the ground a x + b y + c z + d = 0 in metres, as recorded.
        """
        shapes = {name: array.shape for name, array in read_lib.no_body().items()}
        return {name: tfds.features.Tensor(shape=shape, dtype=np.float32) for name, shape in shapes.items()}

    def listing(self, root: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
        paths = tree.listing(root)
        return (root, paths) if scan_lib.is_raw(paths) else prepared_layout.listing(root)

    def scan(self, root: pathlib.Path, paths: list[str]) -> Scan:
        config = self.builder_config
        if scan_lib.is_raw(paths):
            scan = scan_lib.scan(
                root,
                paths,
                identities=config.identities,
                recordings=config.recordings,
                fold=config.fold,
                seed=config.split_seed,
            )
        elif prepared_layout.is_prepared(paths):
            scan = _scan_prepared(root, paths, config)
        else:
            shown = ", ".join(sorted({path.split("/")[0] for path in paths})[:5])
            raise InputError(
                f"--manual_dir={root} holds {shown}; give the folder that holds Training/ and Testing/, or the one "
                "that holds biwi/ and biwi_depth/"
            )
        return _finished(root, scan, config)


def _scan_prepared(root: pathlib.Path, paths: list[str], config: BiwiConfig) -> Scan:
    """The prepared layout with the labels of the raw tree: its cameras are recordings, before one Kinect."""
    scan = prepared_layout.scan(
        root,
        paths,
        fold=config.fold,
        sizes=scan_lib.SIZES,
        seed=config.split_seed,
        recording_types=lambda sequence: scan_lib.RECORDING_TYPES[sequence],
        grouping="identity" if config.identities == "clothes" else "person",
        keep=lambda sequence: scan_lib.is_kept(sequence, config.recordings),
        outfit=scan_lib.place_of,
    )
    for split, frames in scan.frames.items():
        sequences = [int(pathlib.PurePosixPath(frame.file).name.split("_")[1]) for frame in frames]
        scan.frames[split] = [
            dataclasses.replace(frame, camera_id=scan_lib.place_of(sequence))
            for frame, sequence in zip(frames, sequences, strict=True)
        ]
    return scan


def _finished(root: pathlib.Path, scan: Scan, config: BiwiConfig) -> Scan:
    """The scan with what both layouts have to say of their people.

    Raises:
        InputError: a fold was asked for where there is no published split to take it from.
    """
    needs = f"identities='clothes' and a splits.json in {root}"
    splits.check_fold(config.fold, scan.metadata["split"]["source"], needs)
    both = scan_lib.both_sides(scan)
    scan.findings += [
        Finding("both_sides", file, f"person {person:03d} is trained or validated on in other clothes than are tested")
        for person, file in both.items()
    ]
    scan.metadata.update(
        person_id="a person in one set of clothes" if config.identities == "clothes" else "a person",
        cameras={str(number): name for number, name in enumerate(scan_lib.CAMERAS)},
        people_on_both_sides=list(both),
        skeleton_columns=list(read_lib.JOINT_COLUMNS),
    )
    return scan


config_of, prepare = recorded.entry_points(Builder)
