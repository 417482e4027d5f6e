"""From a person, an outfit and a pose to rounded cones in the world.

Every part is the hull of two spheres, squashed along one axis. Body axes: x to the person's right,
y forward, z up, origin on the floor below the pelvis. World axes: z up, floor at z = 0.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from tfds_builders.synthetic_rgbd.motion import SIDES, Pose
from tfds_builders.synthetic_rgbd.people import REFERENCE_HEIGHT_M

TRUNK = ("pelvis", "waist", "belly", "chest", "bust", "shoulders", "neck", "head", "hair", "hair_tail")
LIMBS = ("upper_arm", "forearm", "hand", "thigh", "shank", "foot")
PARTS = TRUNK + tuple(f"{side}_{limb}" for limb in LIMBS for side in ("right", "left")) + ("skirt", "bag")


@dataclasses.dataclass(frozen=True)
class Shapes:
    """P rounded cones of F frames.

    Attributes:
        a, b: float64 [F, P, 3], the centres of the two spheres, metres.
        ra, rb: float64 [F, P], their radii; 0 and below means the part is absent.
        axis: float64 [F, P, 3], unit axis of the squash.
        squash: float64 [F, P], thickness along `axis` as a share of the width.
    """

    a: np.ndarray
    b: np.ndarray
    ra: np.ndarray
    rb: np.ndarray
    axis: np.ndarray
    squash: np.ndarray


def _vector(x, y, z) -> np.ndarray:
    return np.stack(np.broadcast_arrays(x, y, z), axis=-1).astype(np.float64)


def _turn(v: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """`v` [F, 3] turned about the vertical by `angle` [F], anticlockwise seen from above."""
    c, s = np.cos(angle), np.sin(angle)
    return _vector(c * v[:, 0] - s * v[:, 1], s * v[:, 0] + c * v[:, 1], v[:, 2])


def _times(scale, v: np.ndarray) -> np.ndarray:
    return np.asarray(scale)[..., None] * v


class _Builder:
    """Collects parts by name in body coordinates."""

    def __init__(self, frames: int):
        self._frames, self._parts = frames, {}

    def add(self, name: str, a: np.ndarray, b: np.ndarray, ra, rb, axis=None, squash: ArrayLike = 1.0) -> None:
        full = lambda value: np.broadcast_to(np.asarray(value, np.float64), (self._frames,))  # noqa: E731
        axis = np.broadcast_to(np.array([0.0, 1.0, 0.0]), a.shape) if axis is None else axis
        self._parts[name] = (a, b, full(ra), full(rb), axis, full(squash))

    def shapes(self) -> Shapes:
        columns = zip(*(self._parts[name] for name in PARTS), strict=True)
        return Shapes(*(np.stack(column, axis=1) for column in columns))


def person_shapes(
    body: dict[str, np.ndarray],
    hair_style: np.ndarray,
    hair_volume: np.ndarray,
    outfit: dict[str, np.ndarray],
    pose: Pose,
    position: np.ndarray,
    heading: np.ndarray,
) -> Shapes:
    """All parts of F people in world coordinates, with the lower foot on the floor.

    Args:
        body: identity parameters, each [F].
        hair_style, hair_volume: [F].
        outfit: the fields of `Outfits`, each [F] or [F, 3].
        pose: [F].
        position: float64 [F, 2], world x and y of the pelvis, metres.
        heading: float64 [F], radians; 0 faces the world's -y, positive turns anticlockwise seen from above.
    """
    parts = _Builder(len(heading))
    lowest = _legs(parts, body, outfit, pose)
    joints = _trunk(parts, body, outfit, pose)
    _head(parts, body, hair_style, hair_volume, pose, joints)
    _arms(parts, body, outfit, pose, joints)
    _garments(parts, body, outfit, pose, joints)
    shapes = parts.shapes()
    origin = _vector(position[:, 0], position[:, 1], -lowest)
    yaw = heading + np.pi  # body +y (forward) becomes the world's -y
    place = lambda v: _turn_all(v, yaw) + origin[:, None]  # noqa: E731
    return dataclasses.replace(shapes, a=place(shapes.a), b=place(shapes.b), axis=_turn_all(shapes.axis, yaw))


def _turn_all(v: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """`v` [F, P, 3] turned about the vertical by `angle` [F]."""
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.stack([c * v[..., 0] - s * v[..., 1], s * v[..., 0] + c * v[..., 1], v[..., 2]], axis=-1)


def _leg_length(body: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(hip to ankle, ankle above the sole), metres."""
    ankle = 0.075 * body["height"] / REFERENCE_HEIGHT_M
    return body["leg_ratio"] * body["height"] - ankle, ankle


