"""The run's figures: lines on disk, and what a restart drops."""

import json

import pytest

from rgbd_reid_jax.training.record import Record


@pytest.fixture
def record(tmp_path):
    record = Record(tmp_path)
    yield record
    record.close()


def test_lines_hold_stage_step_and_figures(record, tmp_path):
    record.write("teacher", 2, {"loss": 0.5})
    record.write("teacher", 4, {"eval/rgb_to_depth/mAP": 0.25})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == record.read()
    assert record.read() == [
        {"stage": "teacher", "step": 2, "loss": 0.5},
        {"stage": "teacher", "step": 4, "eval/rgb_to_depth/mAP": 0.25},
    ]


def test_a_run_without_lines_reads_as_empty(record):
    assert record.read() == []


def test_rewind_drops_later_lines_of_its_stage_alone(record):
    for stage, step in [("teacher", 2), ("teacher", 4), ("student", 9), ("teacher", 6)]:
        record.write(stage, step, {"loss": float(step)})
    record.rewind("teacher", 4)
    record.write("teacher", 5, {"loss": 0.0})
    found = [(line["stage"], line["step"]) for line in record.read()]
    assert found == [("teacher", 2), ("teacher", 4), ("student", 9), ("teacher", 5)]


def test_a_half_written_last_line_is_survived(record, tmp_path):
    record.write("teacher", 2, {"loss": 0.5})
    record.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "teacher", "step": 4, "lo')
    assert [line["step"] for line in record.read()] == [2]
    record.rewind("teacher", 2)
    record.write("teacher", 3, {"loss": 0.25})
    assert [line["step"] for line in record.read()] == [2, 3]
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_events_lie_beside_in_a_folder_per_stage(record, tmp_path):
    record.rewind("teacher", 0)
    record.write("teacher", 1, {"loss": 0.5})
    record.write("student", 1, {"accuracy": 0.5})
    record.close()
    for stage, name in [("teacher", b"loss"), ("student", b"accuracy")]:
        (events,) = (tmp_path / "tensorboard" / stage).iterdir()
        assert name in events.read_bytes()


def test_leaving_the_context_brings_all_events_to_disk(tmp_path):
    with Record(tmp_path) as record:
        record.rewind("teacher", 0)
        for step in range(1, 31):
            record.write("teacher", step, {"loss": 0.5})
    (events,) = (tmp_path / "tensorboard" / "teacher").iterdir()
    assert events.read_bytes().count(b"loss") == 30


def test_writing_goes_on_after_close(record):
    record.write("teacher", 1, {"loss": 1.0})
    record.close()
    record.write("teacher", 2, {"loss": 2.0})
    assert [line["step"] for line in record.read()] == [1, 2]
