"""Where it happens: recordings, light, room, clutter, the camera and the crop.

Camera axes: x right, y down, z along the optical axis. The camera stands at the world's (0, 0, height)
and looks along +y, tilted down by its pitch.
"""

import dataclasses

import numpy as np

from tfds_builders.schema import STANDING, WALKING
from tfds_builders.synthetic_rgbd import body as body_lib
from tfds_builders.synthetic_rgbd import motion, paint, people
from tfds_builders.synthetic_rgbd.config import SPLITS, CameraSpec, SyntheticRgbdConfig
from tfds_builders.synthetic_rgbd.draws import Draws, key_data

CLUTTER = 2
ROOM_COLUMNS = 29


@dataclasses.dataclass(frozen=True)
class Frames:
    """Everything the renderer needs of F frames, in camera axes.

    Attributes:
        labels: int64 [F] each: person_id, camera_id, recording_id, recording_type, frame_id, clothes_id.
        shapes: P = parts + clutter rounded cones.
        paint: float64 [F, P, paint.COLUMNS].
        rotation: float64 [F, 3, 3], camera axes to world axes (rows are world axes).
        camera_height: float64 [F], metres.
        origin: float64 [F, 3], the person's place on the floor in the world; heading: [F], radians.
        intrinsics: float64 [F, 4], (fx, fy, cx, cy) of the crop in pixels.
        room: float64 [F, ROOM_COLUMNS], wall, floor and texture numbers.
        light: float64 [F, 10]: direction to the light (world), ambient share, colour gains (3), sensor gains (3).
        key: uint32 [F, 2], the sensor noise's key.
    """

    labels: dict[str, np.ndarray]
    shapes: body_lib.Shapes
    paint: np.ndarray
    rotation: np.ndarray
    camera_height: np.ndarray
    origin: np.ndarray
    heading: np.ndarray
    intrinsics: np.ndarray
    room: np.ndarray
    light: np.ndarray
    key: np.ndarray


