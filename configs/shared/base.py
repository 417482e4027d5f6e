"""What the configurations of all methods share: datasets, networks, optimizers, and the recipe of distillation.

The others are made from that recipe, so that data, network, optimizer, augmentation and the number of images trained on
are the same unless a method is about them.

An argument reads NAME[/CONFIG][,OPTION...]. Names: `synthetic_rgbd` (the embedded dataset), `biwi`, `robotpku`,
`tvrid`, `rgbd_folder`; CONFIG is one of the dataset's builder configs, such as `biwi/people`. Options:

- `rgb_teacher`: the other direction, an RGB teacher and a depth student.
- `grey`: colour images enter as grey ones, the control that takes the colours of clothes away.
- `triplet_teacher`: the paper's other teacher, of the batch-hard triplet loss; its own neck, optimizer and schedule.
- `resnet18`: in the paper's recipes, that network, of which other layers train.
- `vit_small14`, `vit_base14`: a vision transformer (`models/vit.py`) with its class token for the embedding, inputs of
  whole patches (252x126 for 256x128), AdamW with one cycle, the last four blocks frozen in the student, no hints.

Deviation (synthetic_rgbd and rgbd_folder): at 64x32 and some hundred steps the paper's recipe (100 epochs from ImageNet
weights) is far from converged, so AdamW with one cycle takes the place of SGD, and what later work found to matter that
of the rest: GeM pooling, BNNeck, cross-entropy with the weighted triplet loss over P people x K frames, and random
erasing where people are learned; InfoNCE with the squared error of unit vectors, and all but the head training, where a
student is distilled; targets half way to their person's mean, and hints, the teacher's maps after two stages as targets
too (FitNets, arXiv:1412.6550); colour augmentation of RGB images; no dropout; crops of the input's own shape, as the
paper's ratios of 2 to 3 make bodies wider than they are. Chosen on validation people (docs/results.md).
"""

import re
from typing import Any

import ml_collections

from rgbd_reid_jax.losses.weighted import LOSSES

HEAD = (r"(embedding|embedding_bn|embedding_out|classifier)/.*|gem_power", "freeze")
# The paper freezes all from the middle of layer3 on (in ResNet-50: from layer3's first block, third convolution).
RESNET50_FREEZE = (
    (r"backbone/(conv1|bn1|layer[12]_\d+|layer3_0/(conv1|bn1|conv2|bn2))/.*", "train"),
    (r"backbone/(layer3_0/(conv3|bn3|downsample_conv|downsample_bn)|layer3_[1-9]\d*|layer4_\d+)/.*", "freeze"),
    HEAD,
)
# In ResNet-18 it trains up to layer2.
SHALLOW_FREEZE = (
    (r"backbone/(conv1|bn1|layer[12]_\d+)/.*", "train"),
    (r"backbone/layer[34]_\d+/.*", "freeze"),
    HEAD,
)
# Two thirds of a vision transformer's twelve blocks, as about in ResNet-50.
VIT_FREEZE = (
    (r"backbone/(patch_embed/.*|cls_token|pos_embed|block[0-7]/.*)", "train"),
    (r"backbone/(block([89]|1[01])|norm)/.*", "freeze"),
    HEAD,
)
# All but the head trains: chosen for the small network on validation people, beside SHALLOW_FREEZE (docs/results.md).
HEAD_FREEZE = (
    (r"backbone/.*", "train"),
    HEAD,
)

