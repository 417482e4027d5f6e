"""What a sweep file may say, in which order it is run, and what a digest depends on."""

import runpy

import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.stages import reuse
from rgbd_reid_jax.stages.order import stands_on, training_order
from rgbd_reid_jax.sweeps import plan
from rgbd_reid_jax.sweeps.plan import Method, Run, digest, read_sweep, read_sweeps, tasks_of

CONFIG = "configs/distill.py"
GOOD = {
    "name": "trial",
    "title": "A trial",
    "methods": [{"name": "a", "config": CONFIG}, {"name": "b", "config": CONFIG, "reuse": ["a"], "note": "again"}],
    "runs": [{"seed": 0, "knobs": "seed=1"}, {"seed": 1, "knobs": "seed=2"}],
    "directions": ["rgb_to_depth", "depth_to_depth"],
}


@pytest.fixture
def write(tmp_path):
    """Writes a sweep file; its path."""

    def make(content) -> str:
        text = content if isinstance(content, str) else f"def get_sweep():\n    return {content!r}\n"
        (tmp_path / "sweep.py").write_text(text)
        return str(tmp_path / "sweep.py")

    return make


def with_method(**values) -> dict:
    return GOOD | {"methods": [{"name": "a", "config": CONFIG} | values]}


def test_a_sweep_is_read_with_digests_stages_and_what_scores_are_about(write):
    steps = {"training.student.steps": 40, "evaluation.normalise": True}
    sweep = read_sweep(
        write(GOOD | {"methods": [*GOOD["methods"], {"name": "c", "config": CONFIG, "overrides": steps}]})
    )
    first, second, third = sweep.methods
    assert first.stages == ("teacher", "student", "evaluation")
    assert first.digest == second.digest != third.digest
    assert len(first.digest) == 12
    assert (sweep.data, sweep.protocol, sweep.split) == ("synthetic_rgbd/quick", "cross_camera", "test")
    assert sweep.cross == ("rgb_to_depth",)
    arguments = third.arguments(sweep.runs[1])
    assert arguments[:3] == [f"--config={CONFIG}", "--config.seed=1", "--config.dataset.knobs=seed=2"]
    assert arguments[3:] == ["--config.training.student.steps=40", "--config.evaluation.normalise=True"]


def test_an_argument_is_for_the_file(write):
    path = write(f"def get_sweep(name='trial'):\n    return {GOOD!r} | {{'name': name}}\n")
    assert [read_sweep(one).name for one in (path, f"{path}:other")] == ["trial", "other"]


def test_stages_that_a_method_gives_are_all_run(write):
    stages = ["teacher", "student", "evaluation", "report"]
    sweep = read_sweep(write(with_method(overrides={"stages": stages})))
    assert sweep.methods[0].stages == tuple(stages)


def test_run_by_run_and_within_a_run_what_is_reused_first(make_sweep):
    methods = [
        Method(name, CONFIG, {}, reuse, "") for name, reuse in (("a", ("c",)), ("b", ()), ("c", ("b",)), ("d", ("a",)))
    ]
    sweep = make_sweep(*methods)
    labels = [(task.method.name, task.run.seed) for task in tasks_of(sweep)]
    assert labels == [(name, seed) for seed in (0, 1, 2) for name in "bcad"]
    assert [(task.method.name, task.run.seed) for task in tasks_of(sweep, ["d", "b"])][:2] == [("b", 0), ("d", 0)]


@pytest.mark.parametrize(
    ("run", "label"),
    [
        (Run(0), "seed0"),
        (Run(3, "seed=1"), "seed3-seed_1"),
        (Run(3, "seed=1,body_spread=1.3"), "seed3-seed_1_body_spread_1.3"),
        (Run(0, "offset=-2"), "seed0-offset_-2"),
    ],
)
def test_folders_are_named_after_the_seeds(run, label):
    assert run.label == label


