"""The evaluators compared, each run in a process of its own: `python peers.py NAME DATA_FOLDER PEERS_FOLDER REPEATS`.

A run goes from embeddings in files to mAP and CMC under the Market-1501 rule, distances included. Peers get what their
users give them: the whole distance matrix, by torch on all processors in float32. Prints one JSON object.
"""

import importlib.util
import json
import pathlib
import resource
import subprocess
import sys
import tarfile
import time
import urllib.request
import warnings
import zipfile

import numpy as np

_MAX_RANK = 20
_PACKAGES = ("torchreid==0.2.5", "fastreid==1.4.0")
_TORCHREID_CYTHON = (
    "https://raw.githubusercontent.com/KaiyangZhou/deep-person-reid/3143997135b521dc24b4224d1fcb6c5f390563d9/"
    "torchreid/metrics/rank_cylib/rank_cy.pyx"
)


def prepare(folder: pathlib.Path, torchreid_pyx: str) -> None:
    """Downloads the peers' evaluators and compiles the Cython ones below `folder`, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in _PACKAGES:
        if not list(folder.glob(package.split("==")[0] + "-*")):
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
            subprocess.run([*pip, "--dest", str(folder), package], check=True)
    if not (folder / "torchreid").exists():
        with tarfile.open(next(folder.glob("torchreid-*.tar.gz"))) as archive:
            for member in archive.getmembers():
                if member.name.endswith(("metrics/rank.py", "metrics/distance.py")):
                    member.name = "torchreid/" + pathlib.PurePath(member.name).name
                    archive.extract(member, folder, filter="data")
    if not (folder / "fastreid_cython").exists():
        with zipfile.ZipFile(next(folder.glob("fastreid-*.whl"))) as archive:
            _compile(folder / "fastreid_cython", archive.read("fastreid/evaluation/rank_cylib/rank_cy.pyx"))
    if not (folder / "torchreid_cython").exists():
        local = pathlib.Path(torchreid_pyx)
        if local.is_file():
            source = local.read_bytes()
        else:
            with urllib.request.urlopen(torchreid_pyx or _TORCHREID_CYTHON, timeout=30) as answer:
                source = answer.read()
        _compile(folder / "torchreid_cython", source)


def _compile(folder: pathlib.Path, source: bytes) -> None:
    """Builds rank_cy.pyx in `folder`, with the evaluators' own settings (setuptools' default optimisation)."""
    building = folder.with_suffix(".part")
    building.mkdir(exist_ok=True)
    (building / "rank_cy.pyx").write_bytes(source)
    (building / "setup.py").write_text(
        "import numpy\nfrom Cython.Build import cythonize\nfrom setuptools import Extension, setup\n"
        "extension = Extension('rank_cy', ['rank_cy.pyx'], include_dirs=[numpy.get_include()])\n"
        "setup(name='rank_cy', ext_modules=cythonize([extension], language_level=3))\n"
    )
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=building, check=False, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1]
        sys.exit(f"{building}: {why}; a C compiler and benchmarks/evaluation/requirements.txt are needed")
    building.rename(folder)


def _load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(path.name.split(".")[0], path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _arrays(data: pathlib.Path, mmap_mode) -> tuple:
    embeddings = [np.load(data / f"{side}_embedding.npy", mmap_mode=mmap_mode) for side in ("query", "gallery")]
    ids = [np.load(data / f"{side}_{key}.npy") for key in ("person", "camera") for side in ("query", "gallery")]
    return *embeddings, *ids


def ours(data: pathlib.Path, peers: pathlib.Path):
    """This project's engine; embeddings are memory-mapped, float64-exact ranks."""
    from rgbd_reid_jax.metrics import ranks, scores

    query, gallery, query_person, gallery_person, query_camera, gallery_camera = _arrays(data, "r")
    stage = "evaluate" if len(query) * len(gallery) > 5 * 10**8 else ""

    def run():
        none = np.zeros(len(query), np.int64), np.ones(len(gallery), np.int64)
        sides = ranks.Side(query, query_person, none[0]), ranks.Side(gallery, gallery_person, none[1])
        found = ranks.positive_ranks(*sides, stage=stage)
        found = found.keep(query_camera[found.query] != gallery_camera[found.positive])
        first = scores.first_hit_rank(found)
        return float(np.nanmean(scores.average_precision(found))), float(scores.cmc(first, _MAX_RANK)[0])

    return run


