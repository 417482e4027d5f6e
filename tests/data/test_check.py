"""The check command: every kind of problem is put into a dataset and must be found by its name."""

import dataclasses
import errno
import inspect
import json
import re
import signal

import numpy as np
import pytest

from rgbd_reid_jax.data import check, inspection, problems
from tfds_builders.recorded.frames import Finding
from tfds_builders.recorded.images import encode_png


@pytest.fixture(autouse=True)
def signals():
    """The commands set what SIGTERM does; tests leave it as it was."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def checked(registry, drawn_tree, tmp_path, capsys):
    """A function that checks the dataset of some frames: (exit status, JSON content)."""

    def run(frames, *arguments, **more):
        registry.give(frames, **more)
        folders = [f"--manual_dir={drawn_tree}", f"--data_dir={tmp_path / 'data'}"]
        status = check.main(["people", *folders, "--json", *arguments])
        return status, json.loads(capsys.readouterr().out)

    return run


def problems_of(content) -> dict[str, dict]:
    return {problem["kind"]: problem for problem in content["problems"]}


def changed(frames, split, number, **changes):
    """The frames with one changed: its ids, and what its record holds in place of the images drawn for it."""
    one = frames[split][number]
    ids = {name: value for name, value in changes.items() if name.endswith("_id")}
    row = dataclasses.replace(one, **ids, extra={**one.extra, **{k: v for k, v in changes.items() if k not in ids}})
    return frames | {split: [*frames[split][:number], row, *frames[split][number + 1 :]]}


def test_a_good_dataset_is_ok(registry, checked):
    status, content = checked(registry.people())
    assert status == 0
    assert content["verdict"] == "ok"
    assert content["problems"] == []
    assert content["dataset"] == "people/all/1.0.0"
    counts = content["splits"]["validation"]
    assert counts == {
        "frames": 12,
        "rgb": 12,
        "depth": 12,
        "pairs": 12,
        "people": 2,
        "frames_per_person": [6, 6.0, 6],
        "people_with_one_frame": 0,
        "recordings": 4,
        "cameras": {key: {"rgb": 6, "depth": 6, "pairs": 6} for key in "01"},
        "persons": {key: {"rgb": 6, "depth": 6, "pairs": 6} for key in "23"},
        "recording_types": {"unknown": 12},
        "person_depth_m": counts["person_depth_m"],
    }
    assert 2.0 <= counts["person_depth_m"][0] <= counts["person_depth_m"][2] <= 2.05
    nothing = {"queries": 12, "emptied": 0, "persons": [], "names": []}
    assert content["rules"]["test"]["rgb_to_depth"]["cross_camera"] == nothing
    assert "train" not in content["rules"]


BLACK = np.zeros((32, 16), np.uint16)
FAR = np.full((32, 16), 2000, np.uint16)
FAR[:4] = 30000
ONE_DAMAGED = {
    "undecodable": ("error", {"rgb": b"no image"}, "its rgb image does not decode"),
    "wrong_type": ("error", {"depth": np.full((32, 16), 99, np.uint8)}, "has 1 x uint8 where 1 x uint16"),
    "size_mismatch": ("error", {"depth": np.full((16, 16), 2000, np.uint16)}, "rgb 16x32, depth 16x16, mask 16x32"),
    "no_modality": ("error", {"modalities": 0}, "neither colour nor depth"),
    "no_depth": ("error", {"depth": BLACK}, "no pixel has a depth"),
    "empty_mask": ("warning", {"mask": np.zeros((32, 16), np.uint8)}, "its mask has no person"),
    "depth_range": ("warning", {"depth": FAR}, "12 % of its depths exceed 20 m"),
}


@pytest.mark.parametrize("kind", ONE_DAMAGED)
def test_a_damaged_record_is_named_by_its_file(registry, checked, kind):
    level, change, words = ONE_DAMAGED[kind]
    status, content = checked(changed(registry.people(), "validation", 4, **change))
    found = problems_of(content)[kind]
    assert found["level"] == level
    assert len(found["names"]) == 1
    assert found["names"][0].startswith("validation record 4 (16.png): ")
    assert words in found["names"][0]
    assert (status, content["verdict"]) == ((1, "error") if level == "error" else (0, "warning"))


def test_a_person_too_near_has_an_implausible_depth(registry, checked):
    near = np.full((32, 16), 120, np.uint16)
    _, content = checked(changed(registry.people(), "test", 0, depth=near))
    assert problems_of(content)["depth_range"]["names"] == ["test record 0 (24.png): the person is at 0.12 m"]
    assert "unit" not in problems_of(content)


def test_depth_in_another_unit_is_suspected(registry, checked):
    frames = registry.people()
    for split in frames:
        for number in range(12):
            centimetres = registry.images_of(100 * number + len(split))["depth"] // 10
            frames = changed(frames, split, number, depth=centimetres)
    status, content = checked(frames)
    assert "the median person is 0.20 m away" in problems_of(content)["unit"]["words"]
    assert status == 0


def test_a_record_of_another_size_is_found(registry, checked):
    large = {name: image.repeat(2, axis=0).repeat(2, axis=1) for name, image in registry.images_of(5).items()}
    status, content = checked(changed(registry.people(), "train", 5, **large))
    found = problems_of(content)["size_varies"]
    assert found["names"] == ["train record 5 (5.png): 64x32"]
    assert "not 32x16" in found["words"]
    assert status == 1


def test_an_image_repeated_for_a_person_is_a_warning(registry, checked):
    depth = registry.images_of(1)["depth"]
    twice = changed(registry.people(), "train", 2, depth=depth)
    twice = changed(twice, "train", 0, rgb=registry.images_of(1)["rgb"])
    status, content = checked(twice)
    names = problems_of(content)["repeated_image"]["names"]
    assert names == [
        "rgb: train record 1 (1.png) = train record 0 (0.png)",
        "depth: train record 2 (2.png) = train record 1 (1.png)",
    ]
    assert status == 0


@pytest.mark.parametrize(("split", "status"), [("train", 0), ("test", 1)])
def test_an_image_copied_to_another_recording_of_its_person_makes_scores_wrong(registry, checked, split, status):
    frames = registry.people()
    copied = changed(frames, split, 3, rgb=registry.images_of(int(frames[split][0].rgb[:-4]))["rgb"])
    found, content = checked(copied)
    kind = "copied_recording" if split == "test" else "repeated_image"
    assert problems_of(content)[kind]["names"][0].startswith(f"rgb: {split} record 3 (")
    assert found == status


def test_images_by_camera_and_person_of_each_modality_and_names_behind_the_numbers(registry, checked):
    frames = changed(registry.people(), "test", 3, depth=BLACK, mask=np.zeros((32, 16), np.uint8), modalities=1)
    _, content = checked(frames, metadata={"people": list("abcdef"), "cameras": {"0": "door", "1": "hall"}})
    of = content["splits"]["test"]
    assert of["cameras"]["1"] == {"rgb": 6, "depth": 5, "pairs": 5}
    assert of["persons"] == {"4": {"rgb": 6, "depth": 5, "pairs": 5}, "5": {"rgb": 6, "depth": 6, "pairs": 6}}
    assert content["names"]["person"]["4"] == "e"
    assert content["names"]["camera"] == {"0": "door", "1": "hall"}


@pytest.mark.parametrize(
    ("split", "number", "name"), [("train", 7, "train record 7 (7.png)"), ("test", 3, "test record 3 (27.png)")]
)
def test_an_image_shared_by_persons_or_splits_is_an_error(registry, checked, split, number, name):
    rgb = registry.images_of(0)["rgb"]
    status, content = checked(changed(registry.people(), split, number, rgb=rgb))
    assert problems_of(content)["shared_image"]["names"] == [f"rgb: {name} = train record 0 (0.png)"]
    assert status == 1


def test_images_that_were_not_recorded_are_no_duplicates(registry, checked):
    frames = registry.people()
    for number in (0, 7):
        frames = changed(frames, "test", number, depth=BLACK, modalities=1)
    status, content = checked(frames)
    assert set(problems_of(content)) == {"unpaired_evaluation"}
    assert status == 0


def test_the_same_instant_twice(registry, checked):
    status, content = checked(changed(registry.people(), "train", 1, frame_id=0))
    names = problems_of(content)["same_instant"]["names"]
    assert names == ["recording 0, frame 0: train record 0 (0.png), train record 1 (1.png)"]
    assert status == 1


@pytest.mark.parametrize(
    ("change", "kind", "name"),
    [
        ({"recording_id": 10}, "mixed_recording", "recording_id 10: persons 0, 1"),
        ({"recording_id": 1, "frame_id": 9}, "mixed_recording", "recording_id 1: cameras 0, 1"),
        ({"clothes_id": 1}, "shared_clothes", "clothes_id 1: persons 0, 1"),
    ],
)
def test_ids_that_two_owners_share(registry, checked, change, kind, name):
    status, content = checked(changed(registry.people(), "train", 0, **({"frame_id": 9} | change)))
    assert problems_of(content)[kind]["names"] == [name]
    assert status == (kind == "mixed_recording")


def test_a_person_in_two_splits(registry, checked, monkeypatch):
    monkeypatch.setattr("tfds_builders.recorded.builder.check_scan", lambda *_: None)  # the builder refuses it
    status, content = checked(changed(registry.people(), "test", 0, person_id=0))
    assert problems_of(content)["split_overlap"]["names"] == ["person 0: test, train"]
    assert status == 1


def test_missing_splits_and_a_lonely_person(registry, checked):
    frames = registry.people()
    status, content = checked({"train": frames["train"][:6], "test": frames["test"]})
    assert problems_of(content)["missing_split"]["words"] == "there is no split validation, which a run needs"
    assert "fewer than two persons" in problems_of(content)["few_people"]["words"]
    assert status == 1


def test_people_with_one_frame(registry, checked):
    frames = registry.people()
    status, content = checked(frames | {"test": frames["test"][:7]})
    assert problems_of(content)["single_frame"]["names"] == ["test person 5"]
    assert content["splits"]["test"]["people_with_one_frame"] == 1
    assert content["splits"]["test"]["frames_per_person"] == [1, 3.5, 6]
    emptied = content["rules"]["test"]["rgb_to_depth"]["twin_excluded"]
    assert emptied == {"queries": 7, "emptied": 1, "persons": [5], "names": ["test record 6 (30.png)"]}
    assert status == 0


@pytest.mark.parametrize(("split", "kind"), [("train", "unpaired_training"), ("test", "unpaired_evaluation")])
def test_frames_that_are_no_pairs(registry, checked, split, kind):
    frames = changed(registry.people(), split, 3, depth=BLACK, mask=np.zeros((32, 16), np.uint8), modalities=1)
    status, content = checked(frames)
    assert set(problems_of(content)) == {kind}
    record = f"{split} record 3 ({3 if split == 'train' else 27}.png)"
    assert problems_of(content)[kind]["names"] == [record]
    assert ("distillation refuses" in problems_of(content)[kind]["words"]) == (split == "train")
    assert (content["splits"][split]["depth"], content["splits"][split]["pairs"]) == (11, 11)
    assert status == 0


def test_the_next_command_is_one_that_takes_the_data(registry, drawn_tree, tmp_path, capsys):
    registry.give(changed(registry.people(), "train", 3, depth=BLACK, mask=np.zeros((32, 16), np.uint8), modalities=1))
    assert check.main(["people", f"--data_dir={tmp_path}", f"--manual_dir={drawn_tree}"]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.startswith("next: ")
    assert "--config=configs/one_stream.py:people/all" in command, "distillation needs pairs"
    assert "--config.training.baseline.sampling.name=pk_cross_modal" in command


def test_one_camera_makes_the_camera_rules_useless(registry, checked):
    status, content = checked(registry.people(cameras=1))
    rules = content["rules"]["test"]["depth_to_rgb"]
    assert rules["cross_camera"] == {"queries": 6, "emptied": 6, "persons": [4, 5], "names": []}
    assert rules["twin_excluded"]["emptied"] == 0
    useless = {problem["words"].split()[1] for problem in content["problems"] if problem["kind"] == "rule"}
    assert useless == {"market", "cross_camera", "recording_excluded"}
    assert status == 0


def test_a_modality_that_is_missing_altogether_leaves_nothing_to_rank(registry, checked):
    frames = registry.people()
    for number in range(12):
        frames = changed(frames, "test", number, depth=BLACK, modalities=1)
    status, content = checked(frames)
    words = [problem["words"] for problem in content["problems"] if problem["kind"] == "no_positive"]
    assert any(one.startswith("test rgb_to_depth: no query has an item of its person") for one in words)
    assert status == 1


def test_findings_of_the_build_are_listed_by_kind_and_file(registry, checked):
    findings = [
        Finding(kind, f"{kind}.jpg", "words")
        for kind in ("unpaired", "corrupt", "empty_mask", "empty_file", "duplicate", "ignored")
    ]
    status, content = checked(registry.people(), findings=findings)
    for kind in ("unpaired", "corrupt", "empty_mask", "empty_file", "duplicate", "ignored"):
        assert problems_of(content)[kind]["level"] == "warning"
        assert problems_of(content)[kind]["names"] == [f"{kind}.jpg: words"]
    assert (status, content["verdict"]) == (0, "warning")


def test_what_a_reader_gets(registry, drawn_tree, tmp_path, capsys):
    frames = registry.people()
    for number in range(8):
        frames = changed(frames, "test", number, mask=np.zeros((32, 16), np.uint8))
    registry.give(frames)
    arguments = ["people", f"--data_dir={tmp_path}", f"--manual_dir={drawn_tree}"]
    assert check.main(arguments) == 0
    output, errors = capsys.readouterr()
    lines = output.splitlines()
    assert errors == ""
    assert "[check] frame 36/36  100 %" in output
    counts = "  test        2       12      12   12     12     4           6 .. 6 .. 6        2."
    assert any(line.startswith(counts) and line.endswith(" m") for line in lines)
    assert any(line.split() == ["test", "all", *["0", "of", "12"] * 4] for line in lines)
    assert "warning  empty_mask: 8 masks have no person: relative depth is then taken from the whole image" in lines
    assert "           test record 4 (28.png): its mask has no person" in lines
    assert "           test record 5 (29.png): its mask has no person" not in lines
    assert "           and 3 more; --json lists all" in lines
    assert lines[-2] == "verdict: warning; nothing stands against training, with 1 warning to judge"
    assert lines[-1].startswith("next: python -m rgbd_reid_jax.main --config=configs/distill.py:people/all")
    assert f"--config.dataset.data_dir={tmp_path}" in lines[-1]


def test_a_reader_is_told_who_is_skipped_and_why_it_cannot_be_used(registry, drawn_tree, tmp_path, capsys):
    frames = registry.people()
    frames["test"] = frames["test"][:9]  # person 5 is seen by camera 0 alone
    registry.give(changed(frames, "train", 0, rgb=b""))
    assert check.main(["people", f"--data_dir={tmp_path}", f"--manual_dir={drawn_tree}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    skipped = "test record 6 (30.png), test record 7 (31.png), test record 8 (32.png)"
    assert f"  test, cross_camera: queries of person 5: {skipped}" in lines
    assert "error    undecodable: 1 images do not decode: training stops there" in lines
    assert lines[-1] == "verdict: error; 1 of the above would stop training or make numbers wrong"


def test_bad_usage_is_one_line(registry, capsys, tmp_path):
    (tmp_path / "a.png").mkdir()
    for arguments, words in (
        ([], "NAME[/CONFIG] is missing"),
        (["people", f"--data_dir={tmp_path}"], "people needs files of yours"),
        (["people", f"--sheet={tmp_path / 'a.png'}"], f"--sheet={tmp_path / 'a.png'} cannot be written"),
        (["people", "--sheet=sheet.jpg"], "--sheet=sheet.jpg: the picture is a PNG; give a name that ends in .png"),
        (["people", f"--sheet={__file__}/new/sheet.png"], "new/sheet.png cannot be written"),
    ):
        assert check.main(arguments) == 2
        errors = capsys.readouterr().err.strip()
        assert errors.startswith("error: ")
        assert words in errors
        assert len(errors.splitlines()) == 1


def test_a_sheet_that_cannot_be_written_after_all_is_one_line(registry, drawn_tree, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system", "sheet.png")

    monkeypatch.setattr(check.contact_sheet, "write", refuse)
    arguments = ["people", f"--data_dir={tmp_path}", f"--manual_dir={drawn_tree}", f"--sheet={tmp_path}/sheet.png"]
    assert check.main(arguments) == 2
    assert capsys.readouterr().err == "error: sheet.png: Read-only file system; mend it or name another place\n"


def test_faults_of_a_record_do_not_hide_one_another():
    from tfds_builders import schema

    example = {
        "rgb": b"",
        "depth": encode_png(np.ones((4, 4), np.uint8)),
        "mask": encode_png(np.ones((2, 2), np.uint8)),
    }
    labels = dict.fromkeys(inspection.LABELS, 1)
    where = {"person_box": np.zeros(4, np.float32), "intrinsics": np.zeros(4, np.float32), "source": "a/ü.png"}
    record = schema.frame_features().serialize_example(example | labels | where)
    seen = inspection.look(record)
    assert [kind for kind, _ in seen.faults] == ["undecodable", "wrong_type", "size_mismatch"]
    assert seen.file == "a/ü.png"


def test_the_page_names_every_kind_of_problem(repository):
    page = (repository / "docs" / "datasets.md").read_text(encoding="utf-8")
    for level in ("error", "warning"):
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {level} |")]
        code = inspect.getsource(problems)
        kinds = re.findall(rf'Problem\({level.upper()}, "(\w+)"', code)
        kinds += [kind for kind, (own, _) in problems._OF_RECORDS.items() if own == level]
        assert len(kinds) >= 8
        for kind in kinds:
            assert f"`{kind}`" in row


def test_scenarios_of_passages_are_counted_beside_the_rules():
    """Against the protocol's words, pair by pair."""
    random = np.random.default_rng(0)
    cameras = ("flat", "upward", "downward")
    passages = [(int(random.integers(4)), str(random.choice(cameras)), str(random.integers(3))) for _ in range(12)]
    seen, columns = [], {"person_id": [], "recording_id": [], "modalities": []}
    for number, (person, camera, name) in enumerate(passages):
        for _ in range(2):
            seen.append(inspection.Seen({}, "", names={"camera_name": camera, "passage_name": name}))
            columns["person_id"].append(person)
            columns["recording_id"].append(number)
            columns["modalities"].append(3 if number else 1)  # one passage without depth
    zeros = np.zeros(len(seen), np.int64)
    labels = {name: np.array(column) for name, column in columns.items()} | {"camera_id": zeros, "frame_id": zeros}
    split = inspection.Split("test", [], seen, labels)
    counts = problems.rule_counts({"test": split})["test"]["rgb_to_depth"]

    def compares(scenario, one, other):
        kinds = {one[1], other[1]}
        by_scenario = {
            "same_cam_cross_passage": len(kinds) == 1,
            "up_down_cross_passage": kinds == {"upward", "downward"},
            "flat_vs_others": "flat" in kinds and len(kinds) == 2,
        }
        return one[2] != other[2] and by_scenario[scenario]

    for scenario in ("same_cam_cross_passage", "up_down_cross_passage", "flat_vs_others"):
        queries = [one for one in passages if any(compares(scenario, one, other) for other in passages[1:])]
        empty = [
            number
            for number, one in enumerate(passages)
            if one in queries
            and not any(one[0] == other[0] and compares(scenario, one, other) for other in passages[1:])
        ]
        found = counts[f"tvrid {scenario}"]
        assert 0 < len(empty) < len(passages), "a case that shows nothing"
        assert (found["queries"], found["emptied"]) == (len(queries), len(empty))
        assert found["names"] == [f"test record {2 * number}" for number in empty]
