"""The HTML report: self-contained, escaped, every number present, ticks and crosses where they belong."""

import base64
import dataclasses
import html.parser
import re
import time

import cv2
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import ranking
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS, Embeddings
from rgbd_reid_jax.reporting import figures, page, strips
from rgbd_reid_jax.reporting.report import INTENDED_USE, Frames, write_report
from rgbd_reid_jax.reporting.table import percent, results_table

_PROTOCOL = "cross_camera"


def make_sets(persons=4, per_person=6, width=5):
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(persons), per_person)
    camera = np.arange(len(person)) % 3
    frame = np.arange(len(person))
    ids = (person, camera, person * 10 + camera, frame, person * 0)
    centre = rng.normal(size=(persons, width))[person]
    return {
        modality: Embeddings((centre + rng.normal(size=centre.shape)).astype(np.float32), *ids, modality)
        for modality in ("rgb", "depth")
    }


def make_frames(n, height=16, width=8):
    rng = np.random.default_rng(1)
    return Frames(
        rng.integers(0, 256, (n, height, width, 3), np.uint8),
        rng.integers(0, 4000, (n, height, width, 1)).astype(np.uint16),
        rng.integers(0, 2, (n, height, width, 1), np.uint8),
    )


def make_results(sets):
    ranked = {}
    for direction in DIRECTIONS:
        query, gallery = direction.split("_to_")
        ranked[direction] = ranking.rank(sets[query], sets[gallery], _PROTOCOL)
    return {
        "schema": 1,
        "dataset": "synthetic_rgbd/quick:1.0.0",
        "protocol": _PROTOCOL,
        "results": {name: ranking.as_results(result) for name, result in ranked.items()},
        "chance": {name: ranking.as_chance(result) for name, result in ranked.items()},
        "queries": {
            name: {"num_query": 1234 + i, "num_query_skipped": 56 + i, "num_gallery": 7890 + i}
            for i, name in enumerate(ranked)
        },
        "environment": {"jax": "0.10.2"},
    }


def make_metrics():
    lines = []
    for stage in ("teacher", "student"):
        for step in (10, 20, 30):
            lines.append({"stage": stage, "step": step, "loss": 3 / step, "accuracy": step / 40, "images_per_s": 400.0})
    lines.append({"stage": "student", "step": 30, "eval/rgb_to_depth/mAP": 0.25, "eval/depth_to_rgb/mAP": 0.2})
    lines.append({"stage": "student", "step": 40, "loss": float("nan"), "note": "diverged"})
    return lines


def write(folder, **changes):
    sets = changes.pop("query_sets", None) or make_sets()
    arguments = {
        "title": "Quick run",
        "results": make_results(sets),
        "config": {"learning_rate": 1e-3},
        "metrics": make_metrics(),
        "query_sets": sets,
        "frames": make_frames(len(sets["rgb"])),
        "protocol": _PROTOCOL,
        **changes,
    }
    return write_report(folder / "report", **arguments).read_text(encoding="utf-8")


