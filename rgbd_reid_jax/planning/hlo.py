"""Collectives of a compiled program, read from its HLO text.

A collective is counted where it stands: in the entry computation, in the loop or branch that calls it, or in the
computation that an asynchronous pair or a fusion wraps. A loop whose number of turns XLA knows multiplies it. A TPU's
program repeats an asynchronous collective in every fusion that runs beside it, with the channel of its start: it is
counted once.

Bytes are those of the whole array as the mathematics has it: what an all-reduce sums, what an all-gather returns, what
a reduce-scatter reads; of a combined (tuple) collective, all its arrays together. How much of it goes through each
link is for `planning.roofline`.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

_OPS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "ragged-all-to-all",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>[^\"%]*?) (?P<op>" + "|".join(_OPS) + r")(?P<half>-start)?\("
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(
    r"(?P<how>body|condition|calls|to_apply|true_computation|false_computation)=%?(?P<name>[\w.\-]+)"
    r"|branch_computations=\{(?P<names>[^}]*)\}"
)
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_IOTA = r"\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?"
_MESH = r"mesh\[(?P<axes>[^\]]*)\](?:, ?device_ids=\((?P<ids>[^()]*(?:\([\d,]*\))?)\))? ?\{(?P<used>[^}]*)\}"
_GROUPS = re.compile(rf"replica_groups=(\{{\}}|\{{\{{[\d,{{}} ]*\}}\}}|{_IOTA}|{_MESH})")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")
_ORIGIN = re.compile(r'op_name="([^"]*)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_START = 'custom_call_target="AsyncCollectiveStart"'
_SCATTERED = "all-reduce-scatter"  # how a TPU's program names the fusion of an all-reduce with the slice of each device


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that all devices execute together.

    Attributes:
        op: "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", ...
        dtypes: element types of its arrays, each once.
        arrays: how many arrays it combines.
        size: bytes of the whole arrays (module docstring).
        groups: devices that exchange, by their position in the mesh; of a permute, the chains of its pairs.
        asynchronous: other work may go on between its start and its end.
        turns: times that it is executed in a step.
        turns_known: False where it stands in a loop of unknown length.
        origin: the operation of the model that it stems from, as JAX names it; "" where unknown.
    """

    op: str
    dtypes: tuple[str, ...]
    arrays: int
    size: int
    groups: tuple[tuple[int, ...], ...]
    asynchronous: bool = False
    turns: int = 1
    turns_known: bool = True
    origin: str = ""


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a program.

    Args:
        text: HLO of a compiled program, `jax.stages.Compiled.as_text()`.
        devices: that it is partitioned for; those of a collective without groups.
    """
    computations, entry = _computations(text)
    times, unknown, wrapped = _times(computations, entry)
    started = {name: _channels(lines) for name, lines in computations.items() if any(_START in line for line in lines)}
    repeated = set().union(*started.values())
    found = []
    for name, lines in computations.items():
        if not times.get(name):
            continue
        for line in lines:
            one = _collective(line, devices)
            if one is None or (name not in started and _channels([line]) & repeated):
                continue
            if name.startswith(_SCATTERED) and one.op == "all-reduce":
                one = dataclasses.replace(one, op="reduce-scatter")
            asynchronous = one.asynchronous or name in wrapped or name in started
            known = name not in unknown
            found.append(dataclasses.replace(one, turns=times[name], turns_known=known, asynchronous=asynchronous))
    return found


def _channels(lines: Sequence[str]) -> set[str]:
    """Channels of some instructions."""
    return {channel for line in lines for channel in _CHANNEL.findall(line)}


def axes_of(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> str:
    """The mesh axes that a collective's groups run along: "data", "data+fsdp", or "other" for no whole axes.

    Args:
        groups: devices by their position in the mesh, row by row.
        mesh: axes and their lengths.
    """
    names = [name for name, length in mesh.items() if length > 1]
    wanted = {frozenset(group) for group in groups}
    places = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
    order = list(mesh)
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            fixed = [axis for axis, name in enumerate(order) if name not in chosen]
            moved = [axis for axis, name in enumerate(order) if name in chosen]
            size = math.prod(mesh[name] for name in chosen)
            rows = places.transpose(*fixed, *moved).reshape(-1, size)
            if {frozenset(row.tolist()) for row in rows} == wanted:
                return "+".join(chosen)
    return "other"


def array_sizes(shape: str) -> list[tuple[str, int]]:
    """(element type, bytes) of each array of an HLO shape such as "(f32[2,3]{1,0}, bf16[])"."""
    found = []
    for dtype, dimensions in _ARRAY.findall(shape):
        count = math.prod(int(size) for size in dimensions.split(",") if size)
        found.append((dtype, math.ceil(count * _bits(dtype) / 8)))
    return found


def _bits(dtype: str) -> int:
    if dtype in ("pred",):
        return 8
    width = re.search(r"\d+", dtype)
    return int(width[0]) if width else 0  # a token has no size


def replica_groups(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Groups of devices from any of HLO's forms.

    - "{{0,1},{2,3}}": as they are; "{}": all devices.
    - "[2,4]<=[4,2]T(1,0)": the numbers from 0 in the shape [4,2], transposed, then reshaped to 2 groups of 4.
    - "mesh['a'=2,'b'=4] {'b'}": those that differ along the axis b alone; "'b':(2)2" is a part of an axis, of length 2
      with 2 before it. A mesh may name its devices: "mesh['a'=8], device_ids=([2,4]T(1,0)) {'a'}".
    """
    if text.startswith("mesh"):
        return _mesh_groups(text)
    if text.startswith("["):
        shape, _, source = text.partition("<=")
        groups, *rest = _numbers(shape)
        return tuple(map(tuple, _iota(source).reshape(groups, math.prod(rest)).tolist()))
    found = tuple(_numbers(group) for group in re.findall(r"\{([\d, ]+)\}", text))
    return found or (tuple(range(devices)),)