def camera_rotation(pitch_rad: np.ndarray) -> np.ndarray:
    """Rotation [..., 3, 3] whose columns are the camera's right, down and forward axes in the world."""
    c, s, zero, one = np.cos(pitch_rad), np.sin(pitch_rad), np.zeros_like(pitch_rad), np.ones_like(pitch_rad)
    rows = [[one, zero, zero], [zero, -s, c], [zero, -c, -s]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _camera_column(cameras: tuple[CameraSpec, ...], which: np.ndarray, name: str) -> np.ndarray:
    return np.array([getattr(camera, name) for camera in cameras], np.float64)[which]


def sample_frames(config: SyntheticRgbdConfig, split: str, index: np.ndarray) -> Frames:
    """All frames of the people `index` int [N] of a split, person by person, camera, recording, instant."""
    index = np.asarray(index, np.int64)
    cameras, count = config.num_cameras, config.frames_per_recording
    persons = people.sample_people(config, split, index)
    number = people.outfit_numbers(config, split, index)
    row, camera, kind = (
        v.ravel() for v in np.meshgrid(np.arange(len(index)), np.arange(cameras), (0, 1), indexing="ij")
    )
    outfits = people.sample_outfits(config, split, index[row], number[row, camera], persons.build[row])
    recordings = _sample_recordings(
        config, split, index[row], camera, kind, {k: v[row] for k, v in persons.body.items()}
    )

    of = np.repeat(np.arange(len(row)), count)  # recording of each frame
    instant = np.tile(np.arange(count), len(row))
    row, camera, kind = row[of], camera[of], kind[of]
    rec = {name: value[of] for name, value in recordings.items()}
    outfit = {f.name: getattr(outfits, f.name)[of] for f in dataclasses.fields(outfits)}
    body = {name: value[row] for name, value in persons.body.items()}
    ids = np.stack([np.full_like(row, SPLITS.index(split)), index[row], camera, kind, instant], axis=1)
    draws = Draws(config.seed, "frame", ids)
    time_s = ((instant + 0.5) / count - 0.5) * config.walk_seconds
    pose = motion.sample_poses(body, kind == 1, time_s, rec, draws, config.pose_spread)
    heading = rec["heading"] + pose.turn
    ahead = np.stack([np.sin(rec["heading"]), -np.cos(rec["heading"])], axis=-1)
    position = np.stack([rec["x"], rec["y"]], axis=-1) + ahead * pose.forward[:, None]

    style = persons.hair_style[row]
    world = body_lib.person_shapes(body, style, persons.hair_volume[row], outfit, pose, position, heading)
    colours = paint.part_paint(persons.skin[row], persons.hair[row], style, outfit)
    rotation = camera_rotation(np.deg2rad(_camera_column(config.used_cameras, camera, "pitch_deg")))
    height = _camera_column(config.used_cameras, camera, "height_m")
    shapes = _to_camera(world, rotation, height)
    intrinsics = _crop(config, shapes, draws)
    shapes = _joined(shapes, _to_camera(_clutter_shapes(rec), rotation, height))
    labels = {
        "person_id": persons.person_id[row],
        "camera_id": camera,
        "recording_id": (people.person_ids(config, split, index[row]) * cameras + camera) * 2 + kind,
        "recording_type": np.where(kind == 1, WALKING, STANDING),
        "frame_id": instant,
        "clothes_id": outfit["clothes_id"],
    }
    gain = _camera_column(config.used_cameras, camera, "white_balance")
    gain = gain * _camera_column(config.used_cameras, camera, "gain")[:, None]
    return Frames(
        labels=labels,
        shapes=shapes,
        paint=np.concatenate([colours, rec["clutter_paint"]], axis=1),
        rotation=rotation,
        camera_height=height,
        origin=np.concatenate([position, np.zeros((len(row), 1))], axis=1),
        heading=heading,
        intrinsics=intrinsics,
        room=rec["room"],
        light=np.concatenate([rec["light"], gain], axis=1),
        key=key_data(config.seed, "sensor", ids),
    )


def _sample_recordings(config, split, index, camera, kind, body) -> dict[str, np.ndarray]:
    """The choices that hold for a whole recording, each [R, ...]."""
    ids = np.stack([np.full_like(index, SPLITS.index(split)), index, camera, kind], axis=1)
    draws = Draws(config.seed, "recording", ids)
    column = lambda name: _camera_column(config.used_cameras, camera, name)  # noqa: E731
    spread = np.deg2rad(column("heading_range_deg")) * config.heading_scale
    heading = np.deg2rad(column("heading_mean_deg")) + spread * draws.uniform(-1.0, 1.0)
    heading_ahead = np.cos(heading)
    # The middle of a walk keeps half the walk's length from both ends of the camera's range.
    half_walk = np.where(kind == 1, 0.5 * motion.walking_speed(body) * config.walk_seconds * heading_ahead, 0.0)
    near, far = column("distance_m")[:, 0], column("distance_m")[:, 1]
    keep = np.minimum(np.abs(half_walk), 0.45 * (far - near))
    y = near + keep + (far - near - 2 * keep) * draws.uniform()
    x = column("lateral_m") * draws.uniform(-1.0, 1.0)
    rec = {
        "heading": heading,
        "x": x,
        "y": y,
        "phase": draws.uniform(),
        "pace": draws.normal(),
        "step": draws.normal(),
        "arms": draws.choice((0.72, 0.2, 0.08)),
        "arms_side": np.where(draws.uniform() < 0.5, -1.0, 1.0),
    }
    farthest = y + np.abs(half_walk)
    rec["room"] = _sample_rooms(config, draws, farthest)
    rec["light"] = _sample_light(config, draws)
    return rec | _sample_clutter(config, draws, rec, farthest)


def _sample_rooms(config: SyntheticRgbdConfig, draws: Draws, farthest: np.ndarray) -> np.ndarray:
    """Wall and floor [R, ROOM_COLUMNS]; `render.background` says what the columns are."""
    wall_y = farthest + 0.55 + 2.2 * draws.uniform()
    wall_yaw = 0.35 * draws.uniform(-1.0, 1.0)
    colours = 0.06 + 0.55 * draws.uniforms(2)[:, [0, 0, 0, 1, 1, 1]] + 0.12 * (draws.uniforms(6) - 0.5)
    contrast = config.texture_contrast * draws.uniforms(2) * np.array([0.45, 0.5])
    frequencies = 2 * np.pi * np.exp(np.log(0.6) + np.log(8.0) * draws.uniforms(8))
    phases = 2 * np.pi * draws.uniforms(8)
    poster = np.stack([draws.uniform(-1.2, 1.2), draws.uniform(0.6, 1.9), draws.uniform(0.1, 0.5)], axis=-1)
    return np.concatenate([wall_y[:, None], wall_yaw[:, None], colours, contrast, frequencies, phases, poster], axis=1)


def _sample_light(config: SyntheticRgbdConfig, draws: Draws) -> np.ndarray:
    """Direction to the light (world), ambient share and colour gains: [R, 7]."""
    spread = config.light_spread
    azimuth, rise = spread * 1.6 * draws.uniform(-1.0, 1.0), 0.85 + spread * 0.45 * draws.uniform(-1.0, 1.0)
    direction = np.stack([np.sin(azimuth) * np.cos(rise), -np.cos(azimuth) * np.cos(rise), np.sin(rise)], axis=-1)
    ambient = np.clip(0.42 + spread * 0.17 * draws.uniform(-1.0, 1.0), 0.05, 1.0)
    warmth, green = spread * 0.16 * draws.normal(), spread * 0.03 * draws.normal()
    gain = np.exp(spread * 0.25 * draws.normal())
    colour = np.stack([np.exp(warmth), np.exp(green), np.exp(-warmth)], axis=-1) * gain[:, None]
    return np.concatenate([direction, ambient[:, None], colour], axis=1)


def _sample_clutter(
    config: SyntheticRgbdConfig, draws: Draws, rec: dict[str, np.ndarray], farthest
) -> dict[str, np.ndarray]:
    """Posts, bins and furniture: upright rounded cones beside or behind the person."""
    shape, colour = [], []
    for side in (-1.0, 1.0)[:CLUTTER]:
        present = (draws.uniform() < config.clutter_share).astype(float)
        x = rec["x"] + side * draws.uniform(0.55, 1.0)
        y = np.minimum(farthest + draws.uniform(0.1, 1.6), rec["room"][:, 0] - 0.1)
        top, low, high = draws.uniform(0.3, 1.9), draws.uniform(0.05, 0.22), draws.uniform(0.04, 0.2)
        shape.append(np.stack([x, y, top, present * low, present * high, draws.uniform(0.4, 1.0)], axis=-1))
        second = draws.uniforms(3) ** 2
        base = 0.03 + 0.6 * draws.uniforms(3) ** 1.5
        colour.append(paint.row(base, second=second, pattern=draws.choice((3, 1, 1)), period=draws.uniform(0.08, 0.4)))
    return {"clutter": np.stack(shape, axis=1), "clutter_paint": np.stack(colour, axis=1)}


def _clutter_shapes(rec: dict[str, np.ndarray]) -> body_lib.Shapes:
    x, y, top, low, high, squash = np.moveaxis(rec["clutter"], -1, 0)
    axis = np.broadcast_to(np.array([0.0, 1.0, 0.0]), (*x.shape, 3))
    return body_lib.Shapes(np.stack([x, y, low], -1), np.stack([x, y, low + top], -1), low, high, axis, squash)


def _to_camera(shapes: body_lib.Shapes, rotation: np.ndarray, height: np.ndarray) -> body_lib.Shapes:
    eye = np.stack([np.zeros_like(height), np.zeros_like(height), height], axis=-1)[:, None]
    turn = lambda v: np.einsum("fij,fpi->fpj", rotation, v)  # noqa: E731
    return dataclasses.replace(shapes, a=turn(shapes.a - eye), b=turn(shapes.b - eye), axis=turn(shapes.axis))


def _joined(first: body_lib.Shapes, second: body_lib.Shapes) -> body_lib.Shapes:
    names = [f.name for f in dataclasses.fields(body_lib.Shapes)]
    return body_lib.Shapes(*(np.concatenate([getattr(first, n), getattr(second, n)], axis=1) for n in names))


def person_extent(shapes: body_lib.Shapes) -> np.ndarray:
    """Bounds [F, 4] of the person in tangent coordinates x/z, y/z: (top, left, bottom, right)."""
    low, high = np.full((len(shapes.ra), 2), np.inf), np.full((len(shapes.ra), 2), -np.inf)
    for centre, radius in ((shapes.a, shapes.ra), (shapes.b, shapes.rb)):
        present = (shapes.ra > 0) & (shapes.rb > 0)
        for column, along in enumerate((1, 0)):
            # The silhouette of a ball: the two tangents from the eye within the plane of this axis and z.
            narrow = np.sqrt(1 + (shapes.squash**2 - 1) * shapes.axis[..., along] ** 2)
            reach = np.hypot(centre[..., along], centre[..., 2])
            half = np.arcsin(np.clip(radius * narrow / reach, 0, 0.99))
            angle = np.arctan2(centre[..., along], centre[..., 2])
            low[:, column] = np.minimum(low[:, column], np.where(present, np.tan(angle - half), np.inf).min(axis=1))
            high[:, column] = np.maximum(high[:, column], np.where(present, np.tan(angle + half), -np.inf).max(axis=1))
    return np.concatenate([low, high], axis=1)


def _crop(config: SyntheticRgbdConfig, shapes: body_lib.Shapes, draws: Draws) -> np.ndarray:
    """Intrinsics [F, 4] of a crop with margin, fixed aspect and a detector's errors around the person."""
    top, left, bottom, right = person_extent(shapes).T
    aspect = config.height / config.width
    size = np.maximum(bottom - top, (right - left) * aspect) * (1 + 2 * config.crop_margin)
    error = config.crop_jitter * draws.normals(3)
    middle_y = 0.5 * (top + bottom) + size * error[:, 0]
    middle_x = 0.5 * (left + right) + size * error[:, 1]
    size = size * np.exp(error[:, 2])
    focal = config.height / size
    cx, cy = 0.5 * config.width - middle_x * focal, 0.5 * config.height - middle_y * focal
    return np.stack([focal, focal, cx, cy], axis=-1)
