"""The command on saved embeddings: every protocol, the JSON object, and one line for whatever a user can get wrong."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from rgbd_reid_jax import evaluate
from rgbd_reid_jax.metrics.protocols import registry

_NUMBERS = {"mAP", "mAP_trapezoid", "mINP", "cmc", "rank1", "rank5", "rank10", "num_query", "num_query_skipped"}
_NUMBERS |= {"num_gallery", "tie_rate", "intervals", "protocol"}


def columns(seed, n=120, persons=6, width=4, modality="rgb"):
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(99).normal(size=(persons, width))
    person, camera, walk = np.arange(n) % persons, rng.integers(1, 7, n), rng.integers(0, 2, n)
    return {
        "embedding": (centre[person] + rng.normal(size=(n, width))).astype(np.float32),
        "person_id": person,
        "camera_id": camera,
        "recording_id": person * 100 + camera * 10 + walk,
        "frame_id": np.arange(n) // persons,
        "clothes_id": person * 2 + walk,
        "recording_type": 1 + walk,
        "camera_name": np.array(["flat", "upward", "downward"])[camera % 3],
        "passage_name": walk,
        "gate": rng.uniform(size=(n, width)).astype(np.float32),
        "modality": modality,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("embeddings")
    np.savez(path / "rgb.npz", **columns(1))
    np.savez(path / "depth.npz", **columns(2, modality="depth"))
    plain = {key: value for key, value in columns(3).items() if key in ("embedding", "person_id", "camera_id")}
    np.savez(path / "plain.npz", **plain)
    return path


def run(folder, capsys, *arguments, query: Any = "rgb.npz", gallery: Any = "depth.npz"):
    """(exit status, standard output, standard error)."""
    files = [f"--query={folder / query}"] + ([f"--gallery={folder / gallery}"] if gallery else [])
    status = evaluate.main([*files, *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("protocol", registry.PROTOCOLS)
def test_every_protocol_prints_one_json_object(folder, capsys, protocol):
    status, out, err = run(folder, capsys, f"--protocol={protocol}", "--json", "--seed=3", "--both_directions")
    assert status == 0, err
    content = json.loads(out)
    assert out.count("\n") == 1
    assert list(content["results"]) == ["rgb_to_depth", "depth_to_rgb"]
    assert content["query"] == {"file": str(folder / "rgb.npz"), "items": 120, "persons": 6}
    for found in content["results"].values():
        about = found["protocol"]
        assert (about["name"], about["seed"]) == (protocol, 3)
        assert about["words"]
        assert found["metric"] == "euclidean"
        if protocol == "verification":
            assert set(found["tpr_at_fpr"]) == {"0.01", "0.001", "0.0001"}
            assert 0 < found["eer"] < 1
            continue
        assert set(found) >= _NUMBERS
        assert len(found["cmc"]) == 20
        assert found["cmc"] == sorted(found["cmc"])
        for k in (1, 5, 10):
            assert found[f"rank{k}"] == found["cmc"][k - 1]
        assert found["mAP_trapezoid"] <= found["mAP"]
        assert set(found["intervals"]) == {"mAP", "mAP_trapezoid", "mINP", "rank1", "rank5", "rank10"}
        for key, (low, high) in found["intervals"].items():
            assert 0 <= low <= found[key] <= high <= 1


@pytest.mark.parametrize("protocol", registry.PROTOCOLS)
def test_every_protocol_has_a_table_with_definitions(folder, capsys, protocol):
    status, out, err = run(folder, capsys, f"--protocol={protocol}")
    assert status == 0, err
    assert f"rgb_to_depth  protocol {protocol}" in out
    assert registry.PROTOCOLS[protocol].words in out
    if protocol != "verification":
        assert "mAP (trapezoid)" in out
        assert "scikit-learn 0.15" in out
        assert "of them skipped: " in out


def test_the_numbers_of_a_worked_example(tmp_path, capsys):
    """One query whose positives stand at ranks 1, 2, 4, 7."""
    np.savez(tmp_path / "query.npz", embedding=[[0.0]], person_id=[7], camera_id=[0])
    distance = np.arange(1.0, 9.0)[:, None]
    np.savez(tmp_path / "gallery.npz", embedding=distance, person_id=[7, 7, 3, 7, 3, 3, 7, 3], camera_id=[1] * 8)
    arguments = ("--protocol=market", "--json", "--max_rank=25")
    status, out, _ = run(tmp_path, capsys, *arguments, query="query.npz", gallery="gallery.npz")
    assert status == 0
    found = json.loads(out)["results"]["query_to_gallery"]
    assert round(found["mAP"], 4) == 0.8304
    assert round(found["mAP_trapezoid"], 4) == 0.8110
    assert found["mINP"] == pytest.approx(4 / 7)
    assert found["cmc"] == [1.0] * 25


def test_groups_are_broken_down(folder, capsys):
    _, out, _ = run(folder, capsys, "--protocol=market", "--json", "--groups")
    groups = json.loads(out)["results"]["rgb_to_depth"]["groups"]
    assert set(groups) == {"clothes", "camera_pair", "recording_type"}
    assert set(groups["clothes"]) == {"same_clothes", "changed_clothes"}
    assert set(groups["recording_type"]) == {"standing", "walking"}
    assert all(found["num_query"] > 0 for members in groups.values() for found in members.values())
    _, out, _ = run(folder, capsys, "--protocol=market", "--groups")
    assert "clothes changed_clothes: mAP (step) " in out


@pytest.mark.parametrize("metric", ["cosine", "gated"])
def test_metrics_differ(folder, capsys, metric):
    _, out, _ = run(folder, capsys, "--protocol=market", "--json", f"--metric={metric}")
    _, plain, _ = run(folder, capsys, "--protocol=market", "--json")
    first, second = (json.loads(text)["results"]["rgb_to_depth"] for text in (out, plain))
    assert first["metric"] == metric
    assert first["mAP"] != second["mAP"]


def test_changed_distances(folder, capsys):
    _, out, _ = run(folder, capsys, "--protocol=twin_excluded", "--json", "--rerank=8,3,0.3", "--query_expansion=2")
    found = json.loads(out)["results"]["rgb_to_depth"]
    assert found["protocol"]["rerank"] == {"k1": 8, "k2": 3, "lambda": 0.3}
    assert found["protocol"]["query_expansion"] == 2
    _, out, _ = run(folder, capsys, "--protocol=twin_excluded", "--rerank=8,3,0.3")
    assert "protocol twin_excluded, k1=8, k2=3, lambda=0.3, metric euclidean" in out


def test_without_a_gallery_the_file_ranks_itself(folder, capsys):
    status, out, _ = run(folder, capsys, "--protocol=twin_excluded", "--json", gallery=None)
    assert status == 0
    found = json.loads(out)["results"]
    assert list(found) == ["rgb_to_rgb"]
    assert found["rgb_to_rgb"]["rank1"] < 1  # its own image is not among what it ranks
    _, out, _ = run(folder, capsys, "--protocol=market", "--json", "--both_directions", query="plain.npz")
    assert list(json.loads(out)["results"]) == ["query_to_gallery", "gallery_to_query"]


def test_recordings_are_compared_by_their_mean(folder, capsys):
    _, out, _ = run(folder, capsys, "--protocol=market", "--json", "--multi_frame")
    content = json.loads(out)
    recordings = len(np.unique(columns(1)["recording_id"]))
    assert content["query"]["items"] == recordings == content["results"]["rgb_to_depth"]["num_query"]


def test_parameters_and_the_output_file(folder, tmp_path, capsys):
    output = tmp_path / "new" / "results.json"
    arguments = ("--protocol=sysu_mm01", "--param=search=indoor", "--param=trials=2", f"--output={output}", "--json")
    status, out, err = run(folder, capsys, *arguments)
    assert status == 0
    assert json.loads(output.read_text()) == json.loads(out)
    parameters = json.loads(out)["results"]["rgb_to_depth"]["protocol"]["parameters"]
    assert parameters == {"search": "indoor", "trials": 2, "shots": 1}
    assert f"wrote {output}" in err


def test_skipped_queries_are_explained(tmp_path, capsys):
    ids: dict[str, Any] = {"person_id": [1, 2, 9], "camera_id": [0, 1, 0]}
    np.savez(tmp_path / "query.npz", embedding=np.zeros((3, 1)), **ids)
    np.savez(tmp_path / "gallery.npz", embedding=np.ones((2, 1)), person_id=[1, 2], camera_id=[1, 1])
    _, out, _ = run(tmp_path, capsys, "--protocol=market", query="query.npz", gallery="gallery.npz")
    assert "3 queries, 2 of them skipped: 1 whose person is not in the gallery, 1 whose positives the rule drop" in out


def test_the_list_describes_every_protocol(capsys):
    assert evaluate.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    words = f" {' '.join(out.split())} "
    for name, protocol in registry.PROTOCOLS.items():
        assert f"\n{name}\n  " in f"\n{out}"
        assert f" {name} {protocol.words} " in words
        for key, value in protocol.defaults.items():
            assert f"{key}={value}" in words


def bad(path, change):
    """Writes changed columns; a None leaves the column out."""
    changed = {**columns(2), **change}
    np.savez(path, allow_pickle=True, **{key: value for key, value in changed.items() if value is not None})


_ZEROS = np.zeros((120, 4), np.float32)
_FILES = [  # changes of the gallery, and what the line says
    ({"embedding": np.where(np.arange(120)[:, None] == 5, np.nan, _ZEROS)}, "embedding row 5 holds nan"),
    ({"embedding": np.where(np.arange(120)[:, None] == 6, -np.inf, _ZEROS)}, "embedding row 6 holds -inf"),
    ({"embedding": np.zeros((120, 3)), "gate": None}, "query embeddings have width 4, gallery embeddings 3"),
    ({"embedding": np.zeros(120), "gate": None}, "expected float32 [N, D]"),
    ({"embedding": np.zeros((120, 4), "V2"), "gate": None}, "embedding is |V2"),
    (
        {key: np.zeros((0, 4) if key in ("embedding", "gate") else 0, int) for key in columns(2) if key != "modality"},
        "0 gallery items",
    ),
    ({"person_id": None}, "lacks person_id"),
    ({"camera_id": None}, "lacks camera_id"),
    ({"embedding": None}, "lacks embedding"),
    ({"person_id": np.arange(119)}, "person_id has shape [119], expected [120]"),
    ({"camera_id": np.zeros((120, 1), int)}, "camera_id has shape [120, 1], expected [120]"),
    ({"person_id": np.full(120, "p")}, "expected whole numbers"),
    ({"camera_id": np.zeros(120)}, "camera_id is float64, expected whole numbers"),
    ({"person_id": np.array([None] * 120)}, "array of Python objects"),
    ({"person_id": np.full(120, -1)}, "person_id is negative in 120 rows"),
    ({"person_id": np.arange(120) + 50}, "none of the 120 queries' persons appears in the gallery"),
    ({"modality": "ther-mal"}, "modality is 'ther-mal'"),
]


def complains(result, words):
    status, out, err = result
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(("change", "words"), _FILES)
def test_a_bad_gallery_is_one_line(folder, tmp_path, capsys, change, words):
    bad(tmp_path / "bad.npz", change)
    complains(run(folder, capsys, "--protocol=market", "--json", gallery=tmp_path / "bad.npz"), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--protocol is missing"),
        (["--protocol=papper"], "unknown protocol 'papper'; choose one of market"),
        (["--protocol=market", "--metric=manhattan"], "unknown metric 'manhattan'"),
        (["--protocol=market", "--seed=x"], "invalid int value: 'x'"),
        (["--protocol=market", "--seed=-1"], "seed=-1 must be at least 0"),
        (["--protocol=market", "--max_rank=9"], "max_rank=9 must be at least 10"),
        (["--protocol=market", "--param=rule"], "--param=rule is not of the form NAME=VALUE"),
        (["--protocol=market", "--param=rule=x"], "market has no parameter 'rule'"),
        (["--protocol=cuhk03", "--param=repeats=ten"], "repeats='ten' is not of the form repeats=10"),
        (["--protocol=cuhk03", "--groups"], "cuhk03 has no groups"),
        (["--protocol=cuhk03", "--rerank=20,6,0.3"], "cuhk03 has no rerank"),
        (["--protocol=market", "--rerank=20,6"], "'20,6' is not of the form 20,6,0.3"),
        (["--protocol=market", "--rerank=20,6,3"], "must be within 0 and 1"),
        (["--protocol=market", "--rerank=20,6,0.3", "--metric=gated"], "has no re-ranking"),
        (["--protocol=market", "--query_expansion=-2"], "k=-2 must be at least 1"),
        (["--protocol=market", "--qery=x"], "unrecognized arguments: --qery=x"),
        (["--protocol=market", "--output=/dev/null/results.json"], "--output=/dev/null/results.json cannot be written"),
        (["--protocol=market", "--output=/"], "--output=/ cannot be written"),
        (["--protocol=market", f"--output={'a' * 300}/b.json"], "a/b.json cannot be written"),
    ],
)
def test_bad_arguments_are_one_line(folder, capsys, arguments, words):
    complains(run(folder, capsys, *arguments), words)


def test_embeddings_are_never_overwritten(folder, tmp_path, capsys):
    (tmp_path / "link.json").symlink_to(folder / "depth.npz")
    for path in (folder / "rgb.npz", folder / ".." / folder.name / "depth.npz", tmp_path / "link.json"):
        before = path.read_bytes()
        complains(run(folder, capsys, "--protocol=market", f"--output={path}"), "would overwrite the embeddings")
        assert path.read_bytes() == before


def test_bad_files_are_one_line(folder, tmp_path, capsys):
    (tmp_path / "text.npz").write_text("no archive")
    whole = (folder / "rgb.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name, words in (
        ("absent.npz", "does not exist"),
        ("text.npz", "not a readable .npz"),
        ("cut.npz", "not a readable .npz"),
        ("empty.npz", "not a readable .npz"),
        ("", "cannot be read"),
    ):
        complains(run(folder, capsys, "--protocol=market", gallery=tmp_path / name), words)


@pytest.mark.parametrize(
    ("protocol", "key"),
    [
        ("twin_excluded", "recording_id"),
        ("recording_excluded", "recording_id"),
        ("single_gallery_shot", "recording_id"),
        ("verification", "recording_id"),
        ("tvrid", "recording_id"),
    ],
)
def test_a_missing_key_is_named_with_its_file(folder, capsys, protocol, key):
    result = run(folder, capsys, f"--protocol={protocol}", query="plain.npz")
    complains(result, f"{folder / 'plain.npz'} lacks {key}, which protocol {protocol}")


@pytest.mark.parametrize("protocol", ["market", "cross_camera", "twin_excluded", "recording_excluded"])
def test_the_rule_that_leaves_nothing_is_named(tmp_path, capsys, protocol):
    ids: dict[str, Any] = {key: [1, 2] for key in ("person_id", "recording_id", "frame_id")}
    np.savez(tmp_path / "same.npz", embedding=np.zeros((2, 1)), camera_id=[0, 0], **ids)
    result = run(tmp_path, capsys, f"--protocol={protocol}", query="same.npz", gallery=None)
    complains(result, f"protocol {protocol} (")


def test_a_full_or_forbidden_disk_is_one_line(folder, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate.files, "write_json", refuse)
    result = run(folder, capsys, "--protocol=market", f"--output={tmp_path / 'results.json'}")
    assert result[0] == 2
    assert "the disk is full" in result[2]


def test_an_accelerator_without_memory_is_one_line(folder, capsys, monkeypatch, too_large):
    monkeypatch.setattr(registry, "evaluate", too_large)
    complains(run(folder, capsys, "--protocol=market"), "ranking 120 items for 120 queries needs more memory than")


def test_recordings_of_no_embeddings_are_one_line(folder, tmp_path, capsys):
    np.savez(tmp_path / "none.npz", **{key: value[:0] for key, value in columns(1).items() if key != "modality"})
    result = run(folder, capsys, "--protocol=market", "--multi_frame", gallery=tmp_path / "none.npz")
    complains(result, "none.npz holds no embeddings, so --multi_frame has no recordings")


def test_an_interrupt_ends_with_130(folder, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "evaluate", stop)
    status, out, err = run(folder, capsys, "--protocol=market")
    assert (status, out, err) == (130, "", "interrupted; nothing was written\n")


def test_the_module_is_a_command(folder):
    command = [
        sys.executable,
        "-m",
        "rgbd_reid_jax.evaluate",
        f"--query={folder / 'rgb.npz'}",
        "--protocol=market",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout)["results"]["rgb_to_rgb"]["num_query"] == 120


def test_a_reader_that_leaves_is_no_error(folder):
    """What `--json | head -c 5` does to the command."""
    code = (
        "import os, sys; from rgbd_reid_jax import evaluate; read, write = os.pipe(); os.close(read); "
        f"os.dup2(write, 1); sys.exit(evaluate.main(['--query={folder / 'rgb.npz'}', '--protocol=market', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_mistakes_need_not_wait_for_jax(folder):
    code = (
        "import sys; from rgbd_reid_jax import evaluate; "
        f"status = evaluate.main(['--query={folder / 'none.npz'}', '--protocol=market']); "
        "assert status == 2 and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
