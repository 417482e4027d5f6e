"""How a step's time grows with the batch, embedding extraction with the dataset, memory with the steps, and the start.

    python benchmarks/train_step/growth.py --output growth.json --picture growth.png

Steps of the main job's network under the paper's recipe, on random images; all else of the main job on the embedded
dataset (any run of it builds that). On this machine's devices.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from cases import PEOPLE
from run import Side

from rgbd_reid_jax.core import allocator

_HERE = pathlib.Path(__file__).parent
_SMALL = {"network": "small", "height": 64, "width": 32, "kind": "teacher"}
_BATCHES = (8, 16, 32, 64, 128, 256, 512)
_SHARES = (0.125, 0.25, 0.5, 1.0)


def step_times(repeats: int) -> list[dict[str, float]]:
    """Seconds of the teacher's step for each batch, the least of some turns.

    The batches take turns, a process each: a machine that slows down for a minute would bend the curve otherwise.
    """
    words = [sys.executable, _HERE / "own_step.py", json.dumps(_SMALL), "--people", PEOPLE, "--dtype", "float32"]
    sides = {batch: Side([*words, "--batch", batch]) for batch in _BATCHES}
    least = dict.fromkeys(_BATCHES, math.inf)
    for _ in range(repeats):
        for batch, side in sides.items():
            count = max(1, 1024 // batch)
            least[batch] = min(least[batch], side.steps(count)["seconds"] / count)
    for side in sides.values():
        side.close()
    return [{"batch": batch, "seconds": seconds} for batch, seconds in least.items()]


def extraction_times(repeats: int) -> list[dict[str, float]]:
    """Seconds to embed parts of the training split, the least of some turns; decoded and compiled before."""
    program = f"import sys; sys.path.insert(0, {str(_HERE)!r}); import extraction; "
    program += f"print(extraction.measure({_SHARES!r}, {repeats}))"
    return json.loads(_python("-c", program).stdout.splitlines()[-1])


def memory(steps: int) -> list[dict[str, float]]:
    """Resident memory of the teacher's training, read when each 50th step is logged."""
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(_main(folder, steps, 50), cwd=_HERE.parents[1], stdout=subprocess.DEVNULL)
        figures = pathlib.Path(folder, "run", "metrics.jsonl")
        while process.poll() is None:
            time.sleep(0.2)
            if not figures.exists():
                continue
            done = [json.loads(line)["step"] for line in figures.read_text().splitlines() if '"loss"' in line]
            if done and (not rows or done[-1] > rows[-1]["step"]):
                status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
                kilobytes = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
                rows.append({"step": done[-1], "bytes": 1024 * int(kilobytes)})
        if process.returncode:
            sys.exit(f"the main job ended with status {process.returncode}")
    return rows


def first_steps(repeats: int) -> dict[str, list[float]]:
    """Seconds from the start of the process to the end of its first step, with a compile cache empty and warm."""
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for kind in found:
                with tempfile.TemporaryDirectory() as folder:
                    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "PYTHONUNBUFFERED": "1"}
                    began = time.perf_counter()
                    words = _main(folder, 1, 1)
                    process = subprocess.Popen(
                        words, cwd=_HERE.parents[1], env=environment, stdout=subprocess.PIPE, text=True
                    )
                    assert process.stdout is not None
                    for line in process.stdout:
                        if "step 1/1" in line:
                            found[kind].append(time.perf_counter() - began)
                    process.wait()
    return found


def _main(folder: str, steps: int, log_every: int) -> list[str]:
    stage = "--config.training.teacher"
    words = [sys.executable, "-m", "rgbd_reid_jax.main", "--config=configs/distill.py", "--stages=teacher"]
    words += [f"--workdir={folder}/run", f"{stage}.steps={steps}", f"{stage}.log_every={log_every}"]
    return [*words, f"{stage}.evaluate_every={steps}"]


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {allocator.VARIABLE: allocator.TUNABLES, **os.environ}
    words = (sys.executable, *words)
    return subprocess.run(words, cwd=_HERE.parents[1], check=True, stdout=subprocess.PIPE, text=True, env=environment)


def draw(found: dict[str, Any], path: pathlib.Path) -> None:
    """The three growths beside each other."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    panels: Sequence[tuple[str, str, str, str, float]] = (
        ("step", "batch", "seconds", "ms per training step", 1e3),
        ("extraction", "frames", "seconds", "s to embed all frames", 1.0),
        ("memory", "step", "bytes", "GB resident", 1e-9),
    )
    for one, (name, x, y, label, scale) in zip(axes, panels, strict=True):
        one.plot([row[x] for row in found[name]], [scale * row[y] for row in found[name]], marker="o")
        one.set(xlabel=x, ylabel=label, ylim=(0, None), xlim=(0, None))
        one.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures all four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000, help="of the memory's measurement")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--picture", type=pathlib.Path, required=True)
    options = parser.parse_args()
    found = {
        "step": step_times(options.repeats),
        "extraction": extraction_times(options.repeats),
        "memory": memory(options.steps),
        "first_step_s": first_steps(3),
    }
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, options.picture)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
