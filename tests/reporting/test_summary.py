"""The table over several runs: means and ranges by hand."""

import json

from rgbd_reid_jax.reporting import summary

DIRECTIONS = ("rgb_to_depth", "depth_to_rgb", "rgb_to_rgb", "depth_to_depth")


def run(method: str, mean_ap: float, protocol: str = "cross_camera") -> dict:
    scores = {"mAP": mean_ap, "rank1": 2 * mean_ap, "rank5": 0.5, "rank10": 0.5}
    return {
        "method": method,
        "protocol": protocol,
        "results": dict.fromkeys(DIRECTIONS, scores),
        "chance": {key: {"mAP": 0.025} for key in DIRECTIONS},
        "clothes": {key: {"same_clothes": {"mAP": 3 * mean_ap}} for key in DIRECTIONS},
    }


def test_mean_and_range_of_each_method():
    lines = summary.summary([run("ours", 0.10), run("ours", 0.16), run("other", 0.05)]).splitlines()
    assert len(lines) == 2 + 2 * 4
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == [
        "ours",
        "RGB -> depth",
        "2",
        "13.0 (10.0 .. 16.0)",
        "26.0 (20.0 .. 32.0)",
        "39.0 (30.0 .. 48.0)",
        "-",
        "2.5",
    ]
    assert [cell.strip() for cell in lines[6].strip("|").split("|")][:4] == [
        "other",
        "RGB -> depth",
        "1",
        "5.0 (5.0 .. 5.0)",
    ]


def test_the_command_reads_workdirs(tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps(run("ours", 0.1)))
    assert summary.main([str(tmp_path)]) == 0
    assert "| ours | RGB -> depth | 1 | 10.0" in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_line(tmp_path, capsys):
    assert summary.main([str(tmp_path)]) == 2
    assert summary.main([]) == 2
    for name, protocol in (("a", "market"), ("b", "cross_camera")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(run("ours", 0.1, protocol)))
    assert summary.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3
    assert "cross_camera, market" in errors[2]
