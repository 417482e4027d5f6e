"""Which stages stand on which."""

import pytest

from rgbd_reid_jax.stages.order import outdated_by, stands_on, training_order

STAGES = ("teacher", "student", "baseline", "pair", "evaluation", "report")
TRAINING = ("pair", "teacher", "student", "baseline")


def test_training_stages_keep_the_order_in_which_they_run():
    assert training_order(STAGES, TRAINING) == ["teacher", "student", "baseline", "pair"]


@pytest.mark.parametrize(
    ("stage", "order", "below"),
    [
        ("teacher", ["teacher", "student"], ()),
        ("student", ["teacher", "student"], ("teacher",)),
        ("student", ["student"], ("teacher",)),
        ("baseline", ["teacher", "baseline"], ()),
        ("pair", ["pair"], ()),
        ("pair", ["teacher", "student", "pair", "baseline"], ("teacher", "student")),
    ],
)
def test_what_a_stage_stands_on(stage, order, below):
    assert stands_on(stage, order) == below


def test_what_is_out_of_date_after_a_stage():
    assert outdated_by("teacher", STAGES, TRAINING) == ["student", "pair", "evaluation", "report"]
    assert outdated_by("student", STAGES, TRAINING) == ["pair", "evaluation", "report"]
    assert outdated_by("evaluation", STAGES, TRAINING) == ["report"]
