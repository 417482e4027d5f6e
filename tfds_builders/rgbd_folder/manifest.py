"""The manifest of a tree whose folders are named otherwise: a CSV file with a header, or JSON lines.

| column | content |
|---|---|
| `rgb`, `depth` | paths below the tree's root; one of the two may be empty |
| `person_id`, `camera_id`, `recording_id` | any text; recordings are told apart within a person and camera |
| `split` | optional: train, validation (or val), test; one for each person. For all rows or for none |
| `frame_id` | optional: the instant within its recording, any text; the order of the rows otherwise |
| `mask` | optional: path of the person's mask |
| `box` | optional: `x0,y0,x1,y1` around the person, pixel edges of the colour image (of the depth image without one) |
| `clothes_id` | optional: the outfit, any text, told apart within a person |
| `recording_type` | optional: standing, walking or unknown |
"""

import csv
import io
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from rgbd_reid_jax.core.errors import InputError
from tfds_builders import schema
from tfds_builders.recorded.frames import Finding
from tfds_builders.rgbd_folder.rows import SPLIT_NAMES, Row

REQUIRED = ("person_id", "camera_id", "recording_id")
FILES = ("rgb", "depth", "mask")
OPTIONAL = ("split", "frame_id", "clothes_id", "recording_type", "box")
COLUMNS = (*FILES, *REQUIRED, *OPTIONAL)
_RECORDING_TYPES = {name: code for code, name in schema.RECORDING_TYPES.items()} | {"": 0}


def read(root: pathlib.Path, name: str, paths: list[str]) -> tuple[list[Row], list[Finding]]:
    """The frames that a manifest lists.

    Args:
        root: the tree.
        name: the manifest's path below it; its ending says what it is.
        paths: all files of the tree.

    Raises:
        InputError: it is malformed, or names what is not there.
    """
    if name not in paths:
        raise InputError(f"manifest={name!r}: {root / name} does not exist; give the path of a file below {root}")
    readers = {".csv": _csv_lines, ".jsonl": _json_lines}
    if (kind := pathlib.PurePosixPath(name).suffix.lower()) not in readers:
        raise InputError(f"manifest={name!r} ends in {kind!r}; give a file that ends in {' or '.join(readers)}")
    try:
        content = (root / name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{root / name} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    there, rows, unknown = frozenset(paths), [], dict[str, None]()
    for number, line in readers[kind](root / name, content):
        unknown |= dict.fromkeys(column for column in line if column not in COLUMNS)
        rows.append(_row(f"{root / name} line {number}", line, there, len(rows)))
    if not rows:
        raise InputError(f"{root / name} lists no frame; give one on each line")
    findings = [Finding("ignored", name, f"column {column!r} is not used") for column in unknown]
    return rows, findings


def _csv_lines(path: pathlib.Path, content: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        twice = sorted({column for column in header if header.count(column) > 1})
        missing = [column for column in REQUIRED if column not in header]
        if twice or missing:
            what = f"has the column {twice[0]!r} twice" if twice else f"lacks the column {missing[0]!r}"
            raise InputError(f"{path}: the first line {what}; columns are: {', '.join(COLUMNS)}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{path} line {reader.line_num} has {len(cells)} cells and the first line {len(header)}; mend it"
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not valid CSV ({error}); mend it") from error


def _json_lines(path: pathlib.Path, content: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} line {number} is not valid JSON ({error}); mend it") from error
        if not isinstance(line, dict):
            raise InputError(f"{path} line {number} is no JSON object; write {{...}} with: {', '.join(COLUMNS)}")
        yield number, line


def _row(where: str, line: Mapping[str, Any], there: frozenset[str], order: int) -> Row:
    text = {column: _text(where, column, line.get(column, "")) for column in COLUMNS if column != "box"}
    for column in REQUIRED:
        if not text[column]:
            raise InputError(f"{where}: {column} is empty; every frame needs one")
    if not text["rgb"] and not text["depth"]:
        raise InputError(f"{where} names neither an rgb nor a depth image; give one of them at least")
    for column in FILES:
        if text[column] and text[column] not in there:
            raise InputError(f"{where}: {column}={text[column]!r} is no file of the tree; give a path below its root")
    split, kind = text["split"].lower(), text["recording_type"].lower()
    if split and split not in SPLIT_NAMES:
        raise InputError(f"{where}: split={split!r}; give one of {', '.join(SPLIT_NAMES)}")
    if kind not in _RECORDING_TYPES:
        raise InputError(f"{where}: recording_type={kind!r}; give one of {', '.join(filter(None, _RECORDING_TYPES))}")
    return Row(
        where=where,
        person=text["person_id"],
        camera=text["camera_id"],
        recording=text["recording_id"],
        frame=text["frame_id"] or f"row {order}",
        split=SPLIT_NAMES.get(split, ""),
        rgb=text["rgb"],
        depth=text["depth"],
        mask=text["mask"],
        clothes=text["clothes_id"],
        recording_type=_RECORDING_TYPES[kind],
        box=_box(where, line.get("box")),
    )


def _text(where: str, column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f"{where}: {column}={value!r}; give a text or a whole number")
    return str(value).strip()


def _box(where: str, value: Any) -> tuple[float, float, float, float] | None:
    if value is None or value == "":
        return None
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    try:
        x0, y0, x1, y1 = (float(part) for part in parts)
    except (TypeError, ValueError):
        raise InputError(f"{where}: box={value!r}; give four numbers x0,y0,x1,y1") from None
    if not all(math.isfinite(edge) for edge in (x0, y0, x1, y1)) or x0 >= x1 or y0 >= y1:
        raise InputError(f"{where}: box={value!r}; give x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    return x0, y0, x1, y1
