"""People, outfits and labels: who is who, over all splits."""

import numpy as np
import pytest

from tfds_builders.synthetic_rgbd import people, scene
from tfds_builders.synthetic_rgbd.config import SPLITS, custom_config, named_config


def _all_people(config):
    return {s: people.sample_people(config, s, np.arange(config.people(s))) for s in SPLITS}


def test_splits_hold_different_people():
    everyone = _all_people(named_config("quick"))
    ids = np.concatenate([p.person_id for p in everyone.values()])
    assert sorted(ids) == list(range(400))
    bodies = np.concatenate([np.stack(list(p.body.values()), axis=1) for p in everyone.values()])
    assert len(np.unique(bodies, axis=0)) == 400


def test_a_person_does_not_depend_on_the_split_sizes_or_on_company():
    small, large = custom_config("quick", train_people=7), named_config("quick")
    alone = people.sample_people(small, "test", np.array([4]))
    among = people.sample_people(large, "test", np.arange(60))
    for name, value in alone.body.items():
        assert value[0] == among.body[name][4], name


def test_seeds_give_other_people():
    first = people.sample_people(named_config("quick"), "train", np.arange(20)).body["height"]
    second = people.sample_people(custom_config("quick", seed=2), "train", np.arange(20)).body["height"]
    assert not np.any(first == second)


def test_body_statistics():
    config = custom_config("quick", train_people=2000, body_spread=1.0)
    persons = people.sample_people(config, "train", np.arange(2000))
    height = persons.body["height"]
    assert abs(height.mean() - 1.72) < 0.01
    assert 0.075 < height.std() < 0.10
    assert np.all(np.abs(height - 1.72) <= people.CLIP_SIGMA * 0.09 + 1e-9)
    correlation = np.corrcoef(persons.build, persons.body["shoulder_half"] / height)[0, 1]
    assert correlation > 0.2
    assert np.corrcoef(persons.build, height)[0, 1] > 0.35
    assert np.bincount(persons.hair_style, minlength=6).min() > 20


def test_body_spread_scales_the_differences():
    def spread(value):
        config = custom_config("quick", body_spread=value)
        return people.sample_people(config, "train", np.arange(200)).body["height"].std()

    assert spread(0.0) == pytest.approx(0.0, abs=1e-12)
    assert spread(2.0) == pytest.approx(2 * spread(1.0), rel=1e-9)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.0), (0.6, 0.53, 0.67), (1.0, 1.0, 1.0)])
def test_clothes_change_share(share, low, high):
    number = people.outfit_numbers(custom_config("quick", clothes_change_share=share), "train", np.arange(500))
    assert low <= np.mean(number[:, 0] != number[:, 1]) <= high


def test_clothes_id_names_the_look():
    config = custom_config("quick", num_cameras=4)
    frames = scene.sample_frames(config, "train", np.arange(40))
    looks = {}
    parts = frames.paint[:, : len(scene.body_lib.PARTS)]
    for clothes, look in zip(frames.labels["clothes_id"], parts, strict=True):
        looks.setdefault(int(clothes), []).append(look)
    assert all(np.ptp(np.stack(same), axis=0).max() == 0 for same in looks.values())
    firsts = np.stack([same[0].ravel() for same in looks.values()])
    assert len(np.unique(firsts, axis=0)) == len(looks)
    owners = {}
    for clothes, person in zip(frames.labels["clothes_id"], frames.labels["person_id"], strict=True):
        assert owners.setdefault(int(clothes), int(person)) == person


def test_labels_cover_every_camera_recording_and_instant():
    config = named_config("tiny")
    rows = []
    for split in SPLITS:
        labels = scene.sample_frames(config, split, np.arange(config.people(split))).labels
        names = ("person_id", "camera_id", "recording_type", "recording_id", "frame_id")
        rows += list(zip(*(labels[n].tolist() for n in names), strict=True))
    assert len(rows) == len(set(rows)) == 14 * 2 * 2 * 2
    recordings = {}
    for person, camera, kind, recording, _ in rows:
        assert recordings.setdefault(recording, (person, camera, kind)) == (person, camera, kind)
    assert len(recordings) == 14 * 2 * 2
