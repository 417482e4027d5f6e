"""Parts of a configuration that do not fit together: each is named, with what to say instead."""

import re
from typing import Any

import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.stages.checks import needs_classifier, read_settings
from rgbd_reid_jax.stages.table import STAGES

TEACHER, STUDENT, BASELINE, PAIR = (f"training.{name}" for name in ("teacher", "student", "baseline", "pair"))
PAIR_RULES = ((r"(rgb|depth)/backbone/.*", "train"), (r"(rgb|depth)/(embedding.*|gem_power)", "freeze"))
GATE_RULE = (r"gate_\w+/.*", "train")


def settings_with(config: str, changes: dict[str, Any]) -> Any:
    content = cli._load(f"configs/{config}").to_dict()
    for path, value in changes.items():
        *parents, last = path.split(".")
        part = content
        for name in parents:
            part = part[name]
        part[last] = value
    return read_settings(content, tuple(STAGES))


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        # losses
        ("distill.py", {f"{TEACHER}.losses.l3": 1.0}, ["config.training.teacher.losses='l3' is unknown", "identity"]),
        ("distill.py", {f"{TEACHER}.losses.l3": 0.0}, ["config.training.teacher.losses='l3' is unknown"]),
        ("distill.py", {f"{TEACHER}.losses.cosine": 1.0}, [f"config.{TEACHER}.losses='cosine' is unknown"]),
        ("distill.py", {f"{TEACHER}.losses.hetero_centre": 1.0}, [f"{TEACHER}.losses='hetero_centre'", "triplet"]),
        ("distill.py", {f"{STUDENT}.losses.pair_softmax": 1.0}, [f"{STUDENT}.losses='pair_softmax'", "contrastive"]),
        ("one_stream.py", {f"{BASELINE}.losses.logits": 1.0}, [f"{BASELINE}.losses='logits'", "hetero_centre"]),
        ("one_stream.py", {f"{BASELINE}.losses.pair_triplet": 1.0}, [f"{BASELINE}.losses='pair_triplet'"]),
        ("mutual.py", {f"{PAIR}.losses.bank_similarity": 1.0}, [f"{PAIR}.losses='bank_similarity'", "pair_softmax"]),
        (
            "distill.py",
            {f"{STUDENT}.losses.contrastive": -0.5},
            ["losses.contrastive=-0.5 must be at least 0"],
        ),
        ("distill.py", {f"{STUDENT}.losses.contrastive": float("inf")}, [f"{STUDENT}.losses.contrastive=inf must be"]),
        *(
            (config, {f"training.{stage}.losses": none}, [f"config.training.{stage}.losses has no weight above 0"])
            for none in ({}, {"identity": 0.0})
            for config, stage in (
                ("distill.py", "teacher"),
                ("distill.py", "student"),
                ("one_stream.py", "baseline"),
                ("attention.py", "pair"),
            )
        ),
        (
            "distill.py",
            {f"{TEACHER}.losses": {"triplet": 1.0}, f"{STUDENT}.losses.logits": 1.0},
            ["config.training.student.losses needs the teacher's classifier", "say --config.training.teacher.losses"],
        ),
        (
            "distill.py",
            {f"{TEACHER}.losses": {"triplet": 1.0, "identity": 0.0}, f"{STUDENT}.losses.identity": 1.0},
            ["config.training.student.losses needs the teacher's classifier"],
        ),
        *(
            (
                "mutual.py",
                {f"{PAIR}.sampling.name": "pk_cross_modal", f"{PAIR}.losses": {"identity": 1.0, loss: 0.5}},
                [
                    f"losses.{loss} compares both images of one instant",
                    "pk_cross_modal",
                    "choose pk or pk_cross_camera",
                ],
            )
            for loss in ("contrastive", "cosine", "logits")
        ),
        (
            "distill.py",
            {f"{STUDENT}.losses.bank_similarity": 1.0, f"{STUDENT}.target": "online"},
            ["training.student.losses.bank_similarity looks at the cached targets", "student.target=cached"],
        ),
        # parts of a batch
        ("distill.py", {f"{TEACHER}.micro_batches": 0}, [f"{TEACHER}.micro_batches=0 must be at least 1"]),
        ("distill.py", {f"{TEACHER}.norm_groups": 0}, [f"{TEACHER}.norm_groups=0 must be at least 1"]),
        *(
            (
                "distill.py",
                {f"{STUDENT}.micro_batches": micro, f"{STUDENT}.norm_groups": groups},
                [
                    f"{STUDENT}.batch_size=64 does not divide into micro_batches x norm_groups = {micro} x {groups}",
                    mend,
                ],
            )
            for micro, groups, mend in ((3, 1, "a multiple of 3, at least 6"), (8, 8, "a multiple of 64, at least 128"))
        ),
        # how devices are shared out
        ("distill.py", {"mesh.fsdp": 0}, ["config.mesh.fsdp=0 must be at least 1"]),
        # options of losses
        ("distill.py", {f"{TEACHER}.loss_options.smoothing": 1.0}, ["loss_options.smoothing=1.0 must be at least 0"]),
        ("distill.py", {f"{TEACHER}.loss_options.margin": -0.1}, ["loss_options.margin=-0.1 must be at least 0"]),
        ("distill.py", {f"{TEACHER}.loss_options.circle_margin": -1}, ["loss_options.circle_margin=-1 must be at"]),
        *(
            ("distill.py", {f"{STUDENT}.loss_options.{name}": 0.0}, [f"loss_options.{name}=0.0 must be above 0"])
            for name in ("circle_scale", "temperature", "logits_temperature")
        ),
        (
            "distill.py",
            {f"{STUDENT}.loss_options.tau": 1.0},
            ["student.loss_options.tau is unknown", "margin"],
        ),
        # what stages start from, and are taught by
        ("attention.py", {f"{PAIR}.start.rgb": "teacher"}, ["training.pair.start.rgb='teacher', which sees depth"]),
        ("attention.py", {f"{PAIR}.start.depth": "student"}, ["training.pair.start.depth='student', which sees rgb"]),
        ("attention.py", {f"{PAIR}.start.depth": "baseline"}, ["training.pair.start.depth='baseline' is unknown"]),
        ("attention.py", {f"{PAIR}.start.depth": "pair"}, ["start.depth='pair' is unknown", "student, teacher"]),
        ("attention.py", {f"{PAIR}.start": {"rgb": "student"}}, ["training.pair.start=", "empty, or a stage for each"]),
        (
            "distill.py",
            {f"{STUDENT}.target": "twin"},
            [f"{STUDENT}.target='twin' is unknown", "online, same_view"],
        ),
        ("mutual.py", {"stages": ("baseline", "pair")}, ["config.training.baseline is missing"]),
        ("one_stream.py", {f"{BASELINE}.modality": "rgb"}, ["training.baseline.modality='rgb' is unknown", "both"]),
        ("mutual.py", {f"{PAIR}.modality": "depth"}, ["training.pair.modality='depth' is unknown", "both"]),
        # gates
        ("attention.py", {f"{PAIR}.gate.kind": "both"}, [f"{PAIR}.gate.kind='both' is unknown", "pairwise, middle"]),
        ("attention.py", {f"{PAIR}.gate.rank": -1}, [f"{PAIR}.gate.rank=-1 must be at least 0"]),
        ("attention.py", {f"{PAIR}.gate.dropout": 1.0}, [f"{PAIR}.gate.dropout=1.0 must be at least 0 and below 1"]),
        ("attention.py", {f"{PAIR}.gate.after": 0}, [f"{PAIR}.gate.after=0 must be at least 1"]),
        ("attention.py:synthetic_rgbd,middle", {f"{PAIR}.gate.after": 4}, ["gate.after=4: small has stages 1 .. 4"]),
        (
            "attention.py:synthetic_rgbd,middle",
            {"model.backbone": "vit_small14", "input.height": 56, "input.width": 28, f"{STUDENT}.freeze": ()},
            ["a gate of kind 'middle' needs a ResNet, not vit_small14", "choose pairwise"],
        ),
        (
            "attention.py:synthetic_rgbd,middle",
            {"evaluation.multi_frame": True},
            ["config.evaluation.multi_frame=True: a gate in the middle compares single frames", "gate.kind"],
        ),
        (
            "attention.py:synthetic_rgbd,middle",
            {"encoders": {"rgb": "student", "depth": "pair"}},
            ["config.encoders: a gate in the middle is for both networks", "--config.encoders.rgb=pair"],
        ),
        ("attention.py", {"evaluation.top_k": -1}, ["config.evaluation.top_k=-1 must be at least 0"]),
        # freeze rules of both encoders and their gates
        ("attention.py", {f"{PAIR}.freeze": PAIR_RULES}, ["pair.freeze: parameter gate_depth/", "matches none: add"]),
        (
            "attention.py",
            {f"{PAIR}.freeze": (*PAIR_RULES, GATE_RULE, (r"depth/.*", "freeze"))},
            ["training.pair.freeze: parameter depth/backbone/bn1/bias must match", "and 'depth/.*': make"],
        ),
        (
            "attention.py",
            {f"{PAIR}.freeze": (*PAIR_RULES, GATE_RULE, (r"classifier/.*", "train"))},
            ["'classifier/.*'"],
        ),
        ("attention.py", {f"{PAIR}.losses.identity": 1.0, f"{PAIR}.freeze": (*PAIR_RULES, GATE_RULE)}, ["classifier/"]),
        ("mutual.py", {f"{PAIR}.freeze": PAIR_RULES}, ["parameter classifier/", "must match exactly one"]),
        ("mutual.py", {f"{PAIR}.freeze": ((".*", "freeze"),)}, ["training.pair.freeze leaves nothing to train"]),
        # hints and moved targets
        (
            "distill.py",
            {"model.backbone": "tiny"},
            ["training.student.hints=(2, 4): tiny has stages 1 .. 2; say --config.training.student.hints='(2,)'"],
        ),
        *(
            ("distill.py", {f"{STUDENT}.hints": hints}, [f"student.hints={hints!r} must be residual stages", "maps=0"])
            for hints in ((4, 2), (2, 2), (0, 2), (), 2, (2.0, 4.0), (1.5,), (True, 4), ("2",))
        ),
        (
            "distill.py",
            {"model.backbone": "vit_small14", "input.height": 56, "input.width": 28, f"{STUDENT}.freeze": ()},
            ["losses.maps compares maps of residual stages, which vit_small14 has not; say", "student.losses.maps=0.0"],
        ),
        ("distill.py", {f"{STUDENT}.target_mean": 1.5}, ["student.target_mean=1.5 must be from 0 to 1"]),
        (
            "distill.py",
            {f"{STUDENT}.target": "online"},
            ["student.target='online' has no targets that target_mean=0.5 could move", "student.target_mean=0.0"],
        ),
        ("mutual.py", {f"{PAIR}.losses.maps": 1.0}, ["config.training.pair.losses='maps' is unknown"]),
        ("one_stream.py", {f"{BASELINE}.losses.maps": 1.0}, ["config.training.baseline.losses='maps' is unknown"]),
        # two streams
        ("two_stream.py", {"model.own_parts": 6}, ["config.model.own_parts=6 must be a whole number from 0 to 5"]),
        ("two_stream.py", {"model.own_parts": 1.5}, ["config.model.own_parts=1.5 must be a whole number"]),
        ("mutual.py", {"model.own_parts": 1}, ["model.own_parts must be 0 in stage pair"]),
        ("distill.py", {"model.own_parts": 1}, ["model.own_parts=1: a student starts from its teacher's weights"]),
        (
            "two_stream.py",
            {"model.backbone": "vit_small14", "input.height": 56, "input.width": 28},
            ["model.own_parts=1: vit_small14 has no parts; choose a ResNet, or 0"],
        ),
        # the rest
        ("one_stream.py", {"input.colour": "sepia"}, ["config.input.colour='sepia' is unknown", "rgb, grey"]),
        ("one_stream.py", {"input.zero_padding": "yes"}, ["config.input.zero_padding='yes' is unknown", "False, True"]),
        (
            "distill.py",
            {f"{TEACHER}.patience": 2, f"{TEACHER}.score": ""},
            ["config.training.teacher.patience=2 needs a score to watch; give teacher.score"],
        ),
        ("distill.py", {f"{TEACHER}.patience": -1}, ["config.training.teacher.patience=-1 must be at least 0"]),
        ("distill.py", {f"{STUDENT}.trained_norm": "none"}, [f"{STUDENT}.trained_norm='none' is unknown", "running"]),
        (
            "one_stream.py",
            {f"{BASELINE}.sampling": {"name": "pk", "people": 5, "frames": 4}, f"{BASELINE}.batch_size": 32},
            ["training.baseline.batch_size=32 is not", "5 x 4", "say --config.training.baseline.batch_size=20"],
        ),
    ],
)
def test_what_does_not_fit_is_named(config, changes, words):
    with pytest.raises(InputError) as caught:
        settings_with(config, changes)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("attention.py", {f"{PAIR}.freeze": (*PAIR_RULES, GATE_RULE)}),
        ("mutual.py", {f"{PAIR}.freeze": (*PAIR_RULES, (r"classifier/.*", "train"))}),
        ("mutual.py", {f"{PAIR}.losses": {"pair_triplet": 1.0, "identity": 1.0, "logits": 0.0},
                       f"{PAIR}.sampling.name": "pk_cross_modal"}),
        ("attention.py:synthetic_rgbd,middle", {f"{PAIR}.gate.after": 3}),
        ("attention.py", {"evaluation.multi_frame": True}),
        ("attention.py", {"encoders": {"rgb": "student", "depth": "pair"}}),
        ("distill.py", {f"{STUDENT}.losses.logits": 1.0, f"{STUDENT}.target": "same_view",
                        f"{STUDENT}.target_mean": 0.0}),
        ("distill.py", {"model.backbone": "tiny", f"{STUDENT}.losses.maps": 0.0}),
        ("distill.py", {f"{STUDENT}.hints": [1, 2, 4]}),
        ("distill.py", {f"{STUDENT}.losses.bank_similarity": 1.0}),
        ("distill.py", {f"{STUDENT}.freeze": (), f"{STUDENT}.trained_norm": "running"}),
        ("one_stream.py", {f"{BASELINE}.losses.hetero_centre": 0.5, f"{BASELINE}.patience": 3}),
        ("two_stream.py", {"model.own_parts": 5}),
    ],
)  # fmt: skip
def test_what_fits_is_taken(config, changes):
    assert settings_with(config, changes).stages[-1] == "report"


def test_a_classifier_is_there_where_a_loss_needs_it():
    losses = {"teacher": {"identity": 1.0}, "student": {"logits": 0.1}, "pair": {"pair_softmax": 1.0, "identity": 0.0}}
    changes = {f"training.{stage}.losses": weights for stage, weights in losses.items()}
    training = settings_with("attention.py", changes).training
    assert {name: needs_classifier(stage) for name, stage in training.items()} == {
        "teacher": True,
        "student": True,
        "pair": False,
    }


def test_options_of_configurations_are_named():
    with pytest.raises(InputError, match=re.escape("option 'blue' of 'synthetic_rgbd,blue' is unknown; choose one of")):
        cli._load("configs/distill.py:synthetic_rgbd,blue")
