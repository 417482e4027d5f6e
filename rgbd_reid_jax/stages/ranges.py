"""What values a configuration may hold: one row per field, checked before any work is done.

A row's path may hold `*`, which stands for every name at that place.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.modalities import BOTH, MODALITIES
from rgbd_reid_jax.data.frames import CACHES
from rgbd_reid_jax.data.inputs import COLOURS
from rgbd_reid_jax.data.representation import DEPTH_REPRESENTATIONS
from rgbd_reid_jax.data.sampling import SAMPLERS
from rgbd_reid_jax.metrics.ranking import RULES
from rgbd_reid_jax.models.network import NECKS, POOLS
from rgbd_reid_jax.models.pair import GATES
from rgbd_reid_jax.models.resnet import PARTS
from rgbd_reid_jax.training.objectives import TARGETS
from rgbd_reid_jax.training.optimizer import OPTIMIZERS, SCHEDULES

Rule = tuple[Callable[[Any], bool], str]


def _at_least(low: int) -> Rule:
    return lambda value: low <= value < math.inf, f"at least {low}"


def _pair(highest: float) -> Rule:
    limit = f" <= {highest:g}" if highest < math.inf else ""
    return lambda value: 0 < value[0] <= value[1] <= highest and value[1] < math.inf and len(value) == 2, (
        f"two numbers with 0 < first <= second{limit}"
    )


def _names(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(set(value)) == len(value) > 0


def _ascending(value: Any) -> bool:
    return all(type(one) is int for one in value) and value[0] > 0 and list(value) == sorted({*value})


_POSITIVE: Rule = (lambda value: 0 < value < math.inf, "above 0")
_SHARE: Rule = (lambda value: 0 <= value <= 1, "from 0 to 1")
_BELOW_ONE: Rule = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_NAMES: Rule = (_names, "a tuple of one or more names, each once")
_FREEZE: Rule = (
    lambda value: all(len(rule) == 2 and re.compile(rule[0]) for rule in value),
    "a tuple of (regular expression, word) pairs",
)

_CHOICES: Mapping[str, Sequence[Any] | Mapping[str, Any]] = {
    "dataset.cache": CACHES,
    "input.colour": COLOURS,
    "input.zero_padding": (False, True),
    "evaluation.multi_frame": (False, True),
    "input.depth_representation": DEPTH_REPRESENTATIONS,
    "model.last_stride": (0, 1, 2),
    "model.neck": NECKS,
    "model.pool": POOLS,
    "training.teacher.modality": MODALITIES,
    "training.student.modality": MODALITIES,
    "training.baseline.modality": (BOTH,),
    "training.pair.modality": (BOTH,),
    "training.*.gate.kind": GATES,
    "training.*.target": TARGETS,
    "training.*.frozen_norm": ("batch", "running"),
    "training.*.trained_norm": ("batch", "running"),
    "training.*.sampling.name": SAMPLERS,
    "training.*.optimizer.name": OPTIMIZERS,
    "training.*.optimizer.schedule": SCHEDULES,
    "evaluation.protocol": RULES,
    "evaluation.splits": ("train", "validation", "test"),
    "export.platforms": ("cpu", "cuda", "rocm", "tpu"),
}

_RANGES: Mapping[str, Rule] = {
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1"),  # what Grain takes
    "stages": _NAMES,
    "encoders": (lambda value: set(value) == set(MODALITIES), f"given for {' and '.join(MODALITIES)}"),
    "dataset.workers": _at_least(0),
    "mesh.fsdp": _at_least(1),
    "input.height": _at_least(16),
    "input.width": _at_least(16),
    "model.embedding_dim": _at_least(0),
    "model.dropout": _BELOW_ONE,
    "model.own_parts": (lambda value: value in range(PARTS + 1), f"a whole number from 0 to {PARTS}"),
    "training.*.steps": _at_least(1),
    "training.*.batch_size": _at_least(1),
    "training.*.micro_batches": _at_least(1),
    "training.*.norm_groups": _at_least(1),
    "training.*.log_every": _at_least(1),
    "training.*.evaluate_every": _at_least(1),
    "training.*.patience": _at_least(0),
    "training.*.losses.*": _at_least(0),
    "training.*.loss_options.smoothing": _BELOW_ONE,
    "training.*.loss_options.margin": _at_least(0),
    "training.*.loss_options.circle_margin": _at_least(0),
    "training.*.loss_options.circle_scale": _POSITIVE,
    "training.*.loss_options.temperature": _POSITIVE,
    "training.*.loss_options.logits_temperature": _POSITIVE,
    "training.*.target_mean": _SHARE,
    "training.*.hints": (_ascending, "residual stages, whole numbers ascending from 1; losses.maps=0 turns hints off"),
    "training.*.gate.rank": _at_least(0),
    "training.*.gate.dropout": _BELOW_ONE,
    "training.*.gate.after": _at_least(1),
    "training.pair.start": (
        lambda value: set(value) in (set(), set(MODALITIES)),
        "empty, or a stage for each modality",
    ),
    "training.*.sampling.people": _at_least(1),
    "training.*.sampling.frames": _at_least(1),
    "training.*.freeze": _FREEZE,
    "training.*.optimizer.learning_rate": _POSITIVE,
    "training.*.optimizer.weight_decay": _at_least(0),
    "training.*.optimizer.clip_norm": _at_least(0),
    "training.*.augmentation.crop_area": _pair(1),
    "training.*.augmentation.crop_ratio": _pair(math.inf),
    "training.*.augmentation.flip": _SHARE,
    "training.*.augmentation.background": _SHARE,
    "training.*.augmentation.grey": _SHARE,
    "training.*.augmentation.channel_shuffle": _SHARE,
    "training.*.augmentation.erase": _SHARE,
    "training.*.augmentation.erase_area": _pair(1),
    "training.*.augmentation.erase_ratio": _pair(math.inf),
    "training.*.augmentation.channel_exchange": _SHARE,
    "training.*.augmentation.brightness": _SHARE,
    "training.*.augmentation.contrast": _SHARE,
    "training.*.augmentation.saturation": _SHARE,
    "training.*.augmentation.hue": (lambda value: 0 <= value <= 0.5, "from 0 to 0.5"),
    "training.*.augmentation.depth_step": _at_least(0),
    "training.*.augmentation.depth_holes": _SHARE,
    "training.*.augmentation.gain": _at_least(0),
    "training.*.augmentation.offset": _at_least(0),
    "training.*.augmentation.gamma": _at_least(0),
    "training.*.augmentation.depth_noise": _at_least(0),
    "evaluation.batch_size": _at_least(1),
    "evaluation.top_k": _at_least(0),
    "evaluation.splits": _NAMES,
    "export.platforms": (
        lambda value: _names(value) and "cpu" in value,
        "names with 'cpu', for the check",
    ),
}


def check_choice(value: Any, choices: Any, path: str) -> None:
    """Raises InputError unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"config.{path}={value!r} is unknown; choose one of: {', '.join(map(str, choices))}")


def check_ranges(config: Mapping[str, Any]) -> None:
    """Raises InputError for the first value that no run could use; the message names it and what may stand there.

    Args:
        config: nested dict with all fields of `Settings`.
    """
    for pattern, (fits, text) in _RANGES.items():
        for path, value in _find(config, pattern):
            try:
                good = fits(value)
            except (TypeError, ValueError, LookupError, re.error):  # of another type altogether
                good = False
            if not good:
                raise InputError(f"config.{path}={value!r} must be {text}")
    for pattern, choices in _CHOICES.items():
        for path, value in _find(config, pattern):
            for one in value if isinstance(value, (tuple, list)) else (value,):
                check_choice(one, choices, path)


def _find(tree: Mapping[str, Any], pattern: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of all places of `tree` that `pattern` names."""
    head, _, rest = pattern.partition(".")
    for name in tree if head == "*" else {head} & tree.keys():
        if not rest:
            yield name, tree[name]
        else:
            for path, value in _find(tree[name], rest):
                yield f"{name}.{path}", value