def _legs(parts: _Builder, body: dict[str, np.ndarray], outfit: dict[str, np.ndarray], pose: Pose) -> np.ndarray:
    """Adds thighs, shanks and feet; returns the height [F] of the lowest sole below the hip joints (negative)."""
    length, ankle_height = _leg_length(body)
    ankle_height = ankle_height + outfit["heel"]
    thigh, loose = body["thigh_share"] * length, outfit["loose_lower"]
    covered = np.isin(outfit["lower_kind"], (0, 3)).astype(float)
    hip_x = 0.52 * body["hip_half"]
    lowest = np.full(len(length), np.inf)
    for side, name in enumerate(("right", "left")):
        sign = SIDES[side]
        hip = _turn(_vector(sign * hip_x, 0.0, 0.0), pose.hip_twist)
        splay = sign * (pose.leg_splay[:, side] + 0.5 * body["knock_knee"])
        pitch = pose.thigh[:, side]
        knee = hip + _times(thigh, _vector(np.sin(splay), np.sin(pitch), -np.cos(pitch)) / _norm(splay))
        splay = sign * (pose.leg_splay[:, side] - 0.5 * body["knock_knee"])
        pitch = pitch - pose.knee[:, side]
        down = _vector(np.sin(splay), np.sin(pitch), -np.cos(pitch)) / _norm(splay)
        ankle = knee + _times(length - thigh, down)
        top, calf = body["thigh_radius"], body["calf_radius"]
        parts.add(f"{name}_thigh", hip, knee, 1.05 * top + loose, 0.74 * top + loose)
        parts.add(f"{name}_shank", knee, ankle, calf + loose * covered, 0.66 * calf + loose * covered)
        foot = pose.foot[:, side]
        yaw = -sign * body["toe_out"] + pose.hip_twist
        ahead = _turn(_vector(0.0, np.cos(foot), np.sin(foot)), yaw)
        under = _turn(_vector(0.0, np.sin(foot), -np.cos(foot)), yaw)
        size = body["foot_length"]
        heel_radius, toe_radius = 0.15 * size, 0.11 * size
        heel = ankle + _times(-0.08 * size, ahead) + _times(ankle_height - heel_radius, under)
        toe = ankle + _times(0.66 * size, ahead) + _times(ankle_height - toe_radius, under)
        parts.add(f"{name}_foot", heel, toe, heel_radius, toe_radius)
        lowest = np.minimum(lowest, np.minimum(heel[:, 2] - heel_radius, toe[:, 2] - toe_radius))
    return lowest


def _norm(splay: np.ndarray) -> np.ndarray:
    return np.sqrt(1.0 + np.sin(splay) ** 2)[:, None]


