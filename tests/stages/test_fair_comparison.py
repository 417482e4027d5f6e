"""Methods differ in what they are about, and in nothing else: data, optimizer and number of images are the same."""

from typing import Any

import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.losses.weighted import TWIN_LOSSES


def flat(argument: str) -> dict[str, Any]:
    """All fields of a configuration by dotted name."""
    found: dict[str, Any] = {}

    def walk(prefix: str, content: Any) -> None:
        if isinstance(content, dict) and content:
            for name, value in content.items():
                walk(f"{prefix}.{name}" if prefix else name, value)
        else:
            found[prefix] = content

    walk("", cli._load(f"configs/{argument}").to_dict())
    return found


def changed(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The values of `other` that `one` has not."""
    assert one.keys() == other.keys()
    return {name: value for name, value in other.items() if one[name] != value}


TRAINING = "training.baseline."
AGW = {
    "method": "agw",
    "model.own_parts": 1,
    "model.last_stride": 1,
    f"{TRAINING}sampling.name": "pk_cross_modal",
    f"{TRAINING}augmentation.channel_exchange": 0.3,
}
# What the recipe of the embedded dataset has already, and the paper's has not.
STRONG = {
    "model.pool": "gem",
    "model.neck": "bnneck",
    "evaluation.normalise": True,
    f"{TRAINING}losses.weighted_triplet": 1.0,
    f"{TRAINING}augmentation.erase": 0.5,
}


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("zero_padding.py", {"method": "zero_padding", "input.zero_padding": True}),
        ("two_stream.py", {"method": "two_stream", "model.own_parts": 1}),
        ("agw.py", AGW),
        ("zero_padding.py:biwi", {"method": "zero_padding", "input.zero_padding": True}),
        ("two_stream.py:biwi", {"method": "two_stream", "model.own_parts": 1}),
        ("agw.py:biwi", AGW | STRONG),
    ],
)
def test_baselines_are_the_one_stream_network_but_for(argument, expected):
    _, _, data = argument.partition(":")
    assert changed(flat(f"one_stream.py:{data or 'synthetic_rgbd'}"), flat(argument)) == expected


@pytest.mark.parametrize("name", ["distill", "attention", "mutual", "one_stream", "two_stream", "zero_padding", "agw"])
def test_a_grey_control_changes_the_colours_alone(name):
    plain, grey = flat(f"{name}.py:synthetic_rgbd"), flat(f"{name}.py:synthetic_rgbd,grey")
    assert changed(plain, grey) == {"input.colour": "grey"}


def images(fields: dict[str, Any]) -> int:
    """How many images are trained on, all stages together."""
    stages = {name.split(".")[1] for name in fields if name.startswith("training.")}
    found = 0
    for stage in stages:
        modalities = 2 if fields[f"training.{stage}.modality"] == "both" else 1
        found += modalities * fields[f"training.{stage}.steps"] * fields[f"training.{stage}.batch_size"]
    return found


@pytest.mark.parametrize("data", ["synthetic_rgbd", "biwi"])
def test_all_train_on_as_many_images(data):
    """But for attention, which trains distilled encoders on, and has its own control for that."""
    expected = images(flat(f"distill.py:{data}"))
    names = ("distill.py:{},rgb_teacher", "mutual.py:{}", "one_stream.py:{}", "two_stream.py:{}", "agw.py:{}")
    assert {name: images(flat(name.format(data))) for name in names} == dict.fromkeys(names, expected)


@pytest.mark.parametrize("data", ["synthetic_rgbd", "biwi,rgb_teacher"])
def test_gates_are_compared_with_the_same_training_without_one(data):
    """Encoders are those of distill.py; the teacher's weights stay."""
    distilled, none = flat(f"distill.py:{data}"), flat(f"attention.py:{data},none")
    encoders = {name: value for name, value in distilled.items() if name.startswith("training.")}
    assert {name: none[name] for name in encoders} == encoders
    taught, own = ("rgb", "depth") if "rgb_teacher" in data else ("depth", "rgb")
    assert none["training.pair.freeze"] == ((f"{taught}/.*", "freeze"), (f"{own}/.*", "train"))
    running = flat(f"attention.py:{data},none_running")
    assert changed(none, running) == {"method": "attention_none_running", "training.pair.trained_norm": "running"}
    for gate in ("self", "pairwise", "middle"):
        expected = {
            "method": f"attention_{gate}",
            "training.pair.gate.kind": gate,
            "training.pair.freeze": (*none["training.pair.freeze"], ("gate_.*", "train")),
        }
        control = running if gate == "middle" else none
        assert changed(control, flat(f"attention.py:{data},{gate}")) == expected


@pytest.mark.parametrize("data", ["synthetic_rgbd", "biwi"])
def test_mutual_distillation_has_what_teacher_and_student_have(data):
    """Losses but for a trained teacher's, erasing, optimizer."""
    distilled, mutual = flat(f"distill.py:{data}"), flat(f"mutual.py:{data}")
    own = {name.removeprefix("training.pair."): value for name, value in mutual.items()}
    for name, value in distilled.items():
        stage, _, field = name.removeprefix("training.").partition(".")
        if stage == "teacher" and field.startswith(("optimizer.", "losses.identity", "losses.weighted_triplet")):
            assert own[field] == value, name
        if stage == "teacher" and field == "augmentation.erase":
            assert own[field] == value
    beside = {"synthetic_rgbd": {"contrastive", "normalised_squared"}, "biwi": {"normalised_squared"}}[data]
    assert {name for name in TWIN_LOSSES if own[f"losses.{name}"]} == beside | {"logits"}
    assert mutual["evaluation.normalise"]
