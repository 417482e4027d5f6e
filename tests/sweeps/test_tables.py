"""What is told of the rows: entries, Markdown, and its place in a page with text of somebody's own."""

import io
import json

import matplotlib.image
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.sweeps import figure, tables

HALF = 4.3027 / 3**0.5  # of an interval over three runs, in standard deviations


def cells(text: str, first: str) -> list[list[str]]:
    """The cells of all table lines that begin with `first`."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [[cell.strip() for cell in line] for line in lines]


def test_entries_hold_means_intervals_chance_and_minutes(three_runs):
    rows, sweep = three_runs
    found = tables.entries(sweep, rows)
    assert [(one["method"], one["direction"]) for one in found] == [
        (method.name, direction) for method in sweep.methods for direction in sweep.directions
    ]
    ours = found[0]
    spread = HALF * 0.03  # 0.30, 0.36, 0.33
    assert ours["mAP"] == pytest.approx({"mean": 0.33, "low": 0.33 - spread, "high": 0.33 + spread})
    assert ours["rank1"] == pytest.approx({"mean": 0.165, "low": 0.165 - spread / 2, "high": 0.165 + spread / 2})
    assert ours["clothes"]["same_clothes"]["mAP"] == pytest.approx(
        {"mean": 0.66, "low": 0.66 - 2 * spread, "high": 0.66 + 2 * spread}
    )
    assert "changed_clothes" not in ours["clothes"]
    assert (ours["n"], ours["minutes"], ours["sweep"]) == (3, 1.5, "trial")
    held_up = next(row for row in rows.values() if row["method"] == ours["method"])
    held_up["seconds"]["teacher"] = 6000.0
    assert tables.entries(sweep, rows)[0]["minutes"] == 1.5
    assert ours["chance"] == pytest.approx({"mAP": 0.025, "rank1": 0.0167})


def test_one_run_has_no_interval(three_runs):
    rows, sweep = three_runs
    one = {key: row for key, row in rows.items() if key[1] == sweep.runs[0]}
    assert tables.entries(sweep, one)[0]["mAP"] == {"mean": 0.3, "low": None, "high": None}
    text = tables.markdown(sweep, one)
    scores, rank1 = cells(text, "ours")[:2]
    assert (scores[:4], rank1[:3]) == (["ours", "1", "30.0", "40.0"], ["ours", "1", "15.0"])
    assert "1 run on 1 set of people." in text


def test_the_tables_by_hand(three_runs):
    rows, sweep = three_runs
    text = tables.markdown(sweep, rows)
    scores, rank1, clothes, differences, times = cells(text, "ours")
    assert scores[:4] == ["ours", "3", "33.0 [25.5, 40.5]", "43.0 [35.5, 50.5]"]
    assert rank1[:4] == ["ours", "3", "16.5 [12.8, 20.2]", "21.5 [17.8, 25.2]"]
    assert clothes == ["ours", "66.0 [51.1, 80.9]", "-", "86.0 [71.1, 100.9]", "-"]
    assert differences == ["ours", "3", *["+11.0 [+4.4, +17.6]"] * 3]
    assert times == ["ours", "1.5", "1.0", "0.5"]
    assert [one[:3] for one in cells(text, "chance")] == [["chance", "", "2.5"], ["chance", "", "1.7"]]
    assert len(cells(text, "first")) == 4  # it is the reference, chosen on validation people: no difference to itself
    assert "Differences in mAP to `first`" in text
    assert "- `ours`: the ours" in text
    assert "3 runs on 3 sets of people." in text
    assert "not independent" not in text


def test_runs_that_share_people_are_told_of(three_runs, make_sweep):
    rows, sweep = three_runs
    shared = [type(run)(run.seed, "seed=1") for run in sweep.runs]
    renamed = {(name, shared[sweep.runs.index(run)]): row for (name, run), row in rows.items()}
    text = tables.markdown(make_sweep(runs=tuple(shared)), renamed)
    assert "3 runs on 1 set of people. Runs of one data seed share their people and are not independent" in text
    assert cells(text, "ours")[3] == ["ours", "3", *["+11.0 [+4.4, +17.6]"] * 3]


def test_differences_are_told_for_each_set_of_people(three_runs, make_sweep):
    rows, sweep = three_runs
    runs = [type(run)(run.seed, f"seed={1 + index // 2}") for index, run in enumerate(sweep.runs)]
    renamed = {(name, runs[sweep.runs.index(run)]): row for (name, run), row in rows.items()}
    text = tables.markdown(make_sweep(runs=tuple(runs)), renamed)
    assert "| mean, people of seed=1 | mean, people of seed=2 |" in text
    gains = [
        100
        * (rows["ours", run]["results"]["rgb_to_depth"]["mAP"] - rows["first", run]["results"]["rgb_to_depth"]["mAP"])
        for run in sweep.runs
    ]
    assert cells(text, "ours")[3][5:] == [f"{(gains[0] + gains[1]) / 2:+.1f}", f"{gains[2]:+.1f}"]


def test_text_outside_the_markers_stays(tmp_path, three_runs):
    rows, sweep = three_runs
    page = tmp_path / "results.md"
    before, after = "# Results\n\nBy hand: \\1 50 %.\n\n", "\n\n## More by hand\n"
    page.write_text(f"{before}<!-- sweep:trial begin -->\nold\n<!-- sweep:trial end -->{after}")
    for _ in range(2):
        tables.write_tables(tmp_path, sweep, rows)
        text = page.read_text()
        assert text.startswith(f"{before}<!-- sweep:trial begin -->\n## A trial\n")
        assert text.endswith(f"<!-- sweep:trial end -->{after}")
        assert "old" not in text


def test_missing_markers_are_added_at_the_end(tmp_path, three_runs):
    rows, sweep = three_runs
    page = tmp_path / "results.md"
    page.write_text("# By hand\n\ntext\n")
    tables.write_tables(tmp_path, sweep, rows)
    assert page.read_text().startswith("# By hand\n\ntext\n\n<!-- sweep:trial begin -->\n")
    first = page.read_text()
    tables.write_tables(tmp_path, sweep, rows)
    assert page.read_text() == first
    page.unlink()
    tables.write_tables(tmp_path, sweep, rows)
    assert page.read_text().startswith("# Results\n\n<!-- sweep:trial begin -->\n")


@pytest.mark.parametrize(
    "markers",
    ["<!-- sweep:trial begin -->", "<!-- sweep:trial end -->\n<!-- sweep:trial begin -->", "<!-- sweep:trial end -->"],
)
def test_half_a_pair_of_markers_is_refused(tmp_path, three_runs, markers):
    rows, sweep = three_runs
    (tmp_path / "results.md").write_text(markers)
    for work in (lambda: tables.check_page(tmp_path, sweep), lambda: tables.write_tables(tmp_path, sweep, rows)):
        with pytest.raises(InputError, match=r"results\.md must hold <!-- sweep:trial begin --> and after it"):
            work()
    assert (tmp_path / "results.md").read_text() == markers
    assert not (tmp_path / "results.json").exists()


def test_results_of_other_sweeps_stay_where_they_are(tmp_path, three_runs):
    rows, sweep = three_runs
    old = [{"sweep": "a", "method": "x"}, {"sweep": "trial", "method": "gone"}, {"sweep": "b", "method": "y"}]
    (tmp_path / "results.json").write_text(json.dumps(old))
    tables.write_tables(tmp_path, sweep, rows)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [one["sweep"] for one in found] == ["a", *["trial"] * 12, "b"]
    assert found[1]["method"] == "ours"
    (tmp_path / "results.json").write_text('{"schema": 1}')
    with pytest.raises(InputError, match="holds no list of results"):
        tables.write_tables(tmp_path, sweep, rows)


def test_the_figure_is_the_same_file_each_time(three_runs, make_sweep):
    rows, sweep = three_runs
    content = figure.draw(sweep, rows)
    height, width, _ = matplotlib.image.imread(io.BytesIO(content)).shape
    assert width > height > 200
    assert figure.draw(sweep, rows) == content
    one = {key: row for key, row in rows.items() if key[1] == sweep.runs[0]}
    figure.draw(make_sweep(directions=("depth_to_rgb",)), one)