def torchreid_cython(data: pathlib.Path, peers: pathlib.Path):
    """torchreid's distance matrix and its Cython evaluator."""
    evaluate = _load(next((peers / "torchreid_cython").glob("rank_cy*.so"))).evaluate_cy
    return _with_matrix(data, peers, lambda *args: evaluate(*args, _MAX_RANK))


def fastreid_cython(data: pathlib.Path, peers: pathlib.Path):
    """torchreid's distance matrix and fast-reid's Cython evaluator, which is torchreid's with mINP added."""
    evaluate = _load(next((peers / "fastreid_cython").glob("rank_cy*.so"))).evaluate_cy

    def scores(*args):
        cmc, ap, _ = evaluate(*args, _MAX_RANK)
        return cmc, ap.mean()

    return _with_matrix(data, peers, scores)


def torchreid_python(data: pathlib.Path, peers: pathlib.Path):
    """torchreid's distance matrix and its Python evaluator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that its Cython part is missing
        evaluate = _load(peers / "torchreid" / "rank.py").evaluate_rank
    return _with_matrix(data, peers, lambda *args: evaluate(*args, _MAX_RANK, use_cython=False))


def scikit_learn(data: pathlib.Path, peers: pathlib.Path):
    """torchreid's distance matrix and average_precision_score, query by query."""
    from sklearn.metrics import average_precision_score

    def evaluate(distance, query_person, gallery_person, query_camera, gallery_camera):
        ap, cmc = [], np.zeros(_MAX_RANK)
        for row, person, camera in zip(distance, query_person, query_camera, strict=True):
            match = gallery_person == person
            valid = ~(match & (gallery_camera == camera))
            if match[valid].any():
                ap.append(average_precision_score(match[valid], -row[valid]))
                nearest = row[valid][match[valid]].min()
                first = np.count_nonzero(row[valid] < nearest)
                cmc[first:] += 1
        return cmc / len(ap), np.mean(ap)

    return _with_matrix(data, peers, evaluate)


def _with_matrix(data: pathlib.Path, peers: pathlib.Path, evaluate):
    import torch

    distances = _load(peers / "torchreid" / "distance.py")
    query, gallery, *ids = _arrays(data, None)

    def run():
        matrix = distances.compute_distance_matrix(torch.from_numpy(query), torch.from_numpy(gallery)).numpy()
        cmc, mean_ap = evaluate(matrix, *ids)
        return float(mean_ap), float(cmc[0])

    return run


CONTESTANTS = {f.__name__: f for f in (ours, torchreid_cython, fastreid_cython, torchreid_python, scikit_learn)}


def peak(seconds: float = 3.0) -> float:
    """The best float32 matrix-product rate in FLOP/s that NumPy or JAX reaches here."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, 2048)).astype(np.float32) for n in (1024, 4096))
    x, y = jnp.asarray(a), jnp.asarray(b)
    multiply = jax.jit(lambda x, y: jnp.dot(x, y.T, precision="highest"))
    best = np.inf
    for product in (lambda: a @ b.T, lambda: multiply(x, y).block_until_ready()):
        product()
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            product()
            best = min(best, time.perf_counter() - start)
    return 2.0 * 1024 * 4096 * 2048 / best


def main() -> None:
    """Runs one contestant."""
    name, data, peers, repeats = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), int(sys.argv[4])
    if name == "peak":
        print(json.dumps({"flops": peak()}))
        return
    run = CONTESTANTS[name](data, peers)
    seconds, scores = [], (0.0, 0.0)
    for _ in range(repeats):
        start = time.perf_counter()
        scores = run()
        seconds.append(time.perf_counter() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "mAP": scores[0], "rank1": scores[1], "peak_rss": memory}))


if __name__ == "__main__":
    main()
