"""Cross-modal distillation: a depth teacher, distilled into an RGB student.

Paper: Hafner, Bhuiyan, Kooij, Granger, "Cross-Modal Distillation for RGB-Depth Person Re-Identification",
arXiv:1810.11641, doi:10.1016/j.cviu.2021.103352.

    python -m rgbd_reid_jax.main --config=configs/distill.py --workdir=runs/distill
    python -m rgbd_reid_jax.main --config=configs/distill.py:biwi --config.dataset.manual_dir=BIWI --workdir=runs/biwi

Arguments (`--config=configs/distill.py:NAME`):

- `synthetic_rgbd` (also without an argument): the embedded dataset synthetic_rgbd/quick at 64x32 and a small
  residual network. Expected result (test people, three runs, docs/results.md): mAP 7.4 .. 8.4 RGB -> depth and
  9.2 .. 11.0 depth -> RGB, chance 2.5. Hardware: 2 CPU cores, 1.4 GiB of memory. Wall time: 6 minutes.
- `biwi`: the paper's recipe on BIWI RGBD-ID: ResNet-50, 256x128, 128-d embedding, batch 64. Needs the
  dataset's files (docs/datasets.md) and an accelerator. It has not been run on BIWI: no expected result, hardware
  or wall time can be stated, and the paper's tables are not quoted here.
- `robotpku`, `tvrid`: the same recipe on RobotPKU RGBD-ID and TVRID, not run on them either.
- `rgbd_folder`: the embedded dataset's recipe on your own recordings.
- `NAME/CONFIG`: any builder config, such as `synthetic_rgbd/medium_128x64` or `biwi/people`.

Deviation (synthetic_rgbd and rgbd_folder): AdamW with one cycle instead of SGD, a squared error between unit vectors
instead of a plain sum, all but the head training in the student instead of the layers up to layer2, colour
augmentation of the student's image, and no dropout: at 64x32 and some hundred
steps the paper's recipe (100 epochs from ImageNet weights) is far from converged.
"""

import re

import ml_collections

# The paper freezes all from the middle of layer3 on (in ResNet-50: from layer3's first block, third convolution).
RESNET50_FREEZE = (
    (r"backbone/(conv1|bn1|layer[12]_\d+|layer3_0/(conv1|bn1|conv2|bn2))/.*", "train"),
    (r"backbone/(layer3_0/(conv3|bn3|downsample_conv|downsample_bn)|layer3_[1-9]\d*|layer4_\d+)/.*", "freeze"),
    (r"(embedding|embedding_bn)/.*", "freeze"),
)
# In ResNet-18 it trains up to layer2.
SHALLOW_FREEZE = (
    (r"backbone/(conv1|bn1|layer[12]_\d+)/.*", "train"),
    (r"backbone/layer[34]_\d+/.*", "freeze"),
    (r"(embedding|embedding_bn)/.*", "freeze"),
)
# All but the head trains: chosen for the small network on validation people, beside SHALLOW_FREEZE (docs/results.md).
HEAD_FREEZE = (
    (r"backbone/.*", "train"),
    (r"(embedding|embedding_bn)/.*", "freeze"),
)

