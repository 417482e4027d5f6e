"""The self-contained HTML report of one evaluation: what it shows and in which order."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import dense, ranking, verification
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS, Embeddings
from rgbd_reid_jax.reporting import figures, page, strips
from rgbd_reid_jax.reporting.strips import Frames
from rgbd_reid_jax.reporting.table import DIRECTION_WORDS, SCORES, percent

__all__ = ["INTENDED_USE", "Frames", "write_report"]

_SCHEMA = 1
_FALSE_POSITIVE_RATE = 1e-2
_MAX_PAIRS = 4_000_000
_MAP_PERSONS = 12
_MAP_IMAGES = 20
INTENDED_USE = (
    "Finding consenting people again across RGB and depth cameras, for research and robotics. Not for identifying "
    "people who did not agree to it. A match is a likelihood, not proof of who somebody is; respect the law on "
    "biometric data where you are."
)
_IMAGES_WITHIN = (
    "The persons shown keep their rights to information, correction and deletion, and this file holds their images: "
    "store and share it as the recordings themselves."
)


def write_report(
    output: pathlib.Path,
    *,
    title: str,
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    query_sets: Mapping[str, Embeddings],
    frames: Frames,
    protocol: str,
) -> pathlib.Path:
    """Writes `output`/index.html, whole or not at all.

    Args:
        output: folder of the report; made if missing.
        title: its heading, plain text.
        results: the content of results.json, schema 1, scores as fractions of 1.
        config: the run's configuration, shown as JSON.
        metrics: lines of metrics.jsonl, {"stage", "step", "loss", ...}; may be empty.
        query_sets: {"rgb", "depth"} embeddings of the test split.
        frames: the images; row i of a modality belongs to row i of its embeddings.
        protocol: a key of `ranking.RULES`.

    Returns:
        The file.

    Raises:
        InputError: an unknown schema or protocol, or rows that do not fit together.
    """
    _check(results, query_sets, frames, protocol)
    ranked = {
        direction: ranking.rank(
            query_sets[query],
            query_sets[gallery],
            protocol,
            metric=ranking.natural_metric(query_sets[query], query_sets[gallery]),
        )
        for direction, (query, gallery) in DIRECTIONS.items()
    }
    body = "\n".join(
        [
            _headline(title, results, ranked, protocol),
            page.section("curves", "How far down the list", _ranking_plots(ranked, query_sets, protocol)),
            page.section("training", "Training", _training_plots(metrics)),
            page.section("ranks", "Rank lists", _rank_lists(ranked, query_sets, frames)),
            _footer(results, config),
        ]
    )
    path = pathlib.Path(output) / "index.html"
    files.write_text(path, page.document(title, body))
    return path


def _check(results, query_sets, frames, protocol) -> None:
    if results.get("schema") != _SCHEMA:
        raise InputError(f"results have schema {results.get('schema')!r}, expected {_SCHEMA}; evaluate again")
    if protocol not in ranking.RULES:
        raise InputError(f"unknown protocol {protocol!r}; choose one of {', '.join(ranking.RULES)}")
    if results.get("protocol", protocol) != protocol:
        raise InputError(f"results were ranked with protocol {results['protocol']!r}, not {protocol!r}; evaluate again")
    rgb, depth = query_sets["rgb"], query_sets["depth"]
    for name, embeddings, images in (
        ("RGB", rgb, frames.rgb),
        ("depth", depth, frames.depth),
        ("depth", depth, frames.mask),
    ):
        if len(embeddings) != len(images):
            raise InputError(
                f"{len(embeddings)} {name} embeddings and {len(images)} of their images: row i of both must be the "
                "same; embed the same test split again"
            )


def _headline(title: str, results, ranked, protocol: str) -> str:
    rows = []
    for direction, words in DIRECTION_WORDS.items():
        counts = results.get("queries", {}).get(direction, {})
        sizes = (
            f"{_count(counts.get('num_query'))} queries, {_count(counts.get('num_query_skipped'))} skipped, "
            f"gallery {_count(counts.get('num_gallery'))}"
        )
        scores, chance = results["results"].get(direction, {}), results.get("chance", {}).get(direction, {})
        cells = "".join(
            f"<td><b>{percent(scores.get(key))}</b><small>chance {percent(chance.get(key))}</small></td>"
            for key in SCORES
        )
        rows.append(f"<tr><th>{_arrow(words)}<small>{page.escape(sizes)}</small></th>{cells}</tr>")
    head = "".join(f"<th>{name}, %</th>" for name in SCORES.values())
    tied = max(result.tie_rate for result in ranked.values())
    notice = (
        f'<p class="notice">Up to {percent(tied)} % of the correct items are exactly as far as another person; '
        "each such tie counts as an error. The embeddings may have collapsed.</p>"
        if tied > 0.01
        else ""
    )
    if results.get("multi_frame") or "without_gate" in results:
        what = "recordings" if results.get("multi_frame") else "pairs of images one by one"
        notice += (
            f'<p class="notice">The table compares {what}; curves and rank lists below show single frames'
            f"{' without that' if 'without_gate' in results else ''}.</p>"
        )
    gated = ", across modalities of gated embeddings" if results.get("gate") == "pairwise" else ""
    return (
        f"<header><h1>{page.escape(title)}</h1>"
        f'<p class="faint">{page.escape(results.get("dataset", "unknown dataset"))}</p>'
        '<nav><a href="#curves">Curves</a><a href="#training">Training</a><a href="#ranks">Rank lists</a></nav>'
        "</header>"
        f'<div class="scroll"><table><thead><tr><th>query &rarr; gallery</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="faint">Protocol {page.escape(protocol)}: {page.escape(ranking.RULES[protocol].words)}. '
        f"Step AP, Euclidean distance{gated}, ties count against the correct item. "
        "Skipped queries have no correct item left. "
        f"Chance is the exact expectation of a random order.</p>{notice}"
    )


def _ranking_plots(ranked, query_sets, protocol: str) -> str:
    rgb, depth = query_sets["rgb"], query_sets["depth"]
    curves = [
        figures.Curve(
            f"{_unicode(words)} (mAP {percent(ranked[direction].mean_ap)} %)",
            np.arange(1, len(ranked[direction].cmc) + 1),
            ranked[direction].cmc,
            style="-" if direction in ("rgb_to_depth", "depth_to_rgb") else "--",
        )
        for direction, words in DIRECTION_WORDS.items()
    ]
    chance = ranked["rgb_to_depth"].chance_cmc
    curves.append(figures.Curve("chance, RGB \N{RIGHTWARDS ARROW} depth", curves[0].x, chance, ":", reference=True))
    same, different = _pair_distances(rgb, depth, protocol)
    rates = verification.verify(same, different, fpr=_FALSE_POSITIVE_RATE)
    persons = _evenly(np.unique(np.concatenate([rgb.person_id, depth.person_id])), _MAP_PERSONS)
    shown = {one.modality: one.take(_map_rows(one.person_id, persons)) for one in (rgb, depth)}
    return (
        '<div class="plots">'
        + page.plot(
            figures.lines(
                curves,
                x_label="rank k",
                y_label="queries with a hit by rank k [%]",
                percent=True,
                ticks=(1, 5, 10, 15, 20),
            ),
            "CMC curves of the four directions and of a random order",
            "CMC: share of queries whose first correct gallery item has at most this rank. Dashed: within a modality.",
        )
        + page.plot(
            figures.histogram(same, different, rates),
            "Histograms of the distances of RGB-depth pairs of the same and of different persons",
            _verification_words(rates, len(same), len(different)),
        )
        + page.plot(
            figures.embedding_map(shown["rgb"], shown["depth"]),
            "Embeddings of some persons on their first two principal components",
            f"PCA of {len(persons)} persons, up to {_MAP_IMAGES} instants each; filled circle "
            "RGB, open triangle depth. Two separate clouds mean that the modalities are still apart.",
        )
        + "</div>"
    )


def _verification_words(rates: verification.Verification, num_same: int, num_different: int) -> str:
    at = (
        f"At the threshold {rates.threshold:.3f}, {percent(rates.tpr)} % of the same-person pairs are accepted (TPR) "
        f"and {percent(rates.fpr)} % of the others (FPR, wanted at most {percent(_FALSE_POSITIVE_RATE)} %)."
        if np.isfinite(rates.threshold)
        else f"No threshold keeps the FPR at {percent(_FALSE_POSITIVE_RATE)} %."
    )
    return (
        f"Same person or not, one RGB and one depth image: {at} Equal error rate {percent(rates.eer)} %. "
        f"{_count(num_same)} and {_count(num_different)} valid pairs."
    )


def _pair_distances(query: Embeddings, gallery: Embeddings, protocol: str) -> tuple[np.ndarray, np.ndarray]:
    """Distances of valid pairs of the same and of different persons; evenly spaced queries if too many."""
    count = max(1, min(len(query), _MAX_PAIRS // len(gallery)))
    rows = np.unique(np.linspace(0, len(query) - 1, count).round().astype(np.int64))
    distance = dense.matrix(query.take(rows), gallery, ranking.natural_metric(query, gallery))
    valid = ranking.valid_items(query, gallery, protocol, rows)
    same = query.person_id[rows, None] == gallery.person_id[None]
    return distance[valid & same], distance[valid & ~same]


def _map_rows(person_id: np.ndarray, persons: np.ndarray) -> np.ndarray:
    """`_MAP_IMAGES` rows of each of `persons`, evenly over theirs."""
    return np.concatenate([_evenly(np.flatnonzero(person_id == person), _MAP_IMAGES) for person in persons])


def _evenly(values: np.ndarray, count: int) -> np.ndarray:
    if not len(values):
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(np.int64))]


def _training_plots(metrics) -> str:
    keys = list(dict.fromkeys(key for record in metrics for key in record))
    plots = []
    for wanted, axis, is_percent, words in (
        (lambda key: key == "loss", "loss", False, "Loss over the steps of each stage."),
        (lambda key: key.endswith("accuracy"), "accuracy [%]", True, "Accuracy on training batches."),
        (lambda key: key.startswith("eval/") and key.endswith("mAP"), "mAP [%]", True, "mAP on the validation split."),
        (lambda key: key == "images_per_s", "images/s", False, "Throughput."),
    ):
        chosen = [key for key in keys if wanted(key)]
        curves = [
            figures.Curve(stage if len(chosen) == 1 else f"{stage}: {_key_words(key)}", steps, values)
            for key in chosen
            for stage, (steps, values) in figures.series(metrics, key).items()
        ]
        if curves:
            png = figures.lines(curves, x_label="step", y_label=axis, percent=is_percent, from_zero=axis == "images/s")
            plots.append(page.plot(png, f"{axis} over training steps", words))
    return f'<div class="plots">{"".join(plots)}</div>' if plots else "<p>No training log was given.</p>"


def _rank_lists(ranked, query_sets, frames: Frames) -> str:
    parts = [
        "<p>Left: the query and the other modality of its instant. Right: the nearest gallery items with rank and "
        "distance; a tick and a solid border mark the query's person, a cross and a dashed border another one. "
        "Each group shows at most one query per person where it can.</p>",
        strips.depth_key(),
    ]
    for direction in ("rgb_to_depth", "depth_to_rgb"):
        query, gallery = DIRECTIONS[direction]
        content = strips.rank_lists(query_sets[query], query_sets[gallery], ranked[direction], frames)
        parts.append(page.section(f"ranks_{direction}", _unicode(DIRECTION_WORDS[direction]), content))
    return "\n".join(parts)


def _footer(results, config) -> str:
    def as_text(value) -> str:
        return json.dumps(value, indent=2, default=str, ensure_ascii=False)

    return (
        f"<footer>{page.collapsible('Configuration', as_text(dict(config)))}"
        f"{page.collapsible('Environment', as_text(results.get('environment', {})))}"
        f'<p class="faint">Intended use: {page.escape(INTENDED_USE)} {page.escape(_IMAGES_WITHIN)}</p></footer>'
    )


def _key_words(key: str) -> str:
    """eval/rgb_to_depth/mAP -> RGB -> depth; other keys as they are."""
    parts = key.split("/")
    return _unicode(DIRECTION_WORDS[parts[1]]) if len(parts) == 3 and parts[1] in DIRECTION_WORDS else key


def _unicode(words: str) -> str:
    return words.replace("->", "\N{RIGHTWARDS ARROW}")


def _arrow(words: str) -> str:
    return page.escape(_unicode(words))


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
