"""All methods on the embedded benchmark: docs/results.md.

    python -m rgbd_reid_jax.sweep --sweep=configs/sweeps/benchmark.py --workdir=runs/sweep --output=docs --jobs=2

Three network seeds on each of two data seeds, so six runs of each method. Data seeds change people, clothes, rooms and
noise. Every choice (learning rates, losses, lengths, which checkpoint) was made on validation people, with data seed 0,
which is none of these two.

`methods` serves the paper's grid as well (configs/sweeps/paper_grid.py).
"""

from typing import Any

RUNS = [{"seed": network, "knobs": f"seed={data}"} for network in range(3) for data in (1, 2)]
BASELINES = ["one_stream", "one_stream_grey", "two_stream", "two_stream_grey", "zero_padding", "agw", "agw_grey"]


def method(name: str, config: str, reuse: tuple[str, ...] = (), note: str = "") -> dict[str, Any]:
    """A method of a sweep (docs/sweep.md)."""
    return {"name": name, "config": f"configs/{config}", "overrides": {}, "reuse": list(reuse), "note": note}


def methods(data: str) -> list[dict[str, Any]]:
    """All methods.

    Args:
        data: the argument of the configurations, such as "synthetic_rgbd".
    """
    distilled, grey = ("distill_from_depth",), ("distill_from_depth_grey",)
    # In the paper's recipes distilled encoders are those of `attention_none`, which is ranked by directions as gates
    # are, and its teacher sees depth, so that it serves with grey images too.
    joint = ("attention_none", *distilled)
    joint_grey = ("attention_none_grey", *grey)
    return [
        method("distill_from_depth", f"distill.py:{data}", (), "depth teacher, RGB student"),
        method("one_stream", f"one_stream.py:{data}", (), "one network for both"),
        method("attention_none", f"attention.py:{data},none", distilled, "distilled, then trained on together"),
        method("attention_pairwise", f"attention.py:{data},pairwise", joint, "the same with a gate of each pair"),
        method("two_stream", f"two_stream.py:{data}", (), "stem apart, the rest shared"),
        method("distill_from_rgb", f"distill.py:{data},rgb_teacher", (), "RGB teacher, depth student"),
        method("agw", f"agw.py:{data}", (), "AGW-style, channel exchange"),
        method("attention_self", f"attention.py:{data},self", joint, "control: each gates itself"),
        method("attention_middle", f"attention.py:{data},middle", joint, "gates on maps, re-ranks the nearest"),
        method("attention_none_running", f"attention.py:{data},none_running", joint, "control of gates on maps"),
        method("zero_padding", f"zero_padding.py:{data}", (), "one network, channels apart, grey"),
        method("distill_from_depth_grey", f"distill.py:{data},grey", distilled, "grey control"),
        method("one_stream_grey", f"one_stream.py:{data},grey", (), "grey control"),
        method("two_stream_grey", f"two_stream.py:{data},grey", (), "grey control"),
        method("agw_grey", f"agw.py:{data},grey", (), "grey control"),
        method("distill_from_rgb_grey", f"distill.py:{data},rgb_teacher,grey", (), "grey control"),
        method("attention_none_grey", f"attention.py:{data},none,grey", (*grey, *joint), "grey control"),
        method("attention_pairwise_grey", f"attention.py:{data},pairwise,grey", joint_grey, "grey control"),
        method("attention_self_grey", f"attention.py:{data},self,grey", joint_grey, "grey control"),
        method("attention_none_running_grey", f"attention.py:{data},none_running,grey", joint_grey, "grey control"),
        method("attention_middle_grey", f"attention.py:{data},middle,grey", joint_grey, "grey control"),
        method("mutual", f"mutual.py:{data}", (), "both learn from each other"),
    ]


def get_sweep() -> dict[str, Any]:
    """The sweep."""
    return {
        "name": "benchmark",
        "title": "synthetic_rgbd/quick, test people",
        "methods": methods("synthetic_rgbd"),
        "runs": RUNS,
        "directions": ["rgb_to_depth", "depth_to_rgb", "rgb_to_rgb", "depth_to_depth"],
        "baselines": BASELINES,
    }
