"""Benchmark of the input pipeline; README.md says what it measures and how to run it."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

_HERE = pathlib.Path(__file__).parent
_SIZES = ((256, 128), (64, 32))
_PEERS = ("pillow", "opencv")
_CACHES = ("device", "host", "none")


def child(command: Sequence[Any], **environment: str) -> dict[str, Any]:
    """The JSON object that a command prints last."""
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        cwd=_HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(str(word) for word in command)} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def throughput(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Per size and decoder of the peer: images/s of both, in pairs, and the median of their ratios."""
    rows = []
    for height, width in _SIZES:
        folder = options.scratch / f"{height}x{width}"
        program = f"import sys; sys.path.insert(0, {str(_HERE)!r}); import pathlib, json, make_data; "
        program += f"made = make_data.make(pathlib.Path({str(folder)!r}), {height}, {width}, {options.frames}); "
        file = child([sys.executable, "-c", program + "print(json.dumps({'file': str(made)}))"])["file"]
        shared = ["--batch", options.batch, "--workers", options.workers, "--seconds", options.seconds]
        pairs: dict[str, list[tuple[float, float]]] = {peer: [] for peer in _PEERS}
        decode = []
        for _ in range(options.repeats):
            for peer in _PEERS:
                own = child([sys.executable, _HERE / "own_loader.py", file, "--size", height, width, *shared])
                decode.append(own["decode_images_per_s"])
                loader = [options.torch_python, _HERE / "torch_loader.py", folder, "--decoder", peer]
                pairs[peer].append((own["images_per_s"], child([*loader, *shared])["images_per_s"]))
        for peer, found in pairs.items():
            ratios = [own / other for own, other in found]
            rows.append(
                {
                    "size": f"{height}x{width}",
                    "peer": f"DataLoader, {peer}",
                    "own_images_per_s": statistics.median(own for own, _ in found),
                    "own_decode_images_per_s": statistics.median(decode),
                    "peer_images_per_s": statistics.median(other for _, other in found),
                    "ratio": statistics.median(ratios),
                    "ratio_range": [min(ratios), max(ratios)],
                }
            )
    return rows


def waits(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Per cache: the share of the main job's training time that its loop waits for data, and the first batch's time."""
    rows = []
    for cache in _CACHES:
        shares, rates, starts = [], [], []
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                training = "--config.training.teacher"
                command = [
                    sys.executable,
                    "-m",
                    "rgbd_reid_jax.main",
                    "--config=configs/distill.py",
                    "--stages=teacher",
                ]
                command += [f"--workdir={folder}/run", f"--config.dataset.cache={cache}"]
                command += [f"{training}.steps={options.steps}", f"{training}.evaluate_every={options.steps}"]
                subprocess.run(command, cwd=_HERE.parents[1], check=True, capture_output=True)
                text = pathlib.Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8")
            lines = [line for line in map(json.loads, text.splitlines()) if "data_wait" in line]
            shares.append(statistics.mean(line["data_wait"] for line in lines))
            rates.append(lines[-1]["images_per_s"])
            first = [sys.executable, _HERE / "first_batch.py", cache]
            starts.append(child(first, BENCHMARK_BEGAN=repr(time.time()))["seconds"])
        rows.append(
            {
                "cache": cache,
                "data_wait": statistics.median(shares),
                "data_wait_range": [min(shares), max(shares)],
                "images_per_s": statistics.median(rates),
                "first_batch_s": statistics.median(starts),
                "first_batch_range": [min(starts), max(starts)],
            }
        )
    return rows


def markdown(found: dict[str, Any]) -> str:
    """The results as two tables."""
    lines = ["| size | peer | ours images/s | peer images/s | ratio (least .. greatest) |", "|---|---|---|---|---|"]
    for row in found["throughput"]:
        low, high = row["ratio_range"]
        lines.append(
            f"| {row['size']} | {row['peer']} | {row['own_images_per_s']:.0f} | {row['peer_images_per_s']:.0f} "
            f"| {row['ratio']:.2f} ({low:.2f} .. {high:.2f}) |"
        )
    lines += ["", "| cache | step waits for data | training images/s | first batch after start |", "|---|---|---|---|"]
    for row in found["waits"]:
        lines.append(
            f"| {row['cache']} | {100 * row['data_wait']:.2f} % | {row['images_per_s']:.0f} "
            f"| {row['first_batch_s']:.2f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs everything, or the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-python", required=True, help="the interpreter that has requirements.txt")
    parser.add_argument("--scratch", type=pathlib.Path, required=True, help="folder for the rendered frames")
    parser.add_argument("--parts", nargs="+", choices=("throughput", "waits"), default=("throughput", "waits"))
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    options.scratch = options.scratch.absolute()
    found: dict[str, Any] = {name: [] for name in ("throughput", "waits")}
    found["settings"] = {name: str(value) for name, value in vars(options).items()}
    found["machine"] = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    for name, measure in (("throughput", throughput), ("waits", waits)):
        if name in options.parts:
            found[name] = measure(options)
    print(json.dumps(found, indent=1))
    print(markdown(found))


if __name__ == "__main__":
    main()