def _iota(text: str) -> np.ndarray:
    """The numbers from 0 in the order of "[4,2]T(1,0)": in the shape [4,2], transposed."""
    source, _, order = text.partition("T")
    dimensions = _numbers(source)
    ids = np.arange(math.prod(dimensions)).reshape(dimensions)
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _mesh_groups(text: str) -> tuple[tuple[int, ...], ...]:
    match = re.fullmatch(_MESH, text)
    if not match:
        raise ValueError(f"replica groups of an unknown form: {text}")
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match["axes"])}
    used = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match["used"])
    lengths: list[int] = []
    moved: list[int] = []
    for name, size in axes.items():
        parts = sorted((int(before), int(length)) for one, before, length in used if one == name and length)
        begin = 1
        for before, length in parts:  # an axis of which parts are used is cut into them
            lengths += [before // begin, length]
            moved.append(len(lengths) - 1)
            begin = before * length
        lengths.append(size // begin)
        if not parts and any(one == name for one, *_ in used):
            moved.append(len(lengths) - 1)
    given = match["ids"] or f"[{math.prod(axes.values())}]"
    ids = _iota(given.rpartition("<=")[2]) if given.startswith("[") else np.array(_numbers(given))
    fixed = [axis for axis in range(len(lengths)) if axis not in moved]
    size = math.prod(lengths[axis] for axis in moved)
    return tuple(map(tuple, ids.reshape(lengths).transpose(*fixed, *moved).reshape(-1, size).tolist()))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _chains(pairs: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Devices that a permute's (source, target) pairs join."""
    group_of: dict[int, set[int]] = {}
    for source, target in pairs:
        joined = group_of.get(source, {source}) | group_of.get(target, {target})
        group_of.update(dict.fromkeys(joined, joined))
    return tuple(sorted({tuple(sorted(group)) for group in group_of.values()}))


def _collective(line: str, devices: int) -> Collective | None:
    """The collective of an instruction's line, executed once; None for other instructions."""
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    op, shape, started = match["op"], match["shape"], bool(match["half"])
    if started and op != "all-reduce":  # its shape is (operands, results, ...)
        shape = _second(shape)
    sizes = array_sizes(shape)
    pairs = _PAIRS.search(line)
    if pairs:
        groups = _chains([_numbers(pair) for pair in re.findall(r"\{([\d, ]+)\}", pairs[1])])
    else:
        given = _GROUPS.search(line)
        if not given and "replica_groups=" in line:
            raise ValueError(f"replica groups of an unknown form: {line.strip()[:200]}")
        groups = replica_groups(given[1] if given else "{}", devices)
    size = sum(one for _, one in sizes)
    if op == "reduce-scatter":
        size *= len(groups[0])
    origin = _ORIGIN.search(line)
    dtypes = tuple(dict.fromkeys(dtype for dtype, _ in sizes))
    return Collective(op, dtypes, len(sizes), size, groups, started, origin=origin[1] if origin else "")


def _second(shape: str) -> str:
    """The second member of a tuple shape; the shape itself where it is none."""
    shape = shape.strip()
    if not shape.startswith("("):
        return shape
    members, depth, begin = [], 0, 1
    for index, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            members.append(shape[begin:index])
            begin = index + 1
    return members[1] if len(members) > 1 else shape


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by name, and the name of the entry."""
    found: dict[str, list[str]] = {}
    entry, lines = "", None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head and not line.startswith((" ", "HloModule")):
            lines = found.setdefault(head["name"], [])
            entry = head["name"] if head["entry"] else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line)
    return found, entry


def _times(computations: Mapping[str, list[str]], entry: str) -> tuple[dict[str, int], set[str], set[str]]:
    """How often each computation is executed in a step, those for which it is not known, and the asynchronous ones."""
    times = dict.fromkeys(computations, 0)
    unknown: set[str] = set()
    wrapped: set[str] = set()

    def visit(name: str, count: int, known: bool, asynchronous: bool) -> None:
        times[name] += count
        unknown.update([] if known else [name])
        wrapped.update([name] if asynchronous else [])
        for line in computations[name]:
            turns = _TURNS.search(line)
            for call in _CALLED.finditer(line):
                looped = call["how"] in ("body", "condition")
                each = count * (int(turns[1]) if looped and turns else 1)
                certain = known and not (looped and not turns)
                apart = asynchronous or " async-start(" in line
                for called in [call["name"]] if call["name"] else re.findall(r"[\w.\-]+", call["names"]):
                    if called in computations:
                        visit(called, each, certain, apart)

    if entry:
        visit(entry, 1, True, False)
    return times, unknown, wrapped
