"""The pixels say where things are: back-projection, heights, headings, ray casting."""

import dataclasses

import numpy as np
import pytest

from tfds_builders.schema import STANDING, WALKING
from tfds_builders.synthetic_rgbd import body, render, scene, store
from tfds_builders.synthetic_rgbd.config import CAMERAS, custom_config
from tfds_builders.synthetic_rgbd.draws import exact

EXACT = {
    "rgb_noise": 0.0, "rgb_blur_px": 0.0, "depth_noise": 0.0, "depth_step_scale": 0.0, "edge_hole_rate": 0.0,
    "grazing_hole_rate": 0.0, "dark_hole_rate": 0.0, "random_hole_rate": 0.0, "projector_baseline_m": 0.0,
    "max_depth_m": 60.0,
}  # fmt: skip
CLEAR = {"clutter_share": 0.0, "crop_jitter": 0.0, "bag_share": 0.0}


@pytest.fixture(scope="module")
def clean():
    """Frames without sensor faults, with people of known and differing height."""
    config = custom_config("tiny", **EXACT, **CLEAR)
    frames, images = store.render_arrays(config, "train", np.arange(6))
    return config, frames, images


def back_project(depth_mm, intrinsics, camera):
    """World points [H, W, 3] by the schema's own formula and a pinhole camera tilted down by its pitch."""
    fx, fy, cx, cy = intrinsics
    z = depth_mm / 1000.0
    row, column = np.mgrid[: z.shape[0], : z.shape[1]]
    x, y = (column + 0.5 - cx) * z / fx, (row + 0.5 - cy) * z / fy
    pitch = np.deg2rad(camera.pitch_deg)
    ahead = z * np.cos(pitch) - y * np.sin(pitch)
    below = z * np.sin(pitch) + y * np.cos(pitch)
    return np.stack([x, ahead, camera.height_m - below], axis=-1)


def test_people_stand_on_the_floor_and_are_as_tall_as_they_are(clean):
    config, frames, images = clean
    from tfds_builders.synthetic_rgbd.people import sample_people

    persons = sample_people(config, "train", np.arange(6))
    assert np.ptp(persons.body["height"]) > 0.1
    for i in np.flatnonzero(frames.labels["recording_type"] == STANDING):
        camera = config.cameras[frames.labels["camera_id"][i]]
        up = back_project(images.depth[i], frames.intrinsics[i], camera)[..., 2][images.mask[i] > 0]
        assert -0.01 < up.min() < 0.08, "soles on the floor"
        height = persons.body["height"][frames.labels["person_id"][i]]
        assert -0.09 < up.max() - height < 0.05, "the top of the head, hair and soles included"


def test_the_floor_is_at_zero_and_the_wall_is_upright(clean):
    config, frames, images = clean
    for i in range(len(frames.key)):
        camera = config.cameras[frames.labels["camera_id"][i]]
        world = back_project(images.depth[i], frames.intrinsics[i], camera)
        bottom = world[-1][images.mask[i][-1] == 0]
        assert np.abs(bottom[:, 2]).max() < 0.01
        top = world[0][images.mask[i][0] == 0]
        assert np.abs(np.linalg.lstsq(np.c_[top[:, :1], np.ones(len(top))], top[:, 1], rcond=None)[0][0]) < 0.4


def test_a_person_is_where_the_scene_puts_them(clean):
    config, frames, images = clean
    for i in range(len(frames.key)):
        camera = config.cameras[frames.labels["camera_id"][i]]
        world = back_project(images.depth[i], frames.intrinsics[i], camera)[images.mask[i] > 0]
        assert np.linalg.norm(np.median(world[:, :2], axis=0) - frames.origin[i, :2]) < 0.25