class Tags(html.parser.HTMLParser):
    """Collects start tags; checks that they close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_well_formed(tmp_path):
    text = write(tmp_path)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
    tags = Tags(text).tags
    for tag, attributes in tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?:|url\(|@import", text)
    assert sum(tag == "source" for tag, _ in tags) == 7  # 3 of the ranking, 4 of the training
    assert all(attributes["alt"] for tag, attributes in tags if tag == "img")


def test_every_number_of_the_table_is_present(tmp_path):
    sets = make_sets()
    results = make_results(sets)
    text = write(tmp_path, query_sets=sets, results=results)
    for i, direction in enumerate(DIRECTIONS):
        for key, value in results["results"][direction].items():
            chance = results["chance"][direction][key]
            assert f"<b>{percent(value)}</b><small>chance {percent(chance)}</small>" in text
        assert f"{1234 + i:,} queries, {56 + i} skipped, gallery {7890 + i:,}" in text
    assert ranking.RULES[_PROTOCOL].words.replace("'", "&#x27;") in text
    assert page.escape(INTENDED_USE) in text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, None),
        ({"multi_frame": False}, None),
        ({"multi_frame": True}, "The table compares recordings; curves and rank lists below show single frames."),
        (
            {"without_gate": {}},
            "The table compares pairs of images one by one; curves and rank lists below show single frames without",
        ),
    ],
)
def test_what_the_table_compares_is_told_where_the_curves_show_something_else(tmp_path, more, words):
    text = write(tmp_path, results={**make_results(make_sets()), **more})
    assert ("The table compares" in text) == (words is not None)
    assert words is None or words in text


def test_rank_lists_across_modalities_use_gates(tmp_path):
    """RGB 0 lies nearest to depth 0; gates that shut the first channel make depth 1 the nearest."""
    ids = (np.array([7, 3]), np.array([0, 1]), np.arange(2), np.arange(2), np.zeros(2, int))
    rgb = Embeddings(np.array([[1.0, 0.0], [5.0, 5.0]], np.float32), *ids, "rgb")
    ids = (np.array([7, 3]), np.array([2, 3]), np.arange(2), np.arange(2), np.zeros(2, int))
    depth = Embeddings(np.array([[1.0, 2.0], [9.0, 0.0]], np.float32), *ids, "depth")
    shut = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    gated = [dataclasses.replace(one, gate=shut) for one in (rgb, depth)]
    for (query, gallery), first, distance in (((rgb, depth), 7, "2.000"), (gated, 3, "0.000")):
        result = ranking.rank(query, gallery, _PROTOCOL, metric=ranking.natural_metric(query, gallery))
        text = strips.rank_lists(query, gallery, result, make_frames(2), count=2, length=2)
        strip = next(part for part in text.split('<div class="strip">') if "Person 7 " in part)
        found = re.findall(r"<b>&#\d+; (\d)</b> &middot; ([\d.]+)<br>person (\d+)", strip)
        assert found[0] == ("1", distance, str(first))


def test_text_from_data_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"&$_"
    results = {**make_results(make_sets()), "dataset": evil, "environment": {evil: evil}}
    metrics = [{"stage": evil, "step": 1, "loss": 1.0, evil: 2.0}]
    text = write(tmp_path, title=evil, results=results, config={evil: evil}, metrics=metrics)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    Tags(text)


def test_ticks_and_crosses_follow_the_known_ranking(tmp_path):
    # One query of person 7 at 0; gallery at 1, 2, 3, ... by other cameras.
    persons = np.array([7, 3, 7, 3, 7])
    ids = (persons, np.array([0, 1, 1, 2, 2]), np.arange(5), np.arange(5), np.zeros(5, int))
    line = np.arange(5, dtype=np.float32)[:, None]
    rgb, depth = Embeddings(line, *ids, "rgb"), Embeddings(line, *ids, "depth")
    result = ranking.rank(rgb, depth, _PROTOCOL)
    text = strips.rank_lists(rgb, depth, result, make_frames(5), count=5, length=3)
    strip = next(part for part in text.split('<div class="strip">') if f"AP {result.ap[0]:.3f}" in part)
    found = re.findall(r'class="(same|other)".*?<b>&#(\d+); (\d)</b> &middot; ([\d.]+)<br>person (\d+)', strip)
    assert found == [
        ("other", "10007", "1", "1.000", "3"),
        ("same", "10003", "2", "2.000", "7"),
        ("other", "10007", "3", "3.000", "3"),
    ]
    assert "first correct at rank <b>2</b>" in strip
    assert "beyond this list" not in strip
    short = strips.rank_lists(rgb, depth, result, make_frames(5), count=5, length=1)
    assert "first correct at rank <b>2</b> (beyond this list)" in short


def test_chosen_queries_are_worst_median_best_of_different_persons():
    ap = np.array([0.9, np.nan, 0.1, 0.2, 0.5, 0.6, 1.0, 0.15, 0.55])
    person = np.array([1, 1, 2, 3, 4, 5, 6, 2, 4])
    groups = strips.choose_queries(ap, person, 2)
    assert groups["worst"].tolist() == [2, 3]
    assert groups["best"].tolist() == [6, 0]
    assert groups["median"].tolist() == [4, 5]
    few = strips.choose_queries(np.array([0.5, np.nan]), np.array([1, 2]), 4)
    assert [rows.tolist() for rows in few.values()] == [[0], [], []]


def test_depth_colours_are_relative_to_the_person_and_mark_missing_readings():
    depth = np.array([[2000, 0, 2000 + 5000, 2000 - 1500]], np.uint16)[..., None]
    image = strips.depth_image(depth, np.array([[1, 1, 0, 0]], np.uint8)[..., None])
    colours = figures.depth_colours()
    assert image[0, 1].tolist() == list(strips.NO_READING)
    assert image[0, 0].tolist() == colours[128].tolist()
    assert image[0, 2].tolist() == colours[255].tolist()
    assert image[0, 3].tolist() == colours[0].tolist()
    assert tuple(strips.NO_READING) not in map(tuple, colours.tolist())
    empty = strips.depth_image(np.zeros((2, 2, 1), np.uint16), np.zeros((2, 2, 1), np.uint8))
    assert (empty == strips.NO_READING).all()


def test_thumbnails_keep_colours_and_shrink_large_images():
    frames = make_frames(1, 300, 150)
    frames.rgb[:] = (250, 10, 20)
    image = cv2.imdecode(np.frombuffer(frames.thumbnail(0, "rgb"), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (128, 64, 3)
    assert image[5, 5].tolist() == [20, 10, 250]


def test_collapsed_embeddings_and_no_training_log_are_reported(tmp_path):
    sets = make_sets()
    same = {name: dataclasses.replace(items, embedding=np.ones_like(items.embedding)) for name, items in sets.items()}
    text = write(tmp_path, query_sets=same, metrics=[])
    assert "may have collapsed" in text
    assert "No training log" in text
    assert "No threshold keeps the FPR" in text


def test_frames_of_one_modality_are_shown_without_a_pair(tmp_path):
    """Every third instant lacks its depth image, every fourth its RGB image; images hold their instant's number."""
    sets, number = make_sets(), np.arange(24)
    rows = {"rgb": np.flatnonzero(number % 4), "depth": np.flatnonzero(number % 3)}
    sets = {name: items.take(rows[name]) for name, items in sets.items()}
    plain = {name: np.tile(rows[name][:, None, None, None], (1, 16, 8, 1)) for name in rows}
    depth = plain["depth"].astype(np.uint16) * 100 + np.arange(8, dtype=np.uint16)[None, None, :, None]
    frames = Frames(plain["rgb"].astype(np.uint8).repeat(3, 3), depth, np.ones_like(plain["depth"], np.uint8))
    result = ranking.rank(sets["rgb"], sets["depth"], _PROTOCOL)
    text = strips.rank_lists(sets["rgb"], sets["depth"], result, frames, count=6, length=2)
    paired = unpaired = 0
    for strip in text.split('<div class="strip">')[1:]:
        images = re.findall(r'<figure class="(\w*)"><img src="data:image/png;base64,([^"]+)"', strip)
        instant = number_of(images[0][1])
        assert instant in rows["rgb"]
        pairs = [encoded for kind, encoded in images if kind == "paired"]
        assert len(pairs) == (instant in rows["depth"])
        for encoded in pairs:
            own = np.flatnonzero(rows["depth"] == instant)[0]
            assert base64.b64decode(encoded) == frames.thumbnail(int(own), "depth")
        paired, unpaired = paired + len(pairs), unpaired + (not pairs)
    assert paired
    assert unpaired
    assert "paired" in write(tmp_path, query_sets=sets, frames=frames)


