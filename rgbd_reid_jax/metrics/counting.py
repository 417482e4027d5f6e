"""The device part of the ranking engine: estimates of a tile of pairs, and how many lie below each threshold.

A tile is a block of queries times a block of the gallery. The gallery block is sharded over all devices of a mesh;
each device multiplies and counts its own shard, and the counts add up (psum). Nothing is sorted, and the only array of
the tile's size is the float32 estimate itself. The same code runs on CPU, GPU and TPU.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

THRESHOLDS = 16  # thresholds of each query per call of `Tile.count`
WINDOWS = 256  # windows per call of `Tile.window`
PICKS = 16_384  # pairs per call of `Tile.pick`
_GALLERY = "gallery"
_FOLD = 8  # parts of a row that are added before it is summed up: vectorises where a plain sum of a row does not
_MAX_SHARD = 32_000  # counts of a shard are packed in halves of an int32
_UNIT = 65_537  # one in both halves


def gallery_mesh(mesh: Mesh | None) -> Mesh:
    """The devices of `mesh` (by default one) on a single axis."""
    devices = np.array(jax.devices()[:1]) if mesh is None else mesh.devices.reshape(-1)
    return Mesh(devices, (_GALLERY,), axis_types=(AxisType.Auto,))


def unit_roundoff(mesh: Mesh) -> float:
    """u of a float32 product and sum on the mesh's devices at the highest precision."""
    # TPUs put a float32 product together from six bfloat16 ones, which costs the last bits.
    return 2.0**-20 if mesh.devices.flat[0].platform == "tpu" else 2.0**-24


def block_sizes(
    num_query: int, num_gallery: int, mesh: Mesh, query_block: int | None, gallery_block: int | None
) -> tuple[int, int]:
    """Rows per block: even shares near the wanted sizes, and the gallery's a multiple of what a tile needs."""
    accelerator = mesh.devices.flat[0].platform != "cpu"
    query_block = query_block or (2048 if accelerator else 512)
    gallery_block = gallery_block or (32_000 if accelerator else 8192) * mesh.size
    return _share(num_query, query_block, 16), _share(
        num_gallery, min(gallery_block, _MAX_SHARD * mesh.size), _FOLD * mesh.size
    )


def _share(count: int, block: int, multiple: int) -> int:
    """Rows of a block when `count` rows are cut into equal blocks of about `block`, a multiple of `multiple`."""
    blocks = math.ceil(count / block)
    return math.ceil(count / blocks / multiple) * multiple


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one side on the devices: factor [n, K], offset [n] (gallery only), person and drop codes int32 [n]."""

    factor: jax.Array
    offset: jax.Array | None
    person: jax.Array
    drop: jax.Array


class Tile:
    """Estimates of all pairs of a query and a gallery block, on the devices; calls return before they are done.

    The estimate of a pair is gallery.offset - query.factor . gallery.factor, and infinite where the gallery item is
    hidden: of the query's person, or with its drop code, or padding.
    """

    def __init__(self, query: Rows, gallery: Rows, mesh: Mesh):
        self._run = _programs(mesh)
        self._estimate = self._run.estimate(
            query.factor, query.person, query.drop, gallery.factor, gallery.offset, gallery.person, gallery.drop
        )

    def count(self, low: np.ndarray, high: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """int32 [B, THRESHOLDS] twice: estimates below `low` and estimates up to `high`, float32 [B, THRESHOLDS]."""
        return self._run.count(self._estimate, low, high)

    def reach(self, high: np.ndarray) -> jax.Array:
        """uint8 [B, gallery block / 8], packed bits: estimates up to a row's `high`, float32 [B]."""
        return self._run.reach(self._estimate, high)

    def pick(self, row: np.ndarray, item: np.ndarray) -> jax.Array:
        """float32 [PICKS], the estimates at int32 [PICKS] rows and columns."""
        return self._run.pick(self._estimate, row, item)

    def window(self, row: np.ndarray, low: np.ndarray, high: np.ndarray) -> jax.Array:
        """uint8 [WINDOWS, gallery block / 8], packed bits: low <= estimate <= high in a query's row of the tile.

        Args:
            row: int32 [WINDOWS], in 0..B-1.
            low: float32 [WINDOWS].
            high: float32 [WINDOWS]; a window with high < low is empty.
        """
        return self._run.window(self._estimate, row, low, high)