# The paper's augmentation; every field is listed so that each can be overridden on the command line.
AUGMENTATION = {
    "crop_area": (0.64, 1.0),
    "crop_ratio": (2.0, 3.0),
    "flip": 0.5,
    "erase": 0.0,
    "erase_area": (0.02, 0.4),
    "erase_ratio": (0.3, 1 / 0.3),
    "background": 0.0,
    "gain": 0.0,
    "offset": 0.0,
    "gamma": 0.0,
    "grey": 0.0,
    "channel_shuffle": 0.0,
    "channel_exchange": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "depth_noise": 0.0,
    "depth_step": 0.0,
    "depth_holes": 0.0,
}
# Against the colour shortcut: networks that see colours learn clothes.
COLOUR = {"gain": 0.2, "offset": 0.1, "gamma": 0.5, "grey": 0.3, "channel_shuffle": 0.5}
# `people` and `frames` are those of the other samplers: pk, pk_cross_camera, pk_cross_modal (stages that see both).
SAMPLING = {"name": "shuffle", "people": 16, "frames": 4}
# The shape of the embedded images and of the input, so that a body keeps its own.
UNSTRETCHED = {"crop_ratio": (2.0, 2.0)}
# Less memory, or less to wait for among many devices: docs/scaling.md.
BATCH = {"batch_size": 64, "micro_batches": 1, "norm_groups": 1}
# Every loss is listed, so that each can be given a weight on the command line.
NO_LOSSES = dict.fromkeys(LOSSES, 0.0)
LOSS_OPTIONS = {
    "smoothing": 0.0,
    "margin": 0.5,
    "circle_margin": 0.25,
    "circle_scale": 128.0,
    "temperature": 0.1,
    "logits_temperature": 4.0,
}
GATE = {"kind": "none", "rank": 16, "dropout": 0.0, "after": 2}
# `config` is a builder config, "" the dataset's default; `manual_dir` is where your files of it lie (docs/datasets.md).
DATASET = {"config": "", "knobs": "", "data_dir": "", "manual_dir": "", "cache": "host", "workers": 0}
# `last_stride` 0 keeps the backbone's own; `pretrained` is a .safetensors or .pth file to start from.
INPUT = {"colour": "rgb", "zero_padding": False}
MODEL = {
    "embedding_dim": 128,
    "dropout": 0.5,
    "last_stride": 0,
    "compute_dtype": "float32",
    "neck": "paper",
    "pool": "average",
    "remat": False,
    "own_parts": 0,
    "pretrained": "",
}
OPTIMIZER = {
    "name": "sgd",
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "schedule": "constant",
    "decay_steps": 0,
    "clip_norm": 0.0,
}


TRANSFORMERS = ("vit_small14", "vit_base14")
OPTIONS = ("rgb_teacher", "grey", "triplet_teacher", "resnet18", *TRANSFORMERS)


def recipe(argument: str = "synthetic_rgbd") -> ml_collections.ConfigDict:
    """Distillation with what `argument` says (module docstring)."""
    dataset, *options = argument.split(",")
    name, _, dataset_config = dataset.partition("/")
    name = name.removesuffix("_rgbd_id")  # a dataset's full name does as well
    recipes = {
        "synthetic_rgbd": synthetic_rgbd,
        "biwi": biwi,
        "robotpku": robotpku,
        "tvrid": tvrid,
        "rgbd_folder": rgbd_folder,
    }
    if name not in recipes:
        raise ValueError(f"config argument {argument!r} is unknown; choose one of: {', '.join(recipes)}")
    config: Any = recipes[name]()
    if dataset_config:
        config.update_from_flattened_dict({"dataset.config": dataset_config})
        size = re.search(r"_(\d+)x(\d+)$", dataset_config)
        if size:  # the network's input is as large as the dataset's images
            config.update_from_flattened_dict({"input.height": int(size[1]), "input.width": int(size[2])})
    for option in options:
        if option not in OPTIONS:
            raise ValueError(f"option {option!r} of {argument!r} is unknown; choose one of: {', '.join(OPTIONS)}")
    if "rgb_teacher" in options:
        other_direction(config)
    if "grey" in options:
        config.input.colour = "grey"
    for backbone in TRANSFORMERS:
        if backbone in options:
            transformer(config, backbone)
    if "triplet_teacher" in options:
        triplet_teacher(config)
    if "resnet18" in options:
        config.model.backbone = "resnet18"
        config.training.student.freeze = SHALLOW_FREEZE
    return config


def transformer(config: Any, backbone: str) -> None:
    """A vision transformer for the residual network.

    Deviation: the paper has none. Chosen by no measurement: AdamW in place of SGD, its rate, and what is frozen.
    """
    config.model.backbone, config.model.pool = backbone, "cls"
    for side in ("height", "width"):
        config.input[side] = 14 * round(config.input[side] / 14)
    for stage in config.training.values():
        stage.optimizer.update(
            {"name": "adamw", "learning_rate": 1e-4, "weight_decay": 1e-2, "schedule": "one_cycle", "decay_steps": 0}
        )
    student: Any = config.training.student
    student.freeze, student.losses.maps = VIT_FREEZE, 0.0


def triplet_teacher(config: Any) -> None:
    """The paper's teacher of triplets, whose embedding is that of a second dense layer, without ReLU.

    Deviation: as many updates as the other teacher, of which the last third decays; the published 150 epochs draw each
    identity once, so one has two updates on BIWI.
    """
    teacher: Any = config.training.teacher
    config.model.neck = "triplet"
    teacher.losses.update({**NO_LOSSES, "triplet": 1.0})
    teacher.sampling.update({"name": "pk", "people": 16, "frames": 4})
    teacher.optimizer.update(
        {
            "name": "adam",
            "learning_rate": 2e-4,
            "weight_decay": 5e-4,
            "schedule": "late_decay",
            "decay_steps": teacher.steps * 2 // 3,
        }
    )


