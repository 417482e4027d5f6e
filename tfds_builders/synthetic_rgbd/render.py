"""Ray casting of rounded cones, floor and wall, in float64 on the CPU.

One ray per pixel of the crop, through the pixel's centre: (x, y, 1) in camera axes, so the ray's
parameter is the depth Z. A squash by s along the unit axis n is undone by M = I + (1/s - 1) n n^T, which
maps the part to a round cone (Inigo Quilez, "rounded cone - intersector", iquilezles.org) and keeps the
ray's parameter. Parts are visited by `lax.scan`: an unrolled loop takes minutes to compile.
"""

import functools
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from tfds_builders.synthetic_rgbd import paint as paint_lib
from tfds_builders.synthetic_rgbd.body import PARTS, Shapes
from tfds_builders.synthetic_rgbd.scene import Frames

Array: TypeAlias = jax.Array | np.ndarray  # NumPy's before the compiled programs, JAX's within and after

FAR = 1e6
NEAREST_M = 0.2
_TINY = 1e-9


class Cones(NamedTuple):
    """Rounded cones, mapped so that they are round: float64 [F, P, ...]; one part is [F, ...] within the scan.

    `a` and `ba` are the first centre and the way to the second; `n`, `k` = 1/s - 1 the squash; where `hem` is 1
    the second ball is left out, so that the cone ends open.
    """

    a: Array
    ba: Array
    n: Array
    k: Array
    ra: Array
    rb: Array
    hem: Array


class View(NamedTuple):
    """What a batch needs besides its cones; float64 [F, ...], named as in `scene.Frames`."""

    paint: Array
    rotation: Array
    camera_height: Array
    origin: Array
    heading: Array
    intrinsics: Array
    room: Array
    light: Array


class Surface(NamedTuple):
    """What each ray meets: [F, R] or [F, H, W] each, colours [..., 3].

    `depth` is Z in metres, `person` whether a part of the person is hit, `color` the linear light that
    reaches the sensor, `facing` the cosine between normal and ray, `dark` how far infrared is absorbed.
    """

    depth: Array
    person: Array
    color: Array
    facing: Array
    dark: Array


class Background(NamedTuple):
    """Rays [F, R, 3] (camera axes, z = 1) and what they meet behind everything: depth, world normal, albedo."""

    ray: Array
    depth: Array
    normal: Array
    albedo: Array


def cones(shapes: Shapes) -> Cones:
    """`shapes` in camera axes, mapped to round cones; absent parts lie behind the camera."""
    k = 1.0 / shapes.squash - 1.0
    to_round = lambda v: v + k[..., None] * shapes.axis * np.sum(shapes.axis * v, -1, keepdims=True)  # noqa: E731
    absent = ((shapes.ra <= 0) | (shapes.rb <= 0))[..., None]
    a = np.where(absent, np.array([0.0, 0.0, -50.0]), to_round(shapes.a))
    b = np.where(absent, np.array([0.0, 0.1, -50.0]), to_round(shapes.b))
    ra, rb = np.maximum(shapes.ra, 1e-3), np.maximum(shapes.rb, 1e-3)
    hem = np.broadcast_to(np.arange(ra.shape[1]) == PARTS.index("skirt"), ra.shape).astype(np.float64)
    return Cones(a, b - a, shapes.axis, k, ra, rb, hem)


def view(frames: Frames) -> View:
    """The rest of `frames` that the renderer reads."""
    return View(*(getattr(frames, name) for name in View._fields))


def rays(intrinsics: Array, height: int, width: int) -> tuple[Array, Array]:
    """x/z and y/z [F, height * width] of the pixel centres, row by row."""
    row, column = jnp.divmod(jnp.arange(height * width), width)
    fx, fy, cx, cy = (intrinsics[:, i : i + 1] for i in range(4))
    return (column[None] + 0.5 - cx) / fx, (row[None] + 0.5 - cy) / fy


