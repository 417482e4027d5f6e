"""Rank lists: a query, its paired other modality, and the gallery items nearest to it, right or wrong marked twice."""

import dataclasses
from collections.abc import Iterable

import cv2
import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import ranking
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.reporting import figures
from rgbd_reid_jax.reporting.page import data_uri, escape

STRIP_LENGTH = 8
DEPTH_WINDOW_MM = 300.0
NO_READING = (128, 128, 128)
_HEIGHT = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """The test images; row i of a modality's images belongs to row i of its embeddings.

    Attributes:
        rgb: uint8 [N, H, W, 3].
        depth: uint16 [M, H, W, 1] in mm; 0 is no reading.
        mask: uint8 [M, H, W, 1]; the person is where it is not 0.
    """

    rgb: np.ndarray
    depth: np.ndarray
    mask: np.ndarray

    def __post_init__(self):
        shape = self.rgb.shape
        if self.rgb.ndim != 4 or shape[3] != 3 or not self.depth.shape[1:] == self.mask.shape[1:] == (*shape[1:3], 1):
            raise InputError(
                f"frames: rgb {list(shape)}, depth {list(self.depth.shape)}, mask {list(self.mask.shape)}; "
                "expected [N, H, W, 3], [M, H, W, 1] and [M, H, W, 1] of one size"
            )

    def thumbnail(self, row: int, modality: str) -> bytes:
        """PNG of one image at its own size, or reduced to `_HEIGHT` rows where it is larger."""
        image = self.rgb[row] if modality == "rgb" else depth_image(self.depth[row], self.mask[row])
        if image.shape[0] > _HEIGHT:
            width = max(1, round(image.shape[1] * _HEIGHT / image.shape[0]))
            image = cv2.resize(image, (width, _HEIGHT), interpolation=cv2.INTER_AREA)
        return cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR))[1].tobytes()


