"""How people stand and walk: joint angles of one instant.

Angles are radians. Arrays [F, 2] hold the person's right side in column 0 and the left in column 1.
Pitch is positive when a limb points forward, splay when it points outward.
"""

import dataclasses

import numpy as np

from tfds_builders.synthetic_rgbd.draws import Draws

SIDES = np.array([1.0, -1.0])


@dataclasses.dataclass(frozen=True)
class Pose:
    """Joint angles of F instants; [F] or [F, 2] float64.

    Attributes:
        turn: added to the recording's heading.
        forward: metres walked along the heading since the middle of the recording.
        lean: forward lean of the trunk; side: its lean to the right.
        hip_twist, shoulder_twist: turns of pelvis and shoulders about the vertical.
        thigh, knee, foot: thigh pitch, knee flexion, foot pitch (toes up).
        leg_splay: outward angle of the whole leg.
        arm, elbow, arm_splay: upper arm pitch, elbow flexion, outward angle.
        head_yaw, head_pitch: head relative to the trunk.
    """

    turn: np.ndarray
    forward: np.ndarray
    lean: np.ndarray
    side: np.ndarray
    hip_twist: np.ndarray
    shoulder_twist: np.ndarray
    thigh: np.ndarray
    knee: np.ndarray
    foot: np.ndarray
    leg_splay: np.ndarray
    arm: np.ndarray
    elbow: np.ndarray
    arm_splay: np.ndarray
    head_yaw: np.ndarray
    head_pitch: np.ndarray


def walking_speed(body: dict[str, np.ndarray]) -> np.ndarray:
    """Metres per second: two steps of 2 L sin(swing) per cycle, a tenth of it lost to the bent knee."""
    leg = body["leg_ratio"] * body["height"]
    return 0.9 * 4.0 * leg * np.sin(np.abs(body["stride"])) * body["cadence"]


def sample_poses(
    body: dict[str, np.ndarray],
    walking: np.ndarray,
    time_s: np.ndarray,
    recording: dict[str, np.ndarray],
    draws: Draws,
    spread: float,
) -> Pose:
    """The poses of F instants.

    Args:
        body: identity parameters, each [F].
        walking: bool [F].
        time_s: float64 [F], seconds from the middle of the recording; only walks depend on it.
        recording: per-recording choices, each [F]: "phase" (gait phase, cycles), "pace", "step" (factors on
            cadence and stride), "arms" (0 relaxed, 1 one forearm raised, 2 both), "arms_side" (-1 or 1).
        draws: one row per instant; 24 columns are taken.
        spread: factor on the changes within a person.
    """
    noise = spread * draws.normals(12)
    stand = _standing(body, recording, noise)
    walk = _walking(body, time_s, recording, spread, noise)
    chosen = {}
    for field in dataclasses.fields(Pose):
        a, b = getattr(walk, field.name), getattr(stand, field.name)
        chosen[field.name] = np.where(walking if a.ndim == 1 else walking[:, None], a, b)
    return Pose(**chosen)


def _standing(body: dict[str, np.ndarray], recording: dict[str, np.ndarray], noise: np.ndarray) -> Pose:
    """Weight on one leg, small turns and arm movements; all limbs hang."""
    shift = noise[:, 0]
    relaxed = np.maximum(SIDES * shift[:, None], 0.0)  # the unloaded leg bends a little
    raised = np.where(recording["arms"] == 2, 1.0, 0.5 * (1.0 + SIDES[:, None] * recording["arms_side"]))
    raised = np.where(recording["arms"] == 0, 0.0, raised).T
    arm_noise, elbow_noise = noise[:, 4:6], np.abs(noise[:, 6:8])
    return Pose(
        turn=0.09 * noise[:, 1],
        forward=0.02 * noise[:, 2],
        lean=0.02 * noise[:, 3],
        side=0.6 * body["sway"] * shift,
        hip_twist=0.04 * noise[:, 8],
        shoulder_twist=0.05 * noise[:, 9],
        thigh=0.03 + 0.12 * relaxed,
        knee=0.05 + 0.22 * relaxed,
        foot=np.zeros_like(relaxed),
        leg_splay=(body["stance"] / (0.5 * body["height"]))[:, None] + 0.012 * np.abs(noise[:, 10:11]) * np.ones(2),
        arm=-0.04 + 0.10 * arm_noise + 0.35 * raised,
        elbow=body["elbow_bend"][:, None] * (1 + 0.3 * elbow_noise) + raised * (1.25 + 0.15 * arm_noise),
        arm_splay=body["arm_carriage"][:, None] * (1 + 0.25 * elbow_noise),
        head_yaw=0.18 * noise[:, 11],
        head_pitch=0.06 * noise[:, 10],
    )


def _walking(
    body: dict[str, np.ndarray], time_s: np.ndarray, recording: dict[str, np.ndarray], spread: float, noise: np.ndarray
) -> Pose:
    """Periodic in the gait phase; legs are half a cycle apart and arms swing against them."""
    cadence = body["cadence"] * (1 + 0.05 * spread * recording["pace"])
    swing = body["stride"] * (1 + 0.06 * spread * recording["step"])
    phase = 2 * np.pi * (recording["phase"] + cadence * time_s)
    leg = phase[:, None] + np.array([0.0, np.pi])
    uneven = 1 + body["gait_asymmetry"][:, None] * SIDES
    lift = (0.5 - 0.5 * np.sin(leg + 0.35)) ** 2  # greatest while the thigh swings forward
    push = (0.5 - 0.5 * np.cos(leg + 0.5)) ** 3  # greatest when the leg trails
    carried = np.where(recording["arms"] == 0, 1.0, 0.75)[:, None]
    turning = np.sin(phase)
    return Pose(
        turn=0.03 * noise[:, 1],
        forward=walking_speed(body) * (1 + 0.05 * spread * recording["pace"]) * time_s,
        lean=body["walk_lean"] + 0.01 * noise[:, 3],
        side=body["sway"] * turning,
        hip_twist=0.5 * body["twist"] * np.cos(phase),
        shoulder_twist=-body["twist"] * np.cos(phase),
        thigh=0.06 + swing[:, None] * uneven * np.cos(leg),
        knee=0.08 + body["knee_lift"][:, None] * uneven * lift,
        foot=0.25 * np.maximum(np.cos(leg), 0.0) ** 2 - 0.6 * push,
        leg_splay=(0.5 * body["stance"] / (0.5 * body["height"]))[:, None] * np.ones(2),
        arm=-0.03 - carried * body["arm_swing"][:, None] * np.cos(leg) + 0.02 * noise[:, 4:6],
        elbow=body["elbow_bend"][:, None] * (1.0 + 0.8 * np.maximum(-np.cos(leg), 0.0)),
        arm_splay=body["arm_carriage"][:, None] * np.ones(2),
        head_yaw=0.12 * noise[:, 11],
        head_pitch=0.05 * noise[:, 10],
    )