def other_direction(config: Any) -> None:
    """An RGB teacher and a depth student."""
    teacher: Any = config.training.teacher
    student: Any = config.training.student
    teacher.modality, student.modality = "rgb", "depth"
    erase = {stage.modality: stage.augmentation.erase for stage in (teacher, student)}
    teacher.augmentation, student.augmentation = student.augmentation, teacher.augmentation
    teacher.augmentation.erase, student.augmentation.erase = erase["rgb"], erase["depth"]
    teacher.score = "eval/rgb_to_rgb/mAP"
    config.encoders = {"rgb": "teacher", "depth": "student"}


def both_modalities(config: Any) -> Any:
    """A stage that trains on both images of each row: the teacher's, with the student's augmentation of RGB images."""
    stage: Any = config.training.teacher.copy_and_resolve_references()
    augmentation = {name.modality: name.augmentation for name in (config.training.teacher, config.training.student)}
    depth = {name: augmentation["depth"][name] for name in ("depth_noise", "depth_step", "depth_holes")}
    stage.augmentation = {**augmentation["rgb"].to_dict(), **depth, "erase": stage.augmentation.erase}
    stage.modality = "both"
    stage.batch_size = stage.batch_size // 2  # as many images
    stage.sampling.people = stage.batch_size // stage.sampling.frames
    stage.score = "eval/cross_modal/mAP"
    return stage


def baseline(argument: str, method: str) -> ml_collections.ConfigDict:
    """One network that sees both modalities, trained on as many images as teacher and student together."""
    config: Any = recipe(argument)
    with config.unlocked():
        stage = both_modalities(config)
        stage.steps = config.training.teacher.steps + config.training.student.steps
        config.method = method
        config.stages = ("baseline", "evaluation", "export", "report")
        config.encoders = {"rgb": "baseline", "depth": "baseline"}
        config.training = {"baseline": stage}
    return config


def distillation_beside(config: Any) -> dict[str, float]:
    """The student's distillation losses for a stage that has others too, and compares directions.

    Deviation: the paper's squared error, summed over batch and dimensions, has a learning rate of its own (2e-6), at
    which nothing else would learn; in its place that of unit vectors. Hints and moved targets are a teacher's.
    """
    losses = {name: weight for name, weight in config.training.student.losses.items() if weight and name != "maps"}
    if losses.pop("sum_squared", 0.0):
        losses["normalised_squared"] = 1.0
    return losses