def number_of(encoded):
    """The value that all pixels of an RGB thumbnail hold."""
    image = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return int(image[0, 0, 0])


def test_rows_that_do_not_fit_are_named(tmp_path):
    sets = make_sets()
    with pytest.raises(InputError, match="24 RGB embeddings and 3 of their images"):
        write(tmp_path, frames=make_frames(3))
    whole = make_frames(24)
    with pytest.raises(InputError, match="24 depth embeddings and 5 of their images"):
        write(tmp_path, frames=dataclasses.replace(whole, mask=whole.mask[:5], depth=whole.depth[:5]))
    with pytest.raises(InputError, match="schema 2, expected 1"):
        write(tmp_path, results={"schema": 2})
    with pytest.raises(InputError, match="ranked with protocol 'market'"):
        write(tmp_path, results={**make_results(sets), "protocol": "market"})
    with pytest.raises(InputError, match="unknown protocol 'paper'"):
        write(tmp_path, protocol="paper")
    with pytest.raises(InputError, match="frames: rgb"):
        Frames(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4), np.uint16), np.zeros((2, 4, 4, 1), np.uint8))


def test_a_few_hundred_images_are_quick(tmp_path):
    sets = make_sets(persons=20, per_person=12, width=64)
    start = time.monotonic()
    write(tmp_path, query_sets=sets, frames=make_frames(240, 64, 32))
    assert time.monotonic() - start < 60  # a shared core; alone it takes about 2 s


def test_terminal_table():
    scores = {"mAP": 0.2571, "rank1": 0.25, "rank5": 0.6, "rank10": 1.0}
    chance = {"mAP": 0.0404, "rank1": 0.0333, "rank5": 0.2, "rank10": 0.3}
    table = results_table(
        {"results": {"rgb_to_depth": scores, "depth_to_rgb": scores}, "chance": {"rgb_to_depth": chance}}
    )
    lines = table.splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split("  ")[0] == "query -> gallery"
    assert lines[2].split() == ["RGB", "->", "depth", "25.7", "25.0", "60.0", "100.0", "4.0", "3.3"]
    assert lines[3].split() == ["depth", "->", "RGB", "25.7", "25.0", "60.0", "100.0", "-", "-"]