def test_facing_the_camera_shows_toes_first_and_the_right_hand_on_the_left():
    cameras = tuple(dataclasses.replace(c, heading_mean_deg=0.0, heading_range_deg=0.0) for c in CAMERAS)
    config = custom_config("tiny", cameras=cameras, pose_spread=0.0, **CLEAR)
    frames = scene.sample_frames(config, "train", np.arange(6))
    standing = frames.labels["recording_type"] == STANDING
    part = body.PARTS.index
    for name in ("right_foot", "left_foot"):
        heel, toe = frames.shapes.a[standing, part(name)], frames.shapes.b[standing, part(name)]
        assert np.all(toe[:, 2] < heel[:, 2] - 0.05)
    hands = [frames.shapes.a[standing, part(f"{side}_hand"), 0] for side in ("right", "left")]
    assert np.all(hands[0] < hands[1] - 0.2)
    head, feet = frames.shapes.b[:, part("head"), 1], frames.shapes.b[:, part("right_foot"), 1]
    assert np.all(head < feet - 1.0), "image rows grow downwards"


def test_a_positive_heading_turns_people_to_their_own_left():
    cameras = tuple(dataclasses.replace(c, heading_mean_deg=40.0, heading_range_deg=0.0) for c in CAMERAS)
    config = custom_config("tiny", cameras=cameras, pose_spread=0.0, **CLEAR)
    frames = scene.sample_frames(config, "train", np.arange(6))
    way = frames.shapes.b[:, body.PARTS.index("head")] - frames.shapes.b[:, body.PARTS.index("hair")]
    styled = np.isfinite(way).all(axis=1) & (frames.shapes.ra[:, body.PARTS.index("hair")] > 0)
    assert styled.any()
    assert np.all(way[styled, 0] > 0), "faces point to the right of the picture"


def test_nearer_people_have_smaller_depth():
    near = dataclasses.replace(CAMERAS[1], distance_m=(2.4, 2.5))
    far = dataclasses.replace(CAMERAS[1], distance_m=(4.0, 4.1))
    config = custom_config("tiny", cameras=(near, far), **EXACT, **CLEAR)
    frames, images = store.render_arrays(config, "train", np.arange(4))
    median = np.array([np.median(d[m > 0]) for d, m in zip(images.depth, images.mask, strict=True)])
    standing, camera = frames.labels["recording_type"] == STANDING, frames.labels["camera_id"]
    assert np.all(np.abs(median[standing & (camera == 0)] - 2450) < 250)
    assert np.all(np.abs(median[standing & (camera == 1)] - 4050) < 250)


def test_a_walk_moves_along_the_heading_with_alternating_legs():
    config = custom_config("tiny", frames_per_recording=12, pose_spread=0.0)
    frames = scene.sample_frames(config, "train", np.arange(3))
    walking = frames.labels["recording_type"] == WALKING
    shape = (3, 2, 12)
    step = np.diff(frames.origin[walking, :2].reshape(*shape, 2), axis=2)
    heading = frames.heading[walking].reshape(shape)[:, :, 1:, None]
    ahead = np.concatenate([np.sin(heading), -np.cos(heading)], axis=-1)
    assert np.all(np.sum(step * ahead, -1) > 0.99 * np.linalg.norm(step, axis=-1))
    speed = np.linalg.norm(step, axis=-1) * 12 / config.walk_seconds
    assert np.all((speed > 0.6) & (speed < 2.2))
    ankles = [frames.shapes.b[walking, body.PARTS.index(f"{s}_shank")] for s in ("right", "left")]
    apart = (np.einsum("fij,fj->fi", frames.rotation[walking], ankles[0] - ankles[1])[:, :2]).reshape(*shape, 2)
    lead = np.sum(apart[:, :, 1:] * ahead, -1)
    assert np.all(lead.max(axis=2) > 0.2)
    assert np.all(lead.min(axis=2) < -0.2)
    standing = frames.origin[~walking, :2].reshape(*shape, 2)
    assert np.ptp(standing, axis=2).max() < 0.2


