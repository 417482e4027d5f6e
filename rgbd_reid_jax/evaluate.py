"""Scores saved embeddings: `python -m rgbd_reid_jax.evaluate --query=a.npz --gallery=b.npz --protocol=market`.

For models trained anywhere: the .npz files of docs/evaluation.md in, a table or one JSON object out. Each number comes
with its definition, each draw with its seed. Numbers go to standard output, all else to standard error.

Exit status: 0, 2 for input that cannot be used (one line says what and how to mend it), 130 when interrupted, 141 when
the reader of its output has left.
"""

import argparse
import json
import os
import pathlib
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.command import Parser, print_result, writable
from rgbd_reid_jax.core.errors import InputError, disk_full, memory_for
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.metrics.embeddings import Embeddings

SCHEMA = 1
_MANY_PAIRS = 50_000_000
_SCORES = {
    "mAP": "mAP (step)",
    "mAP_trapezoid": "mAP (trapezoid)",
    "mINP": "mINP",
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""

    def command() -> str:
        options = _parser().parse_args(arguments)
        return _protocols() if options.list else _run(options)

    return print_result(command, "nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m rgbd_reid_jax.evaluate",
        description="Scores saved embeddings; docs/evaluation.md.",
    )
    add = parser.add_argument
    add(
        "--query",
        type=os.path.expanduser,
        metavar="FILE.npz",
        help="embedding [N, D], person_id [N], camera_id [N], and optional keys",
    )
    add(
        "--gallery",
        type=os.path.expanduser,
        metavar="FILE.npz",
        help="what queries are compared with; default: the query file",
    )
    add("--protocol", metavar="NAME", help="--list describes them")
    add("--list", action="store_true", help="describe the protocols and their parameters")
    add("--metric", default="euclidean", help="euclidean (default), cosine, or gated with the key `gate`")
    add("--param", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the protocol; repeatable")
    add("--both_directions", action="store_true", help="also rank the query file by the gallery file")
    add("--multi_frame", action="store_true", help="compare recordings: the mean embedding of their frames")
    add("--groups", action="store_true", help="scores apart by clothes, pair of cameras, and type of recording")
    add("--query_expansion", type=int, default=0, metavar="K", help="average K nearest gallery items into each query")
    add("--rerank", type=_rerank, metavar="K1,K2,LAMBDA", help="k-reciprocal re-ranking, such as 20,6,0.3")
    add("--seed", type=int, default=0, help="of draws and of the bootstrap (default 0)")
    add("--max_rank", type=int, default=20, help="length of the CMC curve (default 20, at least 10)")
    add("--json", action="store_true", help="print one JSON object, and nothing else, to standard output")
    add("--output", type=os.path.expanduser, metavar="FILE.json", help="write the JSON object to a file as well")
    return parser


def _run(options: argparse.Namespace) -> str:
    """What is to be printed."""
    for flag in ("query", "protocol"):
        if not getattr(options, flag):
            raise InputError(f"--{flag} is missing; --help lists the flags, --list the protocols")
    parameters = dict(_parameter(text) for text in options.param)
    if options.output:
        _check_output(pathlib.Path(options.output), (options.query, options.gallery))
    sets = _load(options)
    from rgbd_reid_jax.metrics.protocols.registry import evaluate  # imports JAX, which mistakes need not wait for

    content: dict[str, Any] = {"schema": SCHEMA}
    content |= {
        side: {"file": items.source, "items": len(items), "persons": len(np.unique(items.person_id))}
        for side, items in sets.items()
    }
    with memory_for(f"ranking {len(sets['gallery'])} items for {len(sets['query'])} queries"):
        content["results"] = {
            direction: evaluate(
                options.protocol,
                sets[query],
                sets[gallery],
                metric=options.metric,
                seed=options.seed,
                max_rank=options.max_rank,
                parameters=parameters,
                groups=options.groups,
                query_expansion=options.query_expansion,
                rerank=options.rerank,
                engine=_engine(direction, sets),
            )
            for direction, (query, gallery) in _directions(sets, options.both_directions).items()
        }
    if options.output:
        _write(pathlib.Path(options.output), content)
    return json.dumps(content) if options.json else _readable(content["results"])


def _load(options: argparse.Namespace) -> dict[str, Embeddings]:
    """{"query", "gallery"}: the embeddings."""
    query = Embeddings.load(str(options.query))
    path = options.gallery or options.query
    sets = {"query": query, "gallery": query if path == options.query else Embeddings.load(path)}
    if options.multi_frame:
        from rgbd_reid_jax.metrics.protocols.passages import mean_of_frames

        sets = {side: mean_of_frames(items, "--multi_frame") for side, items in sets.items()}
    return sets


def _directions(sets: Mapping[str, Embeddings], both: bool) -> dict[str, tuple[str, str]]:
    """{name: (query, gallery)}; names are those of the modalities where they are known and tell the two apart."""
    names = [sets[side].modality for side in ("query", "gallery")]
    if not all(names) or (both and names[0] == names[1]):
        names = ["query", "gallery"]
    found = {f"{names[0]}_to_{names[1]}": ("query", "gallery")}
    return {**found, f"{names[1]}_to_{names[0]}": ("gallery", "query")} if both else found


def _engine(direction: str, sets: Mapping[str, Embeddings]) -> dict[str, Any]:
    """All devices of the process, and progress lines where there is time to read them."""
    from rgbd_reid_jax.core.mesh import make_mesh

    takes_long = len(sets["query"]) * len(sets["gallery"]) > _MANY_PAIRS
    return {"mesh": make_mesh(), "stage": direction if takes_long else ""}


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InputError(f"--param={text} is not of the form NAME=VALUE; --list names the parameters")
    return name, value


def _rerank(text: str) -> tuple[int, int, float]:
    try:
        k1, k2, weight = text.split(",")
        return int(k1), int(k2), float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 20,6,0.3") from None


def _check_output(path: pathlib.Path, inputs: Sequence[str | None]) -> None:
    """Raises InputError before any work for a place where no file can be written, or where the embeddings are."""
    if any(name and path.resolve() == pathlib.Path(name).resolve() for name in inputs):
        raise InputError(f"--output={path} would overwrite the embeddings; give another file")
    writable("--output", str(path))


def _write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    try:
        files.write_json(path, content)
    except OSError as error:
        full = disk_full(error)
        why = str(error.strerror or error) if full is None else f"the disk is full{full}"
        raise InputError(f"--output={path} cannot be written ({why}); give another place or free space") from error
    say("evaluate", f"wrote {path}")


def _protocols() -> str:
    """The protocols with their parameters, for a reader."""
    from rgbd_reid_jax.metrics.protocols.registry import PROTOCOLS

    lines = []
    for name, protocol in PROTOCOLS.items():
        defaults = ", ".join(f"{key}={value}" for key, value in protocol.defaults.items())
        about = [protocol.words] + [f"--param: {defaults}"] * bool(defaults)
        about += [f"{key}: {text}" for key, text in protocol.definitions.items()]
        lines += [
            name,
            *(textwrap.fill(text, 120, initial_indent="  ", subsequent_indent="    ") for text in about),
            "",
        ]
    return "\n".join(lines).rstrip()


def _readable(results: Mapping[str, Any]) -> str:
    """A table per direction, each number with its interval and definition; percent."""
    lines = []
    for direction, found in results.items():
        about = found["protocol"]
        given = "".join(f", {name}={value}" for name, value in about["parameters"].items())
        changes = {"query_expansion": about.get("query_expansion"), **about.get("rerank", {})}
        given += "".join(f", {name}={value}" for name, value in changes.items() if value is not None)
        lines.append(f"{direction}  protocol {about['name']}{given}, metric {found['metric']}, seed {about['seed']}")
        lines.append(f"  {about['words']}")
        lines += _scores(found)
        lines += [f"  fault {fault['name']}: {fault['words']}" for fault in found.get("faults", ())]
        for name, scenario in found.get("scenarios", {}).items():
            lines += [f"  {name}", *(f"  {line}" for line in _scores(scenario))]
        for kind, members in found.get("groups", {}).items():
            for name, scores in members.items():
                words = "  ".join(
                    f"{_SCORES[key]} {100 * scores[key]:.1f}" for key in ("mAP", "rank1", "rank5", "rank10")
                )
                lines.append(f"  {kind} {name}: {words}  ({scores['num_query']} queries)")
        lines.append("")
    return "\n".join(lines).rstrip()


def _scores(found: Mapping[str, Any]) -> list[str]:
    """One line per number, then the counts."""
    if "eer" in found:
        return _error_rates(found)
    lines = []
    for key, name in _SCORES.items():
        bounds = found.get("intervals", {}).get(key)
        between = f"[{100 * bounds[0]:5.1f} .. {100 * bounds[1]:5.1f}]" if bounds else ""
        meaning = found.get("definitions", {}).get("cmc" if key.startswith("rank") else key, "")
        lines.append(f"  {name:<16}{100 * found[key]:6.2f} %  {between:<18}{meaning}".rstrip())
    absent, emptied = found["num_query_absent"], found["num_query_skipped"] - found["num_query_absent"]
    lines.append(
        f"  {found['num_query']} queries, {found['num_query_skipped']} of them skipped: {absent} whose person is not "
        f"in the gallery, {emptied} whose positives the rule dropped"
    )
    lines.append(f"  gallery {found['num_gallery']}, ties {100 * found['tie_rate']:.2f} % of the correct items")
    return lines


def _error_rates(found: Mapping[str, Any]) -> list[str]:
    """The thresholds of verification."""
    lines = [f"  equal error rate {100 * found['eer']:.2f} % at the distance {_distance(found['eer_threshold'])}"]
    for wanted, point in found["tpr_at_fpr"].items():
        what = f"accepts {100 * point['tpr']:.2f} % of the same-person pairs (TPR)" if point["tpr"] is not None else ""
        at = _distance(point["threshold"])
        lines.append(
            f"  FPR at most {wanted}: distance <= {at} {what}" if what else f"  FPR {wanted}: {point['reason']}"
        )
    pairs = f"{found['num_same']:,} pairs of the same person and {found['num_different']:,} of different persons"
    lines.append(
        f"  {pairs}; median distances {_distance(found['median_same'])} and {_distance(found['median_different'])}"
    )
    return lines


def _distance(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
