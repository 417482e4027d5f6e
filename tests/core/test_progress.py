"""Progress lines, on a clock that the test turns."""

import io

import pytest

from rgbd_reid_jax.core import progress
from rgbd_reid_jax.core.progress import Progress, format_seconds


@pytest.fixture
def clock(monkeypatch):
    """A list with the time now, seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (9.6, "0:10"),
        (61, "1:01"),
        (3599.4, "59:59"),
        (3599.6, "1:00:00"),
        (36061, "10:01:01"),
        (-3, "0:00"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_a_line_holds_position_rate_figures_and_time_left(clock):
    stream = io.StringIO()
    line = Progress("teacher", 800, items_per_unit=64, every_s=5.0, stream=stream)
    clock[0] += 10.0
    assert line.update(40, loss=2.3125, accuracy=0.5)
    # 40 steps of 64 images in 10 s; 760 steps are left at 4 steps/s.
    assert stream.getvalue() == "[teacher] step 40/800  5 %  256 images/s  loss 2.312  accuracy 0.5  ETA 3:10\n"


def test_lines_are_spaced_but_the_last_and_forced_ones_come(clock):
    stream = io.StringIO()
    line = Progress("embed", 10, unit="frame", every_s=5.0, stream=stream)
    clock[0] += 4.9
    assert not line.update(1)
    clock[0] += 0.1
    assert line.update(2)
    assert not line.update(3)
    assert line.update(4, force=True)
    assert line.update(10)
    lines = stream.getvalue().splitlines()
    assert [text.split("  ")[0] for text in lines] == [
        "[embed] frame 2/10",
        "[embed] frame 4/10",
        "[embed] frame 10/10",
    ]
    assert lines[-1].endswith("ETA 0:00")


def test_what_an_earlier_run_did_does_not_count_in_the_rate(clock):
    line = Progress("teacher", 100, start=50, items_per_unit=2, stream=io.StringIO())
    clock[0] += 5.0
    assert line.rate(60) == pytest.approx(4.0)
    line.restart(60)
    clock[0] += 1.0
    assert line.rate(61) == pytest.approx(2.0)


def test_until_a_unit_is_timed_there_is_no_rate_and_no_time_left(clock):
    stream = io.StringIO()
    line = Progress("teacher", 100, start=50, stream=stream)
    assert line.rate(50) is None
    line.update(50, force=True, loss=2.5)
    assert stream.getvalue() == "[teacher] step 50/100  50 %  loss 2.5\n"


def test_a_pause_counts_neither_in_the_rate_nor_in_the_time_left(clock):
    stream = io.StringIO()
    line = Progress("teacher", 100, items_per_unit=2, stream=stream)
    clock[0] += 5.0
    with line.paused():
        clock[0] += 100.0
    clock[0] += 5.0
    assert line.rate(10) == pytest.approx(2.0)
    line.update(10, force=True)
    assert stream.getvalue() == "[teacher] step 10/100  10 %  2 images/s  ETA 1:30\n"


def test_say_prints_one_line(capsys):
    progress.say("teacher", "done")
    assert capsys.readouterr().out == "[teacher] done\n"
