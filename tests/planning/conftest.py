"""What tests of plans share."""

import pytest

from rgbd_reid_jax.data.inputs import plain_input
from rgbd_reid_jax.training import objectives


@pytest.fixture
def without_augmentation(monkeypatch):
    """Augmentation takes the larger part of what there is to compile, and plans do not look into it."""
    monkeypatch.setattr(objectives, "train_input", lambda spec, modality, batch, *_: plain_input(spec, modality, batch))