def _up(lean: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Unit vectors [F, 3] that lean forward and to the right."""
    v = _vector(np.sin(side), np.sin(lean), np.cos(lean))
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _trunk(parts: _Builder, body: dict[str, np.ndarray], outfit: dict[str, np.ndarray], pose: Pose) -> dict:
    """Adds pelvis to shoulders; returns the joints that other parts hang on."""
    loose = outfit["loose_upper"]
    length = (1 - body["leg_ratio"]) * body["height"] - body["neck_length"] - body["head_length"]
    spine, upper = _up(pose.lean, pose.side), _up(pose.lean + body["slouch"], 0.5 * pose.side)
    hips = np.zeros_like(spine)
    waist = hips + _times(0.40 * length, spine)
    shoulders = waist + _times(0.60 * length, upper)
    ones = np.ones_like(length)
    hip_right, hip_front = _turn(_vector(ones, 0, 0), pose.hip_twist), _turn(_vector(0 * ones, 1, 0), pose.hip_twist)
    right, front = _turn(_vector(ones, 0, 0), pose.shoulder_twist), _turn(_vector(0 * ones, 1, 0), pose.shoulder_twist)

    half = body["hip_half"]
    radius = 0.60 * half + outfit["loose_lower"]
    reach, behind = half - 0.60 * half, _times(-0.6 * body["seat"], hip_front)
    centre = hips + behind + _times(0.02 * ones, spine)
    pelvis_squash = 0.95 + 2.0 * body["seat"]
    a, b = centre - _times(reach, hip_right), centre + _times(reach, hip_right)
    parts.add("pelvis", a, b, radius, radius, hip_front, pelvis_squash)
    waist_radius, chest_radius = body["waist_half"] + loose, body["chest_half"] + loose
    low = hips + _times(0.12 * ones, spine)
    parts.add("waist", low, waist, 0.88 * half + loose, waist_radius, hip_front, 0.74)
    swell = 0.90 * body["waist_half"] + loose
    middle = 0.5 * low + 0.5 * waist + _times(0.16 * body["waist_half"] + body["belly"], hip_front)
    a, b = middle - _times(0.04 * ones, spine), middle + _times(0.03 * ones, spine)
    parts.add("belly", a, b, swell, 0.95 * swell, hip_front, 0.62)
    chest = waist + _times(0.36 * length, upper)
    parts.add("chest", waist, chest, waist_radius, chest_radius, front, body["chest_flat"])
    swell = 0.50 * body["chest_half"] + 0.5 * loose
    ahead = body["chest_flat"] * body["chest_half"] - swell + body["bust"] + 0.5 * loose
    middle, reach = chest + _times(ahead, front) - _times(0.05 * ones, upper), 0.42 * body["chest_half"]
    parts.add("bust", middle - _times(reach, right), middle + _times(reach, right), swell, swell)
    radius = 1.2 * body["arm_radius"] + loose
    reach = body["shoulder_half"] - 0.6 * body["arm_radius"]
    line = shoulders - _times(0.75 * radius + 0.5 * body["shoulder_drop"], upper)
    a, b = line - _times(reach, right), line + _times(reach, right)
    parts.add("shoulders", a, b, radius, radius, front, 1.05)
    sockets = shoulders - _times(0.8 * body["arm_radius"] + body["shoulder_drop"], upper)
    return {
        "waist": waist, "chest": chest, "shoulders": shoulders, "sockets": sockets, "upper": upper, "spine": spine,
        "right": right, "front": front, "hip_front": hip_front, "hip_right": hip_right,
    }  # fmt: skip


def _head(parts: _Builder, body, style: np.ndarray, volume: np.ndarray, pose: Pose, joints: dict) -> None:
    """Adds neck, head and hair; `style` is an index into `people.HAIR_STYLES`."""
    bend = pose.lean + body["slouch"] + body["head_forward"]
    neck_up = _up(bend, pose.side)
    chin = joints["shoulders"] + _times(body["neck_length"], neck_up)
    wide = body["neck_radius"]
    parts.add(
        "neck", joints["shoulders"] - _times(0.05 + 0 * wide, joints["upper"]), chin + 0.02 * neck_up, 1.5 * wide, wide
    )
    yaw = pose.shoulder_twist + pose.head_yaw
    up = _up(0.3 * body["head_forward"] - pose.head_pitch, 0.0 * pose.side)
    front = _turn(np.broadcast_to(np.array([0.0, 1.0, 0.0]), up.shape), yaw)
    right = _turn(np.broadcast_to(np.array([1.0, 0.0, 0.0]), up.shape), yaw)
    up = _turn(up, yaw)
    size, half = body["head_length"], body["head_width"]
    skull = 0.42 * size
    jaw = chin + _times(0.28 * size, up) + _times(0.10 * size, front)
    crown = chin + _times(size - skull, up) + _times(0.02 * size, front)
    parts.add("head", jaw, crown, 0.28 * size, skull, right, half / skull)
    present, is_cap = (style > 0).astype(float), (style == 5)[:, None]
    back = crown - _times(0.10 * size, front) + _times(0.03 * size, up)
    back = np.where(is_cap, crown - _times(0.03 * size, front) + _times(0.07 * size, up), back)
    radius = present * (skull + np.where(style == 5, 0.006, volume))
    low = back - _times(0.12 * size, up) - _times(0.05 * size, front)
    low = np.where(is_cap, back - _times(0.05 * size, front) - _times(0.02 * size, up), low)
    parts.add("hair", low, back, 0.97 * radius, radius, right, (half + 0.8 * volume) / skull)
    # medium: to the nape; long: to the shoulder blades; bun: a knot; cap: the visor
    nape, blades = chin - _times(0.10 * size, front), joints["shoulders"] - _times(0.13 + 0 * size, joints["upper"])
    blades = blades - _times(0.62 * body["chest_half"], joints["front"])
    knot, visor = back - _times(1.15 * skull, front), crown + _times(0.9 * skull, front) + _times(0.15 * size, up)
    end = np.select([style[:, None] == s for s in (2, 3, 4, 5)], [nape, blades, knot, visor], back)
    start = np.select(
        [style[:, None] == s for s in (4, 5)], [knot + _times(0.03 * size, up), crown + _times(0.15 * size, up)], low
    )
    r1 = np.select([style == s for s in (2, 3, 4, 5)], [0.92 * skull, 0.85 * skull, 0.32 * skull, 0.62 * skull], 0.0)
    r2 = np.select([style == s for s in (2, 3, 4, 5)], [0.78 * skull, 0.55 * skull, 0.30 * skull, 0.55 * skull], 0.0)
    flat = np.where((style == 5)[:, None], up, np.where((style == 3)[:, None], joints["front"], right))
    parts.add("hair_tail", start, end, r1, r2, flat, np.select([style == 5, style == 3], [0.22, 0.72], 0.95))


def _arms(
    parts: _Builder, body: dict[str, np.ndarray], outfit: dict[str, np.ndarray], pose: Pose, joints: dict
) -> None:
    """Adds upper arms, forearms and hands."""
    length = body["arm_length"] * (1 - body["forearm_share"])
    fore = body["arm_length"] * body["forearm_share"]
    radius = body["arm_radius"]
    upper_loose = outfit["loose_upper"] * (outfit["sleeve"] > 0)
    fore_loose = outfit["loose_upper"] * (outfit["sleeve"] > 1)
    for side, name in enumerate(("right", "left")):
        sign = SIDES[side]
        socket = joints["sockets"] + _times(sign * body["shoulder_half"], joints["right"])
        splay, pitch = pose.arm_splay[:, side], pose.arm[:, side] + pose.lean
        along = _limb(sign * splay, pitch, pose.shoulder_twist)
        elbow = socket + _times(length, along)
        along = _limb(sign * 0.35 * splay, pitch + pose.elbow[:, side], pose.shoulder_twist)
        wrist = elbow + _times(fore, along)
        parts.add(f"{name}_upper_arm", socket, elbow, 1.15 * radius + upper_loose, 0.85 * radius + upper_loose)
        parts.add(f"{name}_forearm", elbow, wrist, 0.85 * radius + fore_loose, 0.62 * radius + fore_loose)
        grip = _times(0.30 * fore, along)
        parts.add(f"{name}_hand", wrist + 0.4 * grip, wrist + 1.3 * grip, 0.80 * radius, 0.58 * radius)


def _limb(splay: np.ndarray, pitch: np.ndarray, twist: np.ndarray) -> np.ndarray:
    v = _vector(np.sin(splay), np.sin(pitch) * np.cos(splay), -np.cos(pitch) * np.cos(splay))
    return _turn(v, twist)


def _garments(
    parts: _Builder, body: dict[str, np.ndarray], outfit: dict[str, np.ndarray], pose: Pose, joints: dict
) -> None:
    """Adds skirt or coat tails, and the bag."""
    length, _ = _leg_length(body)
    kind = outfit["lower_kind"]
    half = body["hip_half"]
    worn = (kind >= 2).astype(float)
    top = _times(0.07 * np.ones_like(half), joints["spine"])
    hem = _vector(0 * half, 0.01, -outfit["skirt_length"] * length)
    loose = np.where(kind == 3, outfit["loose_upper"], outfit["loose_lower"])
    wide = half * 0.96 + loose + outfit["flare"]
    # The cloth gives way to striding legs: the hem is as deep as the legs are there.
    stride = np.abs(np.sin(pose.thigh)).max(axis=1) * outfit["skirt_length"] * length
    deep = np.maximum(0.78, (0.8 * stride + body["thigh_radius"] + outfit["loose_lower"]) / wide)
    parts.add(
        "skirt", top, hem, worn * (0.90 * half + loose) / np.maximum(1.0, deep), worn * wide, joints["hip_front"], deep
    )
    size, bag = outfit["bag_size"], outfit["bag"]
    behind = -(body["chest_flat"] * body["chest_half"] + outfit["loose_upper"] + 0.06 * size)
    back = _times(behind, joints["front"])
    pack_top = joints["shoulders"] - _times(0.13 * size, joints["upper"]) + back
    pack_low = joints["waist"] + _times(0.02 * size, joints["upper"]) + back
    beside = _times(outfit["bag_side"] * (half + 0.05), joints["hip_right"])
    sling = beside + _times(0.02 * size, joints["spine"])
    pack = (bag == 1)[:, None]
    a = np.where(pack, pack_low, sling - _times(0.08 * size, joints["hip_front"]))
    b = np.where(
        pack, pack_top, sling + _times(0.10 * size, joints["hip_front"]) + _times(0.01 * size, joints["spine"])
    )
    radius = (bag > 0) * np.where(bag == 1, 0.145, 0.125) * size
    axis = np.where(pack, joints["front"], joints["hip_right"])
    parts.add("bag", a, b, radius, 0.95 * radius, axis, np.where(bag == 1, 0.62, 0.42))
