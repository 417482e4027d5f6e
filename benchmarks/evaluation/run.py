"""Times this project's evaluator against its peers: pairs in one run on one machine, the median of the pairs' ratios.

    python benchmarks/evaluation/run.py --size=market --rounds=5 --output=market.json

Each round runs every contestant once, one after the other, in a process of its own, so that its peak memory is its own.
In it the evaluator is called twice: the first call (cold) includes compilation and the reading of files, the second
(warm) is the one compared. Nothing else should run on the machine.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

import data
import peers

_SLOW = ("torchreid_python", "scikit_learn")
_PACKAGES = ("numpy", "jax", "jaxlib", "torch", "scikit-learn", "cython")


def main() -> None:
    """Prepares peers and data, runs the rounds, prints the table."""
    args = _arguments()
    if set(args.contestants) - {"ours"}:
        peers.prepare(args.peers, args.torchreid_pyx)
    size = data.SIZES[args.size]
    if args.queries:
        size = dataclasses.replace(size, num_query=args.queries)
    results: dict[str, list[dict]] = {name: [] for name in args.contestants}
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        data.write(pathlib.Path(folder), size, args.seed)
        flops = _worker("peak", folder, args, 1)["flops"]
        for number in range(args.rounds):
            for name in args.contestants:
                if number == 0 or name not in _SLOW:
                    results[name].append(_worker(name, folder, args, 1 if name in _SLOW or args.once else 2))
                    print(f"round {number + 1}/{args.rounds} {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    report = _report(args, size, flops, results)
    if args.output:
        pathlib.Path(args.output).write_text(json.dumps(report, indent=2) + "\n")
    print(_table(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=data.SIZES, default="market", help="which dataset's size")
    parser.add_argument("--queries", type=int, help="fewer queries than the dataset has")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contestants", nargs="+", choices=peers.CONTESTANTS, default=list(peers.CONTESTANTS))
    parser.add_argument("--once", action="store_true", help="no second call: the cold one is compared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="where the JSON report goes")
    parser.add_argument("--scratch", help="folder for the embeddings (default: the system's)")
    cache = pathlib.Path.home() / ".cache" / "rgbd_reid_jax" / "peers"
    parser.add_argument("--peers", type=pathlib.Path, default=cache, help="folder of the peers' evaluators")
    parser.add_argument("--torchreid_pyx", default="", help="file or URL of torchreid's rank_cy.pyx (default: GitHub)")
    return parser.parse_args()


def _worker(name: str, folder: str, args: argparse.Namespace, repeats: int) -> dict:
    command = [sys.executable, str(pathlib.Path(peers.__file__)), name, folder, str(args.peers), str(repeats)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {
            "failed": f"exit status {done.returncode}" + (" (killed: out of memory?)" if done.returncode < 0 else "")
        }
    return json.loads(done.stdout.splitlines()[-1])


def _report(args: argparse.Namespace, size: data.Size, flops: float, results: dict[str, list[dict]]) -> dict:
    """The figures of every contestant; a pair is this project's and a peer's run of the same round."""
    contestants = {}
    for name, runs in results.items():
        good = [run for run in runs if "seconds" in run]
        if not good:
            contestants[name] = runs[0]
            continue
        seconds = [run["seconds"][-1] for run in good]
        pairs = zip(seconds, [run["seconds"][-1] for run in results.get("ours", []) if "seconds" in run], strict=False)
        contestants[name] = {
            "seconds": statistics.median(seconds),
            "seconds_of_rounds": seconds,
            "seconds_cold": statistics.median(run["seconds"][0] for run in good),
            "times_ours": statistics.median([theirs / ours for theirs, ours in pairs] or [float("nan")]),
            "peak_rss": max(run["peak_rss"] for run in good),
            "mAP": good[-1]["mAP"],
            "rank1": good[-1]["rank1"],
        }
        products = 2.0 * size.num_query * size.num_gallery * size.width
        contestants[name]["share_of_matmul_peak"] = products / contestants[name]["seconds"] / flops
    installed = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES if name in installed}
    machine = {"processor": _processor(), "processors": os.cpu_count(), "python": platform.python_version()}
    return {
        "size": {"name": args.size, **dataclasses.asdict(size)},
        "seed": args.seed,
        "machine": machine | {"matmul_peak_gflops": flops / 1e9},
        "versions": versions,
        "contestants": contestants,
    }


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _table(report: dict) -> str:
    size = report["size"]
    lines = [
        f"{size['name']}: {size['num_query']} x {size['num_gallery']} x {size['width']}, {report['machine']}",
        "",
        "| evaluator | seconds | first call | times ours | peak memory | share of matmul peak | mAP | rank-1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, run in report["contestants"].items():
        if "failed" in run:
            lines.append(f"| {name} | {run['failed']} | | | | | | |")
            continue
        lines.append(
            f"| {name} | {run['seconds']:.2f} | {run['seconds_cold']:.2f} | {run['times_ours']:.2f} | "
            f"{run['peak_rss'] / 1e9:.2f} GB | {100 * run['share_of_matmul_peak']:.0f} % | "
            f"{run['mAP']:.6f} | {run['rank1']:.6f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