def pair(config: Any, steps: int) -> Any:
    """A stage that trains an encoder of each modality together, people seen by several cameras in each batch."""
    stage: Any = both_modalities(config)
    stage.steps = steps
    stage.sampling.update({"name": "pk_cross_camera", "frames": 2, "people": stage.batch_size // 2})
    stage.augmentation.erase = config.training.student.augmentation.erase
    stage.losses = {**NO_LOSSES}
    stage.frozen_norm = stage.trained_norm = "batch"
    stage.freeze = ()
    stage.start = {}
    stage.gate = {**GATE}
    return stage


def base() -> ml_collections.ConfigDict:
    """What all recipes share."""
    return ml_collections.ConfigDict(
        {
            "method": "distillation",
            "seed": 0,
            "stages": ("teacher", "student", "evaluation", "export", "report"),
            "encoders": {"rgb": "student", "depth": "teacher"},
            "export": {"platforms": ("cpu", "cuda", "tpu")},
            "mesh": {"fsdp": 1},
        }
    )


def synthetic_rgbd() -> ml_collections.ConfigDict:
    """The embedded dataset on a CPU."""
    config = base()
    config.dataset = {**DATASET, "name": "synthetic_rgbd", "config": "quick"}
    config.input = {"height": 64, "width": 32, "depth_representation": "relative", **INPUT}
    config.model = {**MODEL, "backbone": "small", "dropout": 0.0, "neck": "bnneck", "pool": "gem"}
    adamw = {"name": "adamw", "learning_rate": 5e-3, "weight_decay": 1e-2, "schedule": "one_cycle"}
    adamw = {**OPTIMIZER, **adamw}
    # A ConfigDict keeps a dict that stands at two places as one: each stage gets a copy of its own.
    training = {**BATCH, "log_every": 20, "evaluate_every": 200, "patience": 0}
    config.training = {
        "teacher": {
            **training,
            "optimizer": {**adamw},
            "sampling": {**SAMPLING, "name": "pk"},
            "modality": "depth",
            "steps": 800,
            "score": "eval/depth_to_depth/mAP",
            "losses": {**NO_LOSSES, "identity": 1.0, "weighted_triplet": 1.0},
            "loss_options": {**LOSS_OPTIONS, "smoothing": 0.1},
            "augmentation": {**AUGMENTATION, **UNSTRETCHED, "depth_noise": 0.05, "erase": 0.5},
        },
        "student": {
            **training,
            "optimizer": {**adamw},
            "sampling": {**SAMPLING},
            "modality": "rgb",
            "steps": 800,
            "score": "eval/cross_modal/mAP",
            "losses": {**NO_LOSSES, "contrastive": 1.0, "normalised_squared": 1.0, "maps": 30.0},
            "loss_options": {**LOSS_OPTIONS},
            "freeze": HEAD_FREEZE,
            "frozen_norm": "batch",
            "trained_norm": "batch",
            "target": "cached",
            "target_mean": 0.5,
            "hints": (2, 4),
            "augmentation": {**AUGMENTATION, **UNSTRETCHED, **COLOUR},
        },
    }
    config.evaluation = {
        "protocol": "cross_camera",
        "normalise": True,
        "batch_size": 128,
        "splits": ("validation", "test"),
        "multi_frame": False,
        "top_k": 50,
    }
    return config


def biwi() -> ml_collections.ConfigDict:
    """The paper's recipe.

    An epoch counts 140 updates of 64 images: the published folds hold 8,515 to 9,298 training frames.
    The paper starts from torchvision's ImageNet weights: --config.model.pretrained=resnet50.safetensors (or .pth).
    Deviation: without that file the networks start from random weights.
    Deviation: depth in millimetres over the sensor's range, in [-1, 1], where the paper's code has an 8-bit
    grey image with ImageNet's mean and deviation (how 16 bits became 8 is not published).
    Deviation: bfloat16 computation with float32 parameters.
    Deviation: all frames of the test people are ranked without the query's own instant, where the paper draws
    50 per identity.
    """
    config = base()
    config.dataset = {**DATASET, "name": "biwi_rgbd_id", "config": "paper"}
    config.input = {"height": 256, "width": 128, "depth_representation": "metric", **INPUT}
    config.model = {**MODEL, "backbone": "resnet50", "compute_dtype": "bfloat16"}
    training = {**BATCH, "log_every": 20, "evaluate_every": 500, "patience": 0}
    config.training = {
        "teacher": {
            **training,
            "sampling": {**SAMPLING},
            "modality": "depth",
            "steps": 14_000,
            "score": "eval/depth_to_depth/mAP",
            "optimizer": {**OPTIMIZER, "schedule": "step", "decay_steps": 5_600},
            "losses": {**NO_LOSSES, "identity": 1.0},
            "loss_options": {**LOSS_OPTIONS},
            "augmentation": {**AUGMENTATION},
        },
        "student": {
            **training,
            "sampling": {**SAMPLING},
            "modality": "rgb",
            "steps": 4_200,
            "score": "eval/cross_modal/mAP",
            "optimizer": {**OPTIMIZER, "learning_rate": 2e-6},
            "augmentation": {**AUGMENTATION},
            "losses": {**NO_LOSSES, "sum_squared": 1.0},
            "loss_options": {**LOSS_OPTIONS},
            "freeze": RESNET50_FREEZE,
            "frozen_norm": "batch",
            "trained_norm": "batch",
            "target": "cached",
            "target_mean": 0.0,
            "hints": (2, 4),
        },
    }
    config.evaluation = {
        "protocol": "twin_excluded",
        "normalise": False,
        "batch_size": 128,
        "splits": ("validation", "test"),
        "multi_frame": False,
        "top_k": 50,
    }
    return config


def robotpku() -> ml_collections.ConfigDict:
    """The paper's recipe on RobotPKU RGBD-ID."""
    config = biwi()
    config.dataset = {**DATASET, "name": "robotpku_rgbd_id"}
    return config


def tvrid() -> ml_collections.ConfigDict:
    """The paper's recipe on TVRID: a passage, the mean of its frames, is to be found among other passages.

    Deviation: people are seen from above, so images and random crops are about square.
    """
    config = biwi()
    config.dataset = {**DATASET, "name": "tvrid"}
    config.update_from_flattened_dict(
        {
            "input.height": 128,
            "input.width": 128,
            "training.teacher.augmentation.crop_ratio": (0.75, 1.33),
            "training.student.augmentation.crop_ratio": (0.75, 1.33),
            "evaluation.protocol": "recording_excluded",
            "evaluation.multi_frame": True,
        }
    )
    return config


def rgbd_folder() -> ml_collections.ConfigDict:
    """Your own recordings on a CPU; a person is to be found in another recording than the query's."""
    config = synthetic_rgbd()
    config.dataset = {**DATASET, "name": "rgbd_folder"}
    config.update_from_flattened_dict({"evaluation.protocol": "recording_excluded"})
    return config