# The paper's augmentation; every field is listed so that each can be overridden on the command line.
AUGMENTATION = {
    "crop_area": (0.64, 1.0),
    "crop_ratio": (2.0, 3.0),
    "flip": 0.5,
    "erase": 0.0,
    "erase_area": (0.02, 0.4),
    "erase_ratio": (0.3, 1 / 0.3),
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
# `people` and `frames` are those of the other samplers: pk, pk_cross_camera, pk_cross_modal (one_stream).
SAMPLING = {"name": "shuffle", "people": 16, "frames": 4}
# `config` is a builder config, "" the dataset's default; `manual_dir` is where your files of it lie (docs/datasets.md).
DATASET = {"config": "", "knobs": "", "data_dir": "", "manual_dir": "", "cache": "host", "workers": 0}
# `last_stride` 0 keeps the backbone's own; `pretrained` is a .safetensors or .pth file to start from.
MODEL = {
    "embedding_dim": 128,
    "dropout": 0.5,
    "last_stride": 0,
    "compute_dtype": "float32",
    "neck": "paper",
    "pool": "average",
    "remat": False,
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


def get_config(argument: str = "synthetic_rgbd") -> ml_collections.ConfigDict:
    """The configuration of `argument`."""
    name, _, dataset_config = argument.partition("/")
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
    config = recipes[name]()
    if dataset_config:
        config.update_from_flattened_dict({"dataset.config": dataset_config})
        size = re.search(r"_(\d+)x(\d+)$", dataset_config)
        if size:  # the network's input is as large as the dataset's images
            config.update_from_flattened_dict({"input.height": int(size[1]), "input.width": int(size[2])})
    return config


def base() -> ml_collections.ConfigDict:
    """What all recipes share."""
    return ml_collections.ConfigDict(
        {
            "method": "distillation",
            "seed": 0,
            "stages": ("teacher", "student", "evaluation", "export", "report"),
            "encoders": {"rgb": "student", "depth": "teacher"},
            "export": {"platforms": ("cpu", "cuda", "tpu")},
        }
    )


def synthetic_rgbd() -> ml_collections.ConfigDict:
    """The embedded dataset on a CPU."""
    config = base()
    config.dataset = {**DATASET, "name": "synthetic_rgbd", "config": "quick"}
    config.input = {"height": 64, "width": 32, "depth_representation": "relative"}
    config.model = {**MODEL, "backbone": "small", "dropout": 0.0}
    adamw = {"name": "adamw", "learning_rate": 5e-3, "weight_decay": 1e-2, "schedule": "one_cycle"}
    adamw = {**OPTIMIZER, **adamw}
    # A ConfigDict keeps a dict that stands at two places as one: each stage gets a copy of its own.
    training = {"batch_size": 64, "log_every": 20, "evaluate_every": 200}
    config.training = {
        "teacher": {
            **training,
            "optimizer": {**adamw},
            "sampling": {**SAMPLING},
            "modality": "depth",
            "steps": 800,
            "score": "eval/depth_to_depth/mAP",
            "smoothing": 0.1,
            "augmentation": {**AUGMENTATION, "depth_noise": 0.05},
        },
        "student": {
            **training,
            "optimizer": {**adamw},
            "sampling": {**SAMPLING},
            "modality": "rgb",
            "steps": 800,
            "score": "eval/rgb_to_depth/mAP",
            "loss": "normalised_squared",
            "freeze": HEAD_FREEZE,
            "frozen_norm": "batch",
            "augmentation": {**AUGMENTATION, **COLOUR},
        },
    }
    config.evaluation = {
        "protocol": "cross_camera",
        "normalise": True,
        "batch_size": 128,
        "splits": ("validation", "test"),
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
    config.input = {"height": 256, "width": 128, "depth_representation": "metric"}
    config.model = {**MODEL, "backbone": "resnet50", "compute_dtype": "bfloat16"}
    training = {"batch_size": 64, "log_every": 20, "evaluate_every": 500}
    config.training = {
        "teacher": {
            **training,
            "sampling": {**SAMPLING},
            "modality": "depth",
            "steps": 14_000,
            "score": "eval/depth_to_depth/mAP",
            "optimizer": {**OPTIMIZER, "schedule": "step", "decay_steps": 5_600},
            "smoothing": 0.0,
            "augmentation": {**AUGMENTATION},
        },
        "student": {
            **training,
            "sampling": {**SAMPLING},
            "modality": "rgb",
            "steps": 4_200,
            "score": "eval/rgb_to_depth/mAP",
            "optimizer": {**OPTIMIZER, "learning_rate": 2e-6},
            "augmentation": {**AUGMENTATION},
            "loss": "sum_squared",
            "freeze": RESNET50_FREEZE,
            "frozen_norm": "batch",
        },
    }
    config.evaluation = {
        "protocol": "twin_excluded",
        "normalise": False,
        "batch_size": 128,
        "splits": ("validation", "test"),
    }
    return config


def robotpku() -> ml_collections.ConfigDict:
    """The paper's recipe on RobotPKU RGBD-ID."""
    config = biwi()
    config.dataset = {**DATASET, "name": "robotpku_rgbd_id"}
    return config


def tvrid() -> ml_collections.ConfigDict:
    """The paper's recipe on TVRID: a person is to be found in another passage than the query's.

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
        }
    )
    return config


def rgbd_folder() -> ml_collections.ConfigDict:
    """Your own recordings on a CPU; a person is to be found in another recording than the query's."""
    config = synthetic_rgbd()
    config.dataset = {**DATASET, "name": "rgbd_folder"}
    config.update_from_flattened_dict({"evaluation.protocol": "recording_excluded"})
    return config
