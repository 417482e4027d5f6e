"""Which frames make up the batch of a step: pure functions of (seed, step), so a run can go on at any step at once.

- `shuffle`: each epoch is a permutation of all frames, cut into batches.
- `pk`: P people times K frames of each, what losses over pairs and triplets need (FaceNet, arXiv:1503.03832; In
  Defense of the Triplet Loss, arXiv:1703.07737). Epochs are permutations of the people, so all come equally often,
  and the P people of a batch are different ones. A person's K frames are drawn without replacement; who has fewer
  gives each frame as often as the others, or once more.
- `pk_cross_camera`: as `pk`, the K frames spread as evenly over the person's cameras as these have frames.
- `pk_cross_modal`: each row is an RGB image and a depth image of one person: of different instants if the person
  has such a pair, and of different cameras if the person has a depth image of another camera than the RGB image's.

The batch is the global one: each process takes its rows of it, so their number changes nothing. Random numbers come
from numpy's Philox, keyed by (seed, what is drawn, epoch or step).
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence

import grain
import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.frames import MODALITY_BITS

_PEOPLE, _FRAMES, _ALL = 1, 2, 3  # streams of random numbers
_STEPS = sys.maxsize


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a stage draws its batches.

    Attributes:
        name: a key of `SAMPLERS`.
        people: P, different people in a batch; `shuffle` ignores it.
        frames: K, rows of each; `shuffle` ignores it.
    """

    name: str = "shuffle"
    people: int = 16
    frames: int = 4


SHUFFLE = Sampling()


def batch_rows(
    sampling: Sampling, labels: Mapping[str, np.ndarray], batch_size: int, seed: int
) -> grain.MapDataset[np.ndarray]:
    """The rows of every step's global batch.

    Args:
        sampling: how.
        labels: `person_id`, `camera_id`, `recording_id`, `frame_id` and `modalities` of the frames, int [N].
        batch_size: B; P K for all but `shuffle`.
        seed: of the draws, 0 <= seed < 2**32.

    Returns:
        A Grain dataset without end; element `step` is int64 [B, 2]: the frames of the RGB and of the depth images,
        which differ in `pk_cross_modal` alone.

    Raises:
        InputError: there are fewer frames than rows, or fewer people than P.
    """
    if sampling.name == "shuffle":
        count = len(labels["person_id"])
        if batch_size > count:
            raise InputError(f"batch_size={batch_size} exceeds the {count} training frames; choose a smaller one")
        return grain.MapDataset.range(_STEPS).map(_Shuffled(count, batch_size, seed))
    draw = SAMPLERS[sampling.name]
    assert draw is not None, "shuffle is done"
    assert batch_size == sampling.people * sampling.frames, "settings check it"
    return grain.MapDataset.range(_STEPS).map(_PeopleAndFrames(sampling, labels, seed, draw))


def usable(sampling: Sampling, labels: Mapping[str, np.ndarray], modalities: Sequence[str]) -> np.ndarray:
    """bool [N]: the frames that may be drawn for a network that sees `modalities`.

    A row holds one frame, which needs all of them; in `pk_cross_modal` any one is enough, but of people that have both.
    """
    there = np.stack([labels["modalities"] & MODALITY_BITS[modality] != 0 for modality in modalities])
    if sampling.name != "pk_cross_modal":
        return np.logical_and.reduce(there)
    complete = [set(labels["person_id"][one]) for one in there]
    return np.logical_or.reduce(there) & np.isin(labels["person_id"], sorted(set.intersection(*complete)))