def put_query(factor: np.ndarray, person: np.ndarray, drop: np.ndarray, mesh: Mesh) -> Rows:
    """Query rows on each device; codes are int32 [B]."""
    placed = (_put(array, mesh, P()) for array in (factor, person, drop))
    factor_, person_, drop_ = placed
    return Rows(factor_, None, person_, drop_)


def put_gallery(factor: np.ndarray, offset: np.ndarray, person: np.ndarray, drop: np.ndarray, mesh: Mesh) -> Rows:
    """Gallery rows spread over the devices; rows with an infinite offset are padding."""
    return Rows(*(_put(array, mesh, P(_GALLERY)) for array in (factor, offset, person, drop)))


def _put(array: np.ndarray, mesh: Mesh, spec: P) -> jax.Array:
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])


@dataclasses.dataclass(frozen=True)
class _Programs:
    estimate: Callable
    count: Callable
    reach: Callable
    pick: Callable
    window: Callable


@functools.lru_cache(maxsize=8)
def _programs(mesh: Mesh) -> _Programs:
    """The compiled programs of one mesh."""

    def compiled(function: Callable, inputs: tuple, outputs: P | tuple) -> Callable:
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs))

    query, rows, tile = P(), P(_GALLERY), P(None, _GALLERY)
    return _Programs(
        estimate=compiled(_estimate, (query, query, query, rows, rows, rows, rows), tile),
        count=compiled(_count, (tile, query, query), (query, query)),
        reach=compiled(_reach, (tile, query), tile),
        pick=compiled(_pick, (tile, query, query), query),
        window=compiled(_window, (tile, query, query, query), tile),
    )


def _estimate(query, query_person, query_drop, gallery, offset, gallery_person, gallery_drop):
    """float32 [B, shard]."""
    product = jax.lax.dot_general(query, gallery, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
    hidden = (query_person[:, None] == gallery_person[None]) | (query_drop[:, None] == gallery_drop[None])
    return jnp.where(hidden, jnp.inf, offset[None] - product)


def _count(estimate, low, high):
    """`Tile.count`; one pass over the shard per threshold, with both counts packed in one int32."""
    folded = estimate.reshape(len(estimate), _FOLD, -1)

    def one(threshold):
        below, above = threshold[0][:, None], threshold[1][:, None]
        parts = (folded[:, part] for part in range(_FOLD))
        counts = (jnp.where(part < below, _UNIT, (part <= above).astype(jnp.int32)) for part in parts)
        packed = functools.reduce(jnp.add, counts)
        return packed.sum(1)

    packed = jax.lax.map(one, (low.T, high.T)).T
    return jax.lax.psum((packed >> 16, packed & 0xFFFF), _GALLERY)


def _reach(estimate, high):
    """`Tile.reach`, of one shard."""
    return jnp.packbits(estimate <= high[:, None], axis=1)


def _pick(estimate, row, item):
    """`Tile.pick`; every pair is in one shard only."""
    width = estimate.shape[1]
    item = item - jax.lax.axis_index(_GALLERY) * width
    here = (item >= 0) & (item < width)
    return jax.lax.psum(jnp.where(here, estimate[row, jnp.where(here, item, 0)], 0.0), _GALLERY)


def _window(estimate, row, low, high):
    """`Tile.window`, of one shard."""
    values = estimate[row]
    return jnp.packbits((values >= low[:, None]) & (values <= high[:, None]), axis=1)