def _dot(u: Array, x: Array, y: Array, z: Array | float) -> Array:
    """Dot of one vector per frame [F, 3] with one per ray (three [F, R])."""
    return u[:, 0:1] * x + u[:, 1:2] * y + u[:, 2:3] * z


def _hit(part: Cones, x: Array, y: Array) -> Array:
    """Depth [F, R] at which rays first meet one part, FAR where they miss."""
    along_axis = part.k[:, None] * _dot(part.n, x, y, 1.0)
    dx, dy, dz = (d + along_axis * part.n[:, i : i + 1] for i, d in enumerate((x, y, jnp.ones_like(x))))
    per_frame = lambda u, v: jnp.sum(u * v, axis=-1)[:, None]  # noqa: E731
    ra, rb, b = part.ra[:, None], part.rb[:, None], part.a + part.ba
    rr = ra - rb
    m0 = per_frame(part.ba, part.ba)
    m1 = -per_frame(part.ba, part.a)
    m5, m7 = per_frame(part.a, part.a), per_frame(b, b)
    d2 = jnp.maximum(m0 - rr * rr, _TINY)
    m2 = _dot(part.ba, dx, dy, dz)
    m3, m6 = -_dot(part.a, dx, dy, dz), -_dot(b, dx, dy, dz)
    dd = dx * dx + dy * dy + dz * dz

    k2 = d2 * dd - m2 * m2
    k1 = d2 * m3 - m1 * m2 + m2 * rr * ra
    k0 = d2 * m5 - m1 * m1 + 2.0 * m1 * rr * ra - m0 * ra * ra
    h = k1 * k1 - k0 * k2
    side = (-jnp.sqrt(jnp.maximum(h, 0.0)) - k1) / jnp.where(jnp.abs(k2) < _TINY, _TINY, k2)
    reach = m1 - ra * rr + side * m2
    best = jnp.where((h >= 0) & (reach > 0) & (reach < d2) & (side > NEAREST_M), side, FAR)
    for m, square, radius, there in ((m3, m5, ra, True), (m6, m7, rb, part.hem[:, None] == 0)):
        h = m * m - dd * (square - radius * radius)
        ball = (-m - jnp.sqrt(jnp.maximum(h, 0.0))) / dd
        best = jnp.minimum(best, jnp.where((h >= 0) & (ball > NEAREST_M) & there, ball, FAR))
    return best


@functools.partial(jax.jit, static_argnums=(2, 3))
def _nearest(parts: Cones, intrinsics: Array, height: int, width: int) -> tuple[Array, Array]:
    """Depth and index [F, R] of the first part along each ray; FAR and -1 where none is met."""
    x, y = rays(intrinsics, height, width)

    def step(carry, indexed):
        depth, which = carry
        index, part = indexed
        hit = _hit(part, x, y)
        closer = hit < depth
        return (jnp.where(closer, hit, depth), jnp.where(closer, index, which)), None

    first = jax.tree.map(lambda v: jnp.moveaxis(v, 1, 0), parts)
    start = (jnp.full_like(x, FAR), jnp.full(x.shape, -1, jnp.int32))
    return jax.lax.scan(step, start, (jnp.arange(parts.ra.shape[1], dtype=jnp.int32), first))[0]


def trace(parts: Cones, scene: View, height: int, width: int) -> Surface:
    """What the rays of a batch of crops meet: [F, height, width]."""
    depth, which = _nearest(parts, scene.intrinsics, height, width)
    surface = _shade(parts, scene, depth, which, _background(scene, height, width))
    return Surface(*(v.reshape(v.shape[0], height, width, *v.shape[2:]) for v in surface))


