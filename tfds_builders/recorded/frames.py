"""What a builder finds in a tree before it reads an image, and what it has to say about it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Frame:
    """One instant of one person; paths are relative to the tree's root, "" where there is no such file.

    Attributes:
        person_id: unique over all splits, and so on as `tfds_builders.schema` says.
        camera_id: the camera.
        recording_id: one person before one camera without a break.
        frame_id: the instant within its recording.
        rgb: file of the colour image.
        depth: file of the depth image.
        mask: file of the person's mask.
        recording_type: a key of `schema.RECORDING_TYPES`.
        clothes_id: the outfit.
        extra: what one dataset alone needs to read the frame; plain values that pickle.
    """

    person_id: int
    camera_id: int
    recording_id: int
    frame_id: int
    rgb: str = ""
    depth: str = ""
    mask: str = ""
    recording_type: int = 0
    clothes_id: int = 0
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def file(self) -> str:
        """The path that names this frame to people."""
        return self.rgb or self.depth


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something about the source that its owner should know; it did not stop the build.

    Attributes:
        kind: one of `KINDS`.
        file: path relative to the tree's root.
        words: one line: what is wrong and what became of it.
    """

    kind: str
    file: str
    words: str


KINDS = {
    "unpaired": "a frame without its colour or without its depth image",
    "empty_file": "a file of zero bytes",
    "corrupt": "a file that does not decode",
    "empty_mask": "a person mask with too few pixels",
    "full_mask": "a person mask that fills the frame",
    "no_depth": "a depth crop without a valid pixel",
    "out_of_range": "a depth image whose depths no such camera sees",
    "duplicate": "a frame that another file repeats",
    "ignored": "a file or folder whose name fits nothing",
    "person": "a person that has too few frames",
    "both_sides": "people on two sides of the split, as different identities",
}
"""Kinds of findings; a frame of the first seven is left out of the dataset, or stops the build where
the config says so."""


class BadFrame(Exception):
    """This frame cannot be used; the build goes on without it.

    Args:
        kind: one of `KINDS`.
        file: path relative to the tree's root.
        words: what is wrong, one line.
    """

    def __init__(self, kind: str, file: str, words: str):
        super().__init__(kind, file, words)
        self.finding = Finding(kind, file, words)


@dataclasses.dataclass
class Scan:
    """A tree, understood.

    Attributes:
        frames: the frames of each split, in the order in which they are stored.
        findings: what was seen on the way.
        metadata: JSON content that the dataset keeps (names of people and cameras, units, how it was split).
    """

    frames: dict[str, list[Frame]]
    findings: list[Finding] = dataclasses.field(default_factory=list)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
