"""The command, from its arguments to what it prints."""

import json

import jax
import pytest

from rgbd_reid_jax import plan
from rgbd_reid_jax.planning import measure, topology
from rgbd_reid_jax.planning import plan as planning
from rgbd_reid_jax.planning.hlo import Collective
from rgbd_reid_jax.planning.program import Program, TooLarge

TINY = (
    "--config=configs/distill.py",
    "--config.dataset.config=tiny",
    "--config.input.height=16",
    "--config.input.width=16",
    "--config.model.backbone=tiny",
    "--config.training.student.hints=(1,2)",  # the tiny network has two stages
    "--config.model.embedding_dim=8",
    "--stage=teacher",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch, without_augmentation):
    """Measures small things."""
    monkeypatch.setattr(measure, "_PRODUCT", 32)
    monkeypatch.setattr(measure, "_BLOCK", 1024)
    monkeypatch.setattr(measure, "_SUMMED", 1024)


def _use(monkeypatch, chip):
    """All devices of this machine are `chip`s."""
    where = topology.Slice("attached", jax.devices(), chip, (len(jax.devices()),))
    monkeypatch.setattr(topology, "attached", lambda: where)


def test_a_plan_of_this_machine(tiny_model, capsys):
    assert plan.main([*TINY, "--batch_per_chip=8", "--largest_batch=false", "--json"]) == 0
    output = capsys.readouterr()
    (made,) = json.loads(output.out)["plans"]
    assert (made["stage"], made["topology"], made["devices"], made["batch"]) == ("teacher", "attached", 8, 64)
    program = made["program"]
    assert program["mesh"] == {"data": 8, "fsdp": 1}
    assert program["flops"] > made["one_chip"]["flops"] / 2
    assert program["peak"] == program["arguments"] + program["temporaries"] + program["code"]
    assert program["host"] == 8 * (64 * 32 * 3 + 4)  # depth of two bytes, mask and identity of a chip's eight rows
    sums = [one for one in program["collectives"] if one["op"] == "all-reduce"]
    assert sums
    assert {one["axis"] for one in sums} == {"data"}
    times = program["times"]
    assert times["step_exposed"] >= times["step_hidden"] > 0
    assert made["efficiency"][0] <= made["efficiency"][1]
    assert made["chip"]["source"].startswith("measured now")
    assert "compiles stage teacher" in output.err


def test_a_plan_for_a_reader(tiny_model, capsys, monkeypatch):
    def compile_step(settings, stage, where, batch, data):
        """A step of 1e12 FLOPs and 2e6 bytes a row, and on several devices an all-reduce of 8e6 bytes."""
        count = len(where.devices)
        rows = batch // count
        if rows > 100:
            raise TooLarge("Ran out of memory")
        sums = [Collective("all-reduce", ("f32",), 2, 8_000_000, (tuple(range(count)),), origin="/bn1/sum")]
        work = {"micro_batches": 1, "flops": 1e12 * rows, "accessed": 2e6 * rows, "collectives": sums[: count - 1]}
        sizes = {"arguments": 1_000_000, "temporaries": 1_000_000 * rows, "code": 0, "peak": 1_000_000 * (1 + rows)}
        mesh = {"data": count, "fsdp": 1}
        return Program(batch, batch, count, mesh, **sizes, host=5, **work, seconds=3.0), where

    monkeypatch.setattr(planning, "compile_step", compile_step)
    _use(monkeypatch, topology.Chip("test", 1e9, {"float32": 1e15}, 1e12, 7e9, 1e-6, 0, "by hand"))
    assert plan.main(TINY) == 0
    words = capsys.readouterr().out
    assert "stage teacher on attached: 8 x test, float32" in words
    assert "batch          64 rows, 8 a chip" in words
    assert "6 identities, 48 frames: its config" in words
    assert f"\n{'':<17}a run refuses 16 people times 4 frames of 6 people\n" in words
    assert "arguments 1 MB + temporaries 8 MB + program 0 B = 9 MB of 1 GB (1 %), a chip" in words
    assert "1 a step, 8 MB; 0 asynchronous; 1 stem from batch norms, 2 ms" in words
    assert "1 x all-reduce f32 over data, 8 MB each" in words
    # 8e12 / 1e15; 16e6 / 1e12; 2 x 7/8 x 8e6 / 7e9 and two hops of 1 us
    assert "compute 8 ms, memory 0.016 ms, interconnect 2 ms (bytes 2 ms, hops 0.002 ms): compute binds" in words
    assert "exposed 10 ms, 6,399 images/s" in words
    assert "hidden 8 ms, 8,000 images/s" in words
    assert "efficiency 80.0 % exposed, 100.0 % hidden (one chip, 8 rows: 8 ms, 1,000 images/s)" in words
    assert "800 rows (100 a chip) fit" in words or "rows (98 a chip) fit" in words
    assert "A prediction from a roofline, not a measurement" in words
    assert f"jax {jax.__version__}" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--config is missing"),
        (("--config=configs/distill.py", "--topology=v9:2x2"), "v9:2x2 is unknown; say attached, or KIND:AxB"),
        (("--config=configs/distill.py", "--topology=v5e"), "v5e is unknown"),
        (("--config=configs/distill.py", "--topology=v5e:2x2x2"), "v5e has 2 axes; say, for example, v5e:4x4"),
        (("--config=configs/distill.py", "--topology=v5e:32x16"), "has 512 chips, and a pod of v5e 256"),
        (("--config=configs/distill.py", "--topology=v4:2x2"), "v4 has 3 axes; say, for example, v4:4x4x4"),
        (("--config=configs/distill.py", "--stage=pair"), "no training stage of this config; it has: teacher, student"),
        (("--config=configs/distill.py", "--batch_per_chip=0"), "'0' is no number above 0"),
        (("--config=configs/distill.py", "--try_minutes=0"), "'0' is no number above 0"),
        (("--config=configs/distill.py", "--largest_batch=maybe"), "'maybe' is neither true nor false"),
        (("--config=configs/distill.py", "--workdir=x"), "unrecognized argument --workdir=x"),
        (("--config=configs/distill.py", "--config.no=1"), "config has no field 'no'"),
        (("--config=configs/distill.py", "--config.mesh.fsdp=16"), "fsdp=16 does not divide the 8 devices"),
        (
            ("--config=configs/distill.py", "--config.training.student.batch_size=60"),
            "training.student.batch_size=60 is no positive multiple of the 8 devices",
        ),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, words):
    assert plan.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert words in output.err


def test_without_libtpu_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    assert plan.main(["--config=configs/distill.py", "--topology=v5e:2x4"]) == 2
    assert "pip install -e '.[tpu]'" in capsys.readouterr().err


def test_a_step_that_does_not_fit_is_told(tiny_model, capsys, monkeypatch):
    def compile_step(settings, stage, where, batch, data):
        raise TooLarge("Ran out of memory in memory space hbm")

    monkeypatch.setattr(planning, "compile_step", compile_step)
    _use(monkeypatch, topology.Chip("test", 1e9, {"float32": 1e12}, 1e11, 1e10, 1e-6, 0, "by hand"))
    assert plan.main(TINY) == 0
    words = capsys.readouterr().out
    assert "does not fit: Ran out of memory in memory space hbm" in words
    assert "none; 8 rows (1 a chip) do not fit" in words