@jax.jit
def _shade(parts: Cones, scene: View, depth: Array, which: Array, background: Background) -> Surface:
    """Colours and the rest of the surfaces whose depth and part [F, R] are known."""
    behind = background.depth < depth
    depth = jnp.minimum(depth, background.depth)
    hit = background.ray * depth[..., None]
    index = jnp.maximum(which, 0)
    normal, along = _part_normal(parts, index, hit)
    albedo, dark = _part_albedo(scene, index, hit, along)
    world = jnp.einsum("fij,frj->fri", scene.rotation, normal)
    world = jnp.where(behind[..., None], background.normal, world)
    albedo = jnp.where(behind[..., None], background.albedo, albedo)
    color = albedo * _shading(scene.light, world)[..., None] * scene.light[:, None, 4:7]
    ray = jnp.einsum("fij,frj->fri", scene.rotation, hit)
    facing = jnp.abs(jnp.sum(world * ray, -1)) / jnp.sqrt(jnp.sum(ray * ray, -1))
    person = ~behind & (which < len(PARTS)) & (which >= 0)
    return Surface(depth, person, color, facing, jnp.where(behind, 0.0, dark))


def _gather(values: Array, index: Array) -> Array:
    """`values` [F, P, C] at `index` [F, R]: [F, R, C]."""
    return jnp.take_along_axis(values, index[..., None], axis=1)


def _part_normal(parts: Cones, index: Array, hit: Array) -> tuple[Array, Array]:
    """Outward normals (camera axes) [F, R, 3] and the share [F, R] of the way from a to b."""
    rr = parts.ra - parts.rb
    d2 = jnp.maximum(jnp.sum(parts.ba**2, -1) - rr * rr, _TINY)
    table = jnp.concatenate([parts.a, parts.ba, parts.n, jnp.stack([parts.k, parts.ra * rr, d2], -1)], axis=-1)
    row = _gather(table, index)
    a, ba, n, k = row[..., 0:3], row[..., 3:6], row[..., 6:9], row[..., 9:10]
    to_round = lambda v: v + k * n * jnp.sum(n * v, -1, keepdims=True)  # noqa: E731
    from_a = to_round(hit) - a
    along = jnp.clip((jnp.sum(ba * from_a, -1) - row[..., 10]) / row[..., 11], 0.0, 1.0)
    normal = to_round(from_a - ba * along[..., None])
    return normal / jnp.sqrt(jnp.maximum(jnp.sum(normal**2, -1, keepdims=True), _TINY**2)), along


def _wave(x: Array) -> Array:
    """A sine with steep flanks, 0 .. 1."""
    return jnp.clip(0.5 + 3.0 * jnp.sin(x), 0.0, 1.0)


def _part_albedo(scene: View, index: Array, hit: Array, along: Array) -> tuple[Array, Array]:
    """Albedo [F, R, 3] and infrared absorption [F, R] of the parts that rays meet."""
    row = _gather(scene.paint, index)
    world = jnp.einsum("fij,frj->fri", scene.rotation, hit)
    offset = world[..., :2] - scene.origin[:, None, :2]
    c, s = jnp.cos(scene.heading)[:, None], jnp.sin(scene.heading)[:, None]
    right = -c * offset[..., 0] - s * offset[..., 1]
    ahead = s * offset[..., 0] - c * offset[..., 1]
    up = world[..., 2] + scene.camera_height[:, None]
    turn, phase = 2 * jnp.pi / row[..., paint_lib.PERIOD], row[..., paint_lib.PHASE]
    level, upright = _wave(up * turn + phase), _wave(right * turn + phase)
    checks = level + upright - 2 * level * upright
    block = jnp.clip(0.5 + 40.0 * (up - scene.origin[:, None, 2] - 1.05 - 0.02 * phase), 0.0, 1.0)
    oval = (right / 0.09) ** 2 + ((up - 1.18) / 0.11) ** 2
    badge = jnp.clip(3.0 * (1.0 - oval), 0.0, 1.0) * (ahead > 0)
    blotch = jnp.clip(0.5 + 2.0 * jnp.sin(0.6 * turn * up + 2 * jnp.sin(0.5 * turn * right + phase)), 0.0, 1.0)
    masks = jnp.stack([jnp.zeros_like(up), level, upright, checks, block, badge, blotch], axis=-1)
    chosen = row[..., paint_lib.PATTERN, None] == jnp.arange(masks.shape[-1])
    mix = jnp.sum(masks * chosen, axis=-1, keepdims=True)
    color = row[..., paint_lib.BASE] * (1 - mix) + row[..., paint_lib.SECOND] * mix
    covered = (along < row[..., paint_lib.CUT])[..., None]
    return jnp.where(covered, color, row[..., paint_lib.BEYOND]), row[..., paint_lib.DARK]


