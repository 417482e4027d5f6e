"""Times this project's steps against PyTorch's, in pairs; README.md says what it measures and how to run it."""

import argparse
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from cases import CASES, PEOPLE, VARIANTS, WORDS

from rgbd_reid_jax.core import allocator

_HERE = pathlib.Path(__file__).parent
_TRIALS = 8  # steps of each of the peer's variants, to choose one
_REST_S = 0.5  # between two turns: idle threads of either side stop spinning within it


class Side:
    """A process that takes steps of one case when told to (`server.py`).

    Args:
        command: of the process.
    """

    def __init__(self, command: Sequence[Any]):
        environment = {allocator.VARIABLE: allocator.TUNABLES, **os.environ, "PYTHONPATH": str(_HERE.parents[1])}
        words = [str(word) for word in command]
        self._process = subprocess.Popen(
            words, env=environment, cwd=_HERE.parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._answer()

    def steps(self, count: int) -> dict[str, Any]:
        """Seconds of `count` steps, and the peak memory of the process until then."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            sys.exit(f"{self._process.args}: {answer['error']}")
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"{self._process.args} ended with status {self._process.wait()}")

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def fastest(command: Sequence[Any]) -> Side:
    """The variant of the peer whose fastest step is the shortest; `facts` tell of all ("tried"), in seconds.

    They take turns, all of them in memory: a machine that slows down for a minute would choose otherwise.
    """
    sides = {variant: Side([*command, "--variant", variant]) for variant in VARIANTS}
    tried: dict[str, Any] = {variant: side.facts.get("error", math.inf) for variant, side in sides.items()}
    working = {variant: side for variant, side in sides.items() if "error" not in side.facts}
    if not working:
        sys.exit(f"no variant of the peer works: {tried}")
    for _ in range(_TRIALS):
        for variant, side in working.items():
            time.sleep(_REST_S)
            tried[variant] = min(tried[variant], side.steps(1)["seconds"])
    best = min(working, key=lambda variant: tried[variant])
    for variant, side in sides.items():
        if variant != best:
            side.close()
    sides[best].facts["tried"] = tried
    return sides[best]


def compare(name: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """One case: images/s of both, the median of the ratios of the pairs, and each side's peak memory."""
    words = [json.dumps(CASES[name]), "--batch", batch, "--people", PEOPLE, "--dtype", options.dtype]
    peer = fastest([options.torch_python, _HERE / "torch_step.py", *words])
    sides = {"own": Side([sys.executable, _HERE / "own_step.py", *words]), "torch": peer}
    one = max(side.steps(2)["seconds"] / 2 for side in sides.values())
    count = max(1, round(options.seconds / one))
    pairs, peaks = [], {}
    for turn in range(options.rounds):
        found = {}
        for side in sorted(sides, reverse=turn % 2 == 1):  # who begins changes from pair to pair
            time.sleep(_REST_S)
            answer = sides[side].steps(count)
            found[side], peaks[side] = count * batch / answer["seconds"], answer["peak_bytes"]
        pairs.append((found["own"], found["torch"]))
        print(f"{name} batch {batch} pair {turn + 1}/{options.rounds}: {found}", file=sys.stderr, flush=True)
    for side in sides.values():
        side.close()
    ratios = [own / other for own, other in pairs]
    return {
        "case": name,
        "batch": batch,
        "own_images_per_s": statistics.median(own for own, _ in pairs),
        "torch_images_per_s": statistics.median(other for _, other in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "peak_bytes": peaks,
        "facts": {name: side.facts for name, side in sides.items()},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| network | step | batch | ours images/s | PyTorch images/s | ratio (least .. greatest) | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        case, (low, high) = CASES[row["case"]], row["ratio_range"]
        words = WORDS[case["kind"]].format(**case)
        peaks = " / ".join(f"{row['peak_bytes'][side] / 1e9:.2f} GB" for side in ("own", "torch"))
        lines.append(
            f"| {case['network']} {case['height']}x{case['width']} | {words} | {row['batch']} "
            f"| {row['own_images_per_s']:.1f} | {row['torch_images_per_s']:.1f} "
            f"| {row['ratio']:.2f} ({low:.2f} .. {high:.2f}) | {peaks} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-python", required=True, help="the interpreter that has requirements.txt")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batches", type=int, nargs="+", default=[16])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long each turn is")
    parser.add_argument("--output", type=pathlib.Path, help="where the JSON goes")
    options = parser.parse_args()
    rows = [compare(name, batch, options) for name in options.cases for batch in options.batches]
    machine = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    if options.output:
        settings = {name: str(value) for name, value in vars(options).items()}
        report = {"machine": machine, "settings": settings, "rows": rows}
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(machine))
    print(table(rows))


if __name__ == "__main__":
    main()
