"""The headline numbers as a small terminal table, and the names of directions and scores in words."""

from collections.abc import Mapping

from rgbd_reid_jax.metrics.embeddings import DIRECTIONS

_MODALITY_WORDS = {"rgb": "RGB", "depth": "depth"}
DIRECTION_WORDS = {
    name: f"{_MODALITY_WORDS[query]} -> {_MODALITY_WORDS[gallery]}" for name, (query, gallery) in DIRECTIONS.items()
}
SCORES = {"mAP": "mAP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10"}
_CHANCE_SCORES = ("mAP", "rank1")


def percent(fraction: float | None) -> str:
    """0.1234 -> "12.3"; a dash where there is no value."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def results_table(results: Mapping) -> str:
    """The content of results.json as text: directions as rows, scores in percent, chance beside.

    Args:
        results: {"results": {direction: {"mAP", "rank1", "rank5", "rank10"}}, "chance": the same, ...}, fractions of 1.

    Returns:
        Lines of equal columns without a final newline, at most 80 characters wide.
    """
    scores, chance = results["results"], results.get("chance", {})
    header = ["query -> gallery", *SCORES.values(), *(f"chance {SCORES[key]}" for key in _CHANCE_SCORES)]
    rows = [
        [
            words,
            *(percent(scores[direction].get(key)) for key in SCORES),
            *(percent(chance.get(direction, {}).get(key)) for key in _CHANCE_SCORES),
        ]
        for direction, words in DIRECTION_WORDS.items()
        if direction in scores
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