def test_stored_box_and_crop_aspect(clean):
    config, frames, images = clean
    boxes = store.person_boxes(images.mask)
    for box, mask in zip(boxes, images.mask, strict=True):
        top, left, bottom, right = box.astype(int)
        assert mask[top:bottom, left:right].sum() == mask.sum()
        assert mask[top].any()
        assert mask[bottom - 1].any()
        assert mask[:, left].any()
        assert mask[:, right - 1].any()
    assert np.all(boxes[:, 0] > 0)
    assert np.all(boxes[:, 2] < config.height), "with a margin and no jitter, nobody is cut off"
    assert np.all(frames.intrinsics[:, 0] == frames.intrinsics[:, 1])


def test_the_box_of_a_full_image_is_the_image():
    assert store.person_boxes(np.full((1, 4, 2), 255, np.uint8)).tolist() == [[0, 0, 4, 2]]


def test_mask_depth_and_colour_are_aligned(clean, monkeypatch):
    config, frames, images = clean
    absent = dataclasses.replace(frames.shapes, ra=np.zeros_like(frames.shapes.ra))
    monkeypatch.setattr(scene, "sample_frames", lambda *_: dataclasses.replace(frames, shapes=absent))
    _, behind = store.render_arrays(config, "train", np.arange(6))
    person = images.mask > 0
    assert not behind.mask.any()
    assert np.array_equal(images.depth < behind.depth, person), "depth is nearer than the room on the person alone"
    other_colour = np.any(images.rgb != behind.rgb, axis=-1)
    assert not np.any(other_colour & ~person)
    assert np.mean(other_colour[person]) > 0.97


def _distance(points, a, b, ra, rb, axis, squash):
    """How far points [N, 3] are outside the hull of two balls, in unsquashed space: brute force over balls."""
    to_round = lambda v: v + (1 / squash - 1) * axis * np.sum(axis * v, -1, keepdims=True)  # noqa: E731
    share = np.linspace(0, 1, 100)[:, None]
    centres = to_round(a) + share * (to_round(b) - to_round(a))
    radii = ra + share[:, 0] * (rb - ra)
    gaps = np.linalg.norm(to_round(points)[:, None] - centres[None], axis=-1) - radii
    return gaps.min(axis=1)


@pytest.mark.parametrize("case", range(4))
def test_rays_meet_rounded_cones_where_marching_meets_them(case):
    rng = np.random.default_rng(case)
    a, b = np.array([-0.1, -0.3, 3.0]) + 0.2 * rng.standard_normal((2, 3))
    ra, rb = rng.uniform(0.05, 0.3, 2)
    b = b + np.array([0.0, 0.6, 0.0])
    axis = rng.standard_normal(3)
    axis /= np.linalg.norm(axis)
    squash = rng.uniform(0.5, 1.2)
    one = lambda v: np.asarray(v, np.float64)[None, None]  # noqa: E731
    shapes = body.Shapes(one(a), one(b), one(ra), one(rb), one(axis), one(squash))
    height, width = 18, 12
    with exact():
        parts = render.cones(shapes)
        depth, which = render._nearest(parts, np.array([[20.0, 20.0, 6.0, 9.0]]), height, width)
    depth, hit = np.asarray(depth).reshape(height, width), np.asarray(which).reshape(height, width) == 0
    assert hit.any()
    assert not hit.all()
    row, column = np.mgrid[:height, :width]
    rays = np.stack([(column + 0.5 - 6) / 20, (row + 0.5 - 9) / 20, np.ones(row.shape)], -1).reshape(-1, 3)
    steps = np.linspace(2.0, 4.0, 301)
    for ray, z, is_hit in zip(rays, depth.ravel(), hit.ravel(), strict=True):
        gaps = _distance(steps[:, None] * ray, a, b, ra, rb, axis, squash)
        inside = np.flatnonzero(gaps < 0)
        if len(inside):
            assert is_hit
            assert abs(z - steps[inside[0]]) < 0.015
        else:
            assert not is_hit or gaps.min() < 0.006