def people_of_step(seed: int, count: int, per_batch: int, step: int) -> np.ndarray:
    """Who is in the batch of a step: int64 [P], different numbers below `count`.

    Batches follow one another through permutations of all people. Where a batch crosses into the next permutation,
    that one starts with people who are not in the batch yet. After P / gcd(C, P) permutations a batch ends where a
    permutation does: such a round is drawn at once, whatever step of it is asked for.
    """
    batches = count // math.gcd(count, per_batch)
    place = step % batches * per_batch
    return _round_of_people(seed, count, per_batch, step // batches)[place : place + per_batch]


@functools.lru_cache(maxsize=4)
def _round_of_people(seed: int, count: int, per_batch: int, number: int) -> np.ndarray:
    random = _random(seed, _PEOPLE, number)
    order = np.empty(0, np.int64)
    for _ in range(per_batch // math.gcd(count, per_batch)):
        people = random.permutation(count)
        begun = order[len(order) // per_batch * per_batch :]  # the batch that the last permutation left open
        again = np.isin(people, begun)
        others, met = people[~again], people[again]
        head = per_batch - len(begun) if len(begun) else 0
        order = np.concatenate([order, others[:head], random.permutation(np.concatenate([others[head:], met]))])
    order.flags.writeable = False
    return order


def spread(random: np.random.Generator, groups: np.ndarray, count: int) -> np.ndarray:
    """`count` items, as evenly over their groups as these allow.

    Args:
        random: of the choice.
        groups: int [n], the group of each item.
        count: how many.

    Returns:
        int64 [count] below n: taken in turn from the groups until they are empty; without repetition where
        `count` <= n, else no item more than once oftener than another.
    """
    order = random.permutation(len(groups))
    _, group = np.unique(groups[order], return_inverse=True)
    turn = np.empty(len(order), np.int64)  # how many of its own group come before an item
    by_group = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    turn[by_group] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = random.permutation(len(sizes))[group]
    return np.resize(order[np.lexsort((place, turn))], count)


class _Shuffled(grain.transforms.Map):
    """The rows of the step that it is called with: permutations of all frames in a row, cut into batches."""

    def __init__(self, count: int, batch_size: int, seed: int):
        self._count, self._batch_size, self._seed = count, batch_size, seed

    def map(self, element: int) -> np.ndarray:
        epoch, begin = divmod(int(element) * self._batch_size, self._count)
        rows = _epoch(self._seed, self._count, epoch)[begin : begin + self._batch_size]
        if len(rows) < self._batch_size:
            following = _epoch(self._seed, self._count, epoch + 1)[: self._batch_size - len(rows)]
            rows = np.concatenate([rows, following])
        return _same_frame(rows)


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, count: int, number: int) -> np.ndarray:
    order = _random(seed, _ALL, number).permutation(count)
    order.flags.writeable = False
    return order


class _PeopleAndFrames(grain.transforms.Map):
    """The rows of P people, K each, of the step that it is called with."""

    def __init__(self, sampling: Sampling, labels: Mapping[str, np.ndarray], seed: int, draw: "Draw"):
        people, person = np.unique(labels["person_id"], return_inverse=True)
        if sampling.people > len(people):
            raise InputError(
                f"sampling.people={sampling.people} exceeds the {len(people)} people with training frames; choose "
                "fewer, and batch_size=people x frames (rgbd_reid_jax.data.check prints flags that fit)"
            )
        order = np.argsort(person, kind="stable")
        self._frames = np.split(order, np.cumsum(np.bincount(person))[:-1])
        self._sampling, self._labels, self._seed, self._draw = sampling, dict(labels), seed, draw

    def map(self, element: int) -> np.ndarray:
        count = self._sampling.frames
        people = people_of_step(self._seed, len(self._frames), self._sampling.people, int(element))
        random = _random(self._seed, _FRAMES, int(element))
        rows = []
        for person in people:
            frames = self._frames[person]
            labels = {name: column[frames] for name, column in self._labels.items()}
            rows.append(frames[self._draw(random, labels, count)])
        return np.concatenate(rows)


Draw = Callable[[np.random.Generator, Mapping[str, np.ndarray], int], np.ndarray]
"""(random numbers, labels [n] of one person's frames, K) to int64 [K, 2]: the frames of RGB and depth images."""


def _any_frames(random: np.random.Generator, labels: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    return _same_frame(spread(random, np.zeros_like(labels["camera_id"]), count))


def _of_all_cameras(random: np.random.Generator, labels: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    return _same_frame(spread(random, labels["camera_id"], count))


def _of_both_modalities(random: np.random.Generator, labels: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Spread over cameras in both modalities; each RGB image takes the best depth image, of equals the least used."""
    camera, instant = labels["camera_id"], np.stack([labels["recording_id"], labels["frame_id"]])
    rgb, depth = (np.flatnonzero(labels["modalities"] & bit) for bit in MODALITY_BITS.values())
    rgb = rgb[spread(random, camera[rgb], count)]
    depth = depth[spread(random, camera[depth], len(depth))]
    uses = np.zeros(len(depth), np.int64)
    chosen = []
    for frame in rgb:
        twin = (instant[:, depth] == instant[:, [frame]]).all(axis=0)
        best = np.lexsort((uses, camera[depth] == camera[frame], twin))[0]  # stable: else in the order of the spread
        uses[best] += 1
        chosen.append(depth[best])
    return np.stack([rgb, chosen], axis=1)


SAMPLERS: Mapping[str, Draw | None] = {
    "shuffle": None,
    "pk": _any_frames,
    "pk_cross_camera": _of_all_cameras,
    "pk_cross_modal": _of_both_modalities,
}


def _same_frame(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows, rows], axis=1)


def _random(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