def test_a_digest_depends_on_neither_places_nor_seeds():
    content = {
        "seed": 0,
        "stages": ("teacher", "evaluation"),
        "dataset": {"name": "people", "knobs": "seed=0", "data_dir": "here", "manual_dir": "", "cache": "host"},
        "training": {"teacher": {"steps": 8}},
        "evaluation": {"protocol": "cross_camera", "batch_size": 256},
    }
    there = content["dataset"] | {"knobs": "seed=9", "data_dir": "there", "cache": "device", "workers": 3}
    assert digest(content | {"seed": 7, "dataset": there}) == digest(content)
    assert digest(content | {"stages": ["teacher", "evaluation"]}) == digest(content)
    assert digest(content | {"evaluation": content["evaluation"] | {"batch_size": 64}}) == digest(content)
    assert digest(content | {"evaluation": content["evaluation"] | {"protocol": "market"}}) != digest(content)
    assert digest(content | {"training": {"teacher": {"steps": 9}}}) != digest(content)
    assert digest(content | {"dataset": there | {"name": "others"}}) != digest(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1", ["must define get_sweep()"]),
        ("def get_sweep():\n    return 1 / 0", ["division by zero"]),
        ("def get_sweep(:", ["invalid syntax"]),
        ({**GOOD, "titel": "x"}, ["unknown key 'titel'", "title"]),
        ({name: value for name, value in GOOD.items() if name != "runs"}, ["lacks 'runs'"]),
        ({**GOOD, "runs": []}, ["runs is empty"]),
        ({**GOOD, "methods": []}, ["methods is empty"]),
        ({**GOOD, "directions": []}, ["directions is empty", "rgb_to_depth"]),
        ({**GOOD, "directions": ["rgb"]}, ["directions: 'rgb' is unknown", "rgb_to_depth"]),
        ({**GOOD, "directions": "rgb_to_depth"}, ["directions='rgb_to_depth'", "is no sequence"]),
        ({**GOOD, "name": "a b"}, ["'a b'", "letters, digits"]),
        ({**GOOD, "figure": "../x.png"}, ["figure='../x.png'"]),
        ({**GOOD, "baselines": ["nobody"]}, ["baselines: 'nobody' is unknown", "a, b"]),
        ({**GOOD, "runs": [{"seed": 0}, {"seed": 0}]}, ["runs has 'seed0' 2 times"]),
        ({**GOOD, "runs": [{"seed": "0"}]}, ["seed='0' of a run is no int"]),
        ({**GOOD, "runs": [{"seed": True}]}, ["seed=True"]),
        ({**GOOD, "runs": [{"seed": 0}, {"seed": -1}]}, ["run seed-1", "config.seed=-1"]),
        ({**GOOD, "runs": [{"seed": 0, "knobs": "sead=1"}]}, ["sead"]),
        ({**GOOD, "methods": GOOD["methods"] + GOOD["methods"][:1]}, ["methods has 'a' 2 times"]),
        (with_method(name="a,b"), ["'a,b'", "letters, digits"]),
        (with_method(config="configs/absent.py"), ["method 'a'", "configs/absent.py does not exist"]),
        (with_method(overrides={"training.student.stepz": 1}), ["stepz", "did you mean 'steps'"]),
        (with_method(overrides={"training.student.steps": 0}), ["steps=0", "at least 1"]),
        (with_method(overrides={"seed": 1}), ["overrides seed, which the runs give"]),
        (with_method(overrides={"stages": ("teacher",)}), ["no evaluation among its stages"]),
        (with_method(reuse=["z"]), ["reuse of method 'a'", "'z' is unknown"]),
        (with_method(reuse=["a"]), ["methods a reuse each other"]),
        (
            {**GOOD, "methods": [{"name": n, "config": CONFIG, "reuse": [o]} for n, o in ("ab", "ba")]},
            ["methods a, b reuse each other in a circle"],
        ),
        (
            {
                **GOOD,
                "methods": [{"name": "a", "config": CONFIG}, {"name": "b", "config": f"{CONFIG}:synthetic_rgbd/tiny"}],
            },
            ["method 'b' has another data (synthetic_rgbd/tiny) than 'a'"],
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(write, content, words):
    path = write(content)
    with pytest.raises(InputError) as error:
        read_sweep(path)
    message = str(error.value)
    assert message.startswith(f"--sweep={path}")
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


def test_a_missing_file_and_an_unknown_method_are_named(tmp_path, make_sweep):
    with pytest.raises(InputError, match=r"absent\.py is no file"):
        read_sweep(str(tmp_path / "absent.py"))
    with pytest.raises(InputError, match=r"--only: method 'frist' is not in the sweep; did you mean 'first'"):
        tasks_of(make_sweep(), ["frist"])


def test_values_are_written_as_the_command_line_takes_them():
    assert [plan._text(value) for value in ("x", 1, 0.5, True, (1, "a"), ["cpu"])] == [
        *("x", "1", "0.5", "True"),
        "(1, 'a')",
        "('cpu',)",
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("synthetic_rgbd", {"attention_none": {"pair"}, "attention_none_grey": {"pair"}}),
        # The paper's attention is ranked by directions, so its encoders are chosen by another score.
        ("biwi", {"attention_none": {"teacher", "student", "pair"}, "attention_none_grey": {"student", "pair"}}),
    ],
)
def test_methods_take_from_others_what_is_the_same(data, expected):
    """Which stages each method trains itself, where all that it reuses is there."""
    methods = runpy.run_path("configs/sweeps/benchmark.py")["methods"](data)
    contents = {one["name"]: cli._load(one["config"]).to_dict() for one in methods}

    def determining(name: str, stage: str, order: list[str]) -> dict:
        return reuse._determining(contents[name], [*stands_on(stage, order), stage])

    trained = {}
    for one in methods:
        name, own = one["name"], contents[one["name"]]
        order = training_order(own["stages"], own["training"])
        trained[name] = {
            stage
            for stage in order
            if not any(
                stage in contents[other]["training"]
                and determining(other, stage, order) == determining(name, stage, order)
                for other in one["reuse"]
            )
        }
    others = {name: {"pair"} for name in trained if name.startswith("attention_")} | expected
    assert {name: stages for name, stages in trained.items() if name in others} == others
    assert trained["distill_from_depth_grey"] == {"student"}
    assert trained["distill_from_rgb_grey"] == {"teacher", "student"}


def test_the_grid_of_the_paper_is_one_command(tmp_path):
    """Two datasets, both directions, five folds, all methods; every one from the given files."""
    weights = tmp_path / "resnet50.pth"
    weights.touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "splits.json").touch()
    grid = [f"configs/sweeps/paper_grid.py:{data},{tmp_path},{weights}" for data in ("biwi", "robotpku")]
    first, second = read_sweeps(grid)
    assert (first.data, second.data) == ("biwi_rgbd_id/paper", "robotpku_rgbd_id")
    names = {one["name"] for one in runpy.run_path("configs/sweeps/benchmark.py")["methods"]("biwi")}
    gates = {f"attention_{gate}" for gate in ("none", "none_running", "self", "pairwise", "middle")}
    assert gates | {f"{gate}_grey" for gate in gates} < names
    names |= {f"{gate}_from_rgb" for gate in gates} | {"distill_from_depth_triplet", "distill_from_rgb_triplet"}
    for sweep in (first, second):
        assert {one.name for one in sweep.methods} == names
        assert [run.knobs for run in sweep.runs] == [f"fold={fold}" for fold in range(5)]
        contents = [cli.configuration(task.method.arguments(task.run)) for task in tasks_of(sweep)[::17]]
        for content in contents:
            assert (content["dataset"]["manual_dir"], content["model"]["pretrained"]) == (str(tmp_path), str(weights))
    with pytest.raises(InputError, match="DATASET,FOLDER,WEIGHTS, the dataset one of: biwi, robotpku"):
        read_sweep("configs/sweeps/paper_grid.py:tvrid")
    with pytest.raises(InputError, match="is no file; give a"):
        read_sweep(f"{grid[0]}x")
    (tmp_path / "images").rename(tmp_path / "Training")  # of a raw tree BIWI's splits alone are read
    read_sweep(grid[0])
    with pytest.raises(InputError, match=r"has no splits\.json beside images/, so nothing says who is in which fold"):
        read_sweep(grid[1])
    (tmp_path / "splits.json").unlink()
    with pytest.raises(InputError, match=r"has no splits\.json beside images or Training/"):
        read_sweep(grid[0])
    assert read_sweep(f"configs/sweeps/paper_grid.py:biwi,,{weights}").name == "paper_biwi"  # built already


def test_sweeps_that_would_write_to_one_place_are_refused(write):
    path = write(f"def get_sweep(name='trial'):\n    return {GOOD!r} | {{'name': name}}\n")
    with pytest.raises(InputError, match="2 sweeps have the name 'trial'"):
        read_sweeps([path, path])
    with pytest.raises(InputError, match=r"2 sweeps have the figure 'results.png'"):
        read_sweeps([path, f"{path}:other"])