def _shading(light: Array, normal: Array) -> Array:
    """Ambient light, a little more of it from above, and a soft Lambert term: [F, R]."""
    cosine = jnp.sum(normal * light[:, None, 0:3], axis=-1)
    ambient = light[:, 3:4]
    direct = jnp.clip(0.8 * cosine + 0.2, 0.0, 1.0)
    return ambient * (0.85 + 0.15 * normal[..., 2]) + (1.0 - ambient) * direct


@functools.partial(jax.jit, static_argnums=(1, 2))
def _background(scene: View, height: int, width: int) -> Background:
    """Floor and wall along every ray.

    Room columns: 0 wall distance, 1 wall yaw, 2:5 wall colour, 5:8 floor colour, 8 and 9 their texture
    contrasts, 10:18 texture frequencies (rad/m), 18:26 phases, 26:29 poster (place, height, size).
    """
    x, y = rays(scene.intrinsics, height, width)
    room = scene.room
    at = lambda i: room[:, i : i + 1]  # noqa: E731
    direction = [_dot(scene.rotation[:, i], x, y, 1.0) for i in range(3)]
    eye = scene.camera_height[:, None]
    floor = jnp.where(direction[2] < -_TINY, -eye / jnp.minimum(direction[2], -_TINY), FAR)
    c, s = jnp.cos(at(1)), jnp.sin(at(1))
    towards = s * direction[0] + c * direction[1]
    wall = jnp.where(towards > _TINY, c * at(0) / jnp.maximum(towards, _TINY), FAR)
    on_floor = floor < wall
    depth = jnp.minimum(jnp.minimum(floor, wall), 0.5 * FAR)
    place = [depth * direction[0], depth * direction[1], eye + depth * direction[2]]
    u = jnp.where(on_floor, place[0], c * place[0] - s * place[1])
    v = jnp.where(on_floor, place[1], place[2])
    frequency = [jnp.where(on_floor, at(10 + i), at(14 + i)) for i in range(4)]
    phase = [jnp.where(on_floor, at(18 + i), at(22 + i)) for i in range(4)]
    lines = 0.5 * (_wave(u * frequency[0] + phase[0]) + _wave(v * frequency[1] + phase[1])) - 0.5
    cloud = 0.5 * jnp.sin(u * frequency[2] + 2.0 * jnp.sin(v * frequency[3] + phase[2]) + phase[3])
    texture = 1.0 + jnp.where(on_floor, at(9), at(8)) * (lines + cloud)
    inside = (jnp.abs(u - at(26)) < at(28)) & (jnp.abs(v - at(27)) < 1.3 * at(28)) & ~on_floor
    texture = texture * jnp.where(inside, 0.35 + at(8) * 2.0, 1.0)
    colour = jnp.where(on_floor[..., None], room[:, None, 5:8], room[:, None, 2:5])
    away = (place[0] - scene.origin[:, 0:1]) ** 2 + (place[1] - scene.origin[:, 1:2]) ** 2
    contact = 1.0 - 0.45 * jnp.exp(-away / 0.09) * on_floor
    zero = jnp.zeros_like(c)
    wall_normal = jnp.stack([-s, -c, zero], axis=-1)
    normal = jnp.where(on_floor[..., None], jnp.array([0.0, 0.0, 1.0]), wall_normal)
    albedo = jnp.clip(colour * (texture * contact)[..., None], 0.01, 0.9)
    return Background(jnp.stack([x, y, jnp.ones_like(x)], axis=-1), depth, normal, albedo)