def depth_image(depth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colours of the distance relative to the person: +-DEPTH_WINDOW_MM about the median, grey where no reading.

    Args:
        depth: uint16 [H, W, 1] in mm; 0 is no reading.
        mask: uint8 [H, W, 1]; the person is where it is not 0. Without a person with readings, all readings count.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    depth, person = depth[..., 0].astype(np.float64), mask[..., 0] > 0
    valid = depth > 0
    chosen = valid & person if (valid & person).any() else valid
    centre = float(np.median(depth[chosen])) if chosen.any() else 0.0
    relative = np.clip((depth - centre) / (2 * DEPTH_WINDOW_MM) + 0.5, 0.0, 1.0)
    image = figures.depth_colours()[(255 * relative).round().astype(np.int64)]
    image[~valid] = NO_READING
    return image


def choose_queries(ap: np.ndarray, person_id: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Queries to show: the worst, those about the median, and the best by AP.

    Each group holds at most one query per person while there are enough persons; no query is in two groups.

    Args:
        ap: float [Q], NaN where skipped.
        person_id: int [Q].
        count: wanted queries per group.

    Returns:
        {"worst", "median", "best"}: int arrays of at most `count` rows; "best" starts with the best, the others with
        the worst.
    """
    scored = np.flatnonzero(~np.isnan(ap))
    order = scored[np.argsort(ap[scored], kind="stable")]
    outwards = order[np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) / 2), kind="stable")]
    taken: set[int] = set()
    groups = {}
    for name, candidates in (("worst", order), ("best", order[::-1]), ("median", outwards)):
        groups[name] = _first_of_persons([row for row in candidates.tolist() if row not in taken], person_id, count)
        taken.update(groups[name].tolist())
    groups["median"] = groups["median"][np.argsort(ap[groups["median"]], kind="stable")]
    return {name: groups[name] for name in ("worst", "median", "best")}


def _first_of_persons(candidates: Iterable[int], person_id: np.ndarray, count: int) -> np.ndarray:
    chosen, again, persons = [], [], set()
    for row in candidates:
        (again if person_id[row] in persons else chosen).append(row)
        persons.add(person_id[row])
        if len(chosen) == count:
            break
    return np.array((chosen + again)[:count], np.int64)


def rank_lists(
    query: Embeddings,
    gallery: Embeddings,
    result: ranking.RankingResult,
    frames: Frames,
    *,
    count: int = 4,
    length: int = STRIP_LENGTH,
) -> str:
    """HTML of the worst, median and best queries of one direction.

    Args:
        query: embeddings of the query modality; row i is row i of its images.
        gallery: embeddings of the other modality; likewise.
        result: `ranking.rank(query, gallery, ...)`.
        frames: the images.
        count: queries per group.
        length: gallery items per query.
    """
    parts = []
    for name, rows in choose_queries(result.ap, query.person_id, count).items():
        if not len(rows):
            continue
        parts.append(f"<h3>{name.capitalize()} queries by AP</h3>")
        metric = ranking.natural_metric(query, gallery)
        index, distance = ranking.nearest(query, gallery, rows, result.protocol, length, metric=metric)
        for row, items, distances in zip(rows, index, distance, strict=True):
            parts.append(_strip(query, gallery, result, frames, int(row), items, distances))
    return "\n".join(parts)


def _strip(query, gallery, result, frames, row, items, distances) -> str:
    """One query with its gallery items, int [K] with -1 where there is none, at distances, float [K]."""
    person, first = int(query.person_id[row]), int(result.first_hit_rank[row])
    shown = [int(item) for item in items if item >= 0]
    heading = f"Person {person} &middot; AP {result.ap[row]:.3f} &middot; first correct at rank <b>{first}</b>"
    if first > len(shown):
        seen = any(gallery.person_id[item] == person for item in shown)
        heading += " (at equal distances other persons count first)" if seen else " (beyond this list)"
    cells = [
        _cell(
            frames, row, query.modality, "", f"<b>query</b><br>camera {query.camera_id[row]}", f"query, person {person}"
        ),
    ]
    twin = _twin(query, gallery, row)
    if twin is not None:
        description = f"the query's {gallery.modality} image"
        cells.append(_cell(frames, twin, gallery.modality, "paired", "same instant", description))
    for place, (item, distance) in enumerate(zip(shown, distances, strict=False), start=1):
        other = int(gallery.person_id[item])
        kind, mark, words = ("same", "&#10003;", "same") if other == person else ("other", "&#10007;", "other")
        caption = f"<b>{mark} {place}</b> &middot; {distance:.3f}<br>person {other}<br>camera {gallery.camera_id[item]}"
        description = f"rank {place}: {words} person, person {other}, distance {distance:.3f}"
        cells.append(_cell(frames, item, gallery.modality, kind, caption, description))
    return f'<div class="strip"><p>{heading}</p><div class="row">{"".join(cells)}</div></div>'


def _twin(query: Embeddings, gallery: Embeddings, row: int) -> int | None:
    """The gallery's row of the query's own instant; None where it was not recorded, or instants are unknown."""
    found = np.ones(len(gallery), bool)
    for key in ("recording_id", "frame_id"):
        own, others = getattr(query, key), getattr(gallery, key)
        if own is None or others is None:
            return None
        found &= others == own[row]
    return int(found.argmax()) if found.any() else None


def _cell(frames: Frames, row: int, modality: str, kind: str, caption: str, description: str) -> str:
    """One thumbnail; `caption` is HTML, `description` plain text."""
    return (
        f'<figure class="{kind}"><img src="{data_uri(frames.thumbnail(row, modality))}" alt="{escape(description)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def depth_key() -> str:
    """HTML that explains the colours of depth thumbnails."""
    colours = figures.depth_colours()[:: 255 // 5]
    stops = ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in colours)
    grey = f"rgb{NO_READING}"
    return (
        f'<p class="faint">Depth: {DEPTH_WINDOW_MM / 10:.0f} cm nearer than the person'
        f'<span class="key" style="background: linear-gradient(to right, {stops})"></span>'
        f"{DEPTH_WINDOW_MM / 10:.0f} cm farther or more;"
        f'<span class="key" style="width: 1.2rem; background: {grey}"></span>no reading.</p>'
    )
