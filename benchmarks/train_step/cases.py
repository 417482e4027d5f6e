"""The cases of the benchmark, by name; plain data that both sides read."""

from typing import Any

PEOPLE = 32  # identities of the classifier: those of a fold of BIWI RGBD-ID
_RESNET50 = {"network": "resnet50", "height": 256, "width": 128}
_RESNET18 = {"network": "resnet18", "height": 128, "width": 64}

CASES: dict[str, dict[str, Any]] = {
    "teacher_resnet50": {**_RESNET50, "kind": "teacher"},
    "student_cached_resnet50": {**_RESNET50, "kind": "student", "target": "cached"},
    "student_online_resnet50": {**_RESNET50, "kind": "student", "target": "online"},
    "embed_resnet50": {**_RESNET50, "kind": "embed"},
    "teacher_resnet18": {**_RESNET18, "kind": "teacher"},
    "student_cached_resnet18": {**_RESNET18, "kind": "student", "target": "cached"},
    "embed_resnet18": {**_RESNET18, "kind": "embed"},
}
VARIANTS = tuple(memory + how for memory in ("contiguous", "channels_last") for how in ("", ", compiled"))
"""Of the peer: its memory format, and whether it goes through torch.compile."""
WORDS = {
    "teacher": "training step, cross-entropy, all layers",
    "student": "distillation step, upper layers frozen, {target} targets",
    "embed": "embedding extraction",
}
