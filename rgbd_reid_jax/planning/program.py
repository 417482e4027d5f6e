"""The training step of a stage, compiled from shapes: neither data, weights nor the devices themselves are needed.

It is the step that a run compiles (`stages.step`, `training.loop.compiled_step`) for arrays that lie as a run's do.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from rgbd_reid_jax.core.errors import InputError, out_of_memory
from rgbd_reid_jax.core.mesh import batch_sharding, check_batch, make_mesh, replicated, shardings
from rgbd_reid_jax.core.modalities import BOTH, MODALITIES
from rgbd_reid_jax.data.dataset import dataset_config
from rgbd_reid_jax.data.frames import NOWHERE, Placed
from rgbd_reid_jax.data.pipeline import ROWS
from rgbd_reid_jax.data.records import IMAGE_TYPES
from rgbd_reid_jax.models.pair import embedding_width
from rgbd_reid_jax.planning.hlo import Collective, axes_of, collectives
from rgbd_reid_jax.planning.topology import Slice
from rgbd_reid_jax.stages.settings import Settings
from rgbd_reid_jax.stages.step import StageStep, abstract_variables, parted, preparation, stage_step
from rgbd_reid_jax.training.loop import compiled_step
from rgbd_reid_jax.training.state import create_state

_FOLDER_PEOPLE, _UNKNOWN_FRAMES = 100, 10_000


@dataclasses.dataclass(frozen=True)
class Data:
    """What a plan takes the training split to be.

    Attributes:
        identities: people.
        frames: of which `cache="device"` keeps the images on each device, and a bank has a row for each.
        height: of the stored images, pixels.
        width: likewise.
        words: where identities and frames are from.
    """

    identities: int
    frames: int
    height: int
    width: int
    words: str


def assumed_data(settings: Settings, identities: int = 0, frames: int = 0) -> Data:
    """The training split as the dataset's documentation has it; numbers above 0 take the place of its own."""
    wanted = settings.dataset
    config = dataset_config(wanted.name, wanted.config, wanted.overrides())
    people, count, words = _FOLDER_PEOPLE, _UNKNOWN_FRAMES, "assumed, as nothing is known of these data"
    if wanted.name == "synthetic_rgbd":
        people, count, words = config.people("train"), config.num_frames("train"), "its config"
    elif wanted.name == "biwi_rgbd_id":
        people = 32 if config.identities == "clothes" else 21
        count, words = 9_298, "its published split; the frames of the largest fold"
    elif wanted.name == "robotpku_rgbd_id":
        people, words = 40, "its published split; the number of frames is assumed"
    elif wanted.name == "tvrid":
        people = 62 - round(62 * config.validation_share)
        words = "its 62 training people less those who validate; the number of frames is assumed"
    if identities or frames:
        people, count, words = identities or people, frames or count, "as given, else " + words
    return Data(people, count, config.height, config.width, words)


def lacking(settings: Settings, stage: str, batch: int, data: Data) -> str:
    """What a run does with a batch that its training split is too small for (`data.sampling`); "" where it is not."""
    sampling = settings.training[stage].sampling
    if sampling.name == "shuffle":
        return f"a run refuses {batch:,} rows of {data.frames:,} frames" if batch > data.frames else ""
    people = -(-batch // sampling.frames)
    drawn = f"{people:,} people times {sampling.frames:,} frames"
    if people > data.identities:
        return f"a run refuses {drawn} of {data.identities:,} people"
    if sampling.frames * data.identities > data.frames:
        return (
            f"a run repeats frames: it draws {drawn}, and a person has {data.frames / data.identities:,.0f} on average"
        )
    return ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step, per device.

    Attributes:
        batch: rows of the global batch.
        images: in it; a row of a stage that sees both modalities is two.
        devices: that share it.
        mesh: axes and their lengths.
        arguments: bytes of state, batch and whatever else the step is given.
        temporaries: bytes that it needs besides, and those of results that lie nowhere in its arguments.
        code: bytes of the program itself, where the compiler tells.
        peak: bytes needed at once: the sum of these three.
        host: bytes of the batch that come from the host.
        micro_batches: turns of the loop over parts of the batch. XLA counts a loop's body once, so its FLOPs and bytes
            are taken this many times: a little too much, as what stands outside the loop is then too.
        flops: floating-point operations as XLA counts them.
        accessed: bytes read and written as XLA counts them.
        collectives: of the program.
        seconds: that it took to compile.
    """

    batch: int
    images: int
    devices: int
    mesh: dict[str, int]
    arguments: int
    temporaries: int
    code: int
    peak: int
    host: int
    micro_batches: int
    flops: float
    accessed: float
    collectives: list[Collective]
    seconds: float

    def axis(self, one: Collective) -> str:
        """The mesh axes that a collective runs along."""
        return axes_of(one.groups, self.mesh)


class TooLarge(Exception):
    """A step needs more memory than its devices have; the text is the compiler's."""


def compile_step(settings: Settings, stage: str, where: Slice, batch: int, data: Data) -> tuple[Program, Slice]:
    """Compiles a training stage's step.

    Args:
        settings: of the run.
        stage: a training stage.
        where: the devices.
        batch: rows of the global batch, whatever the settings say.
        data: the training split.

    Returns:
        The program, and `where` with its devices in the order of the mesh, which the program's collectives speak of.

    Raises:
        InputError: the devices do not divide the batch, or `mesh.fsdp` does not divide them.
        TooLarge: the compiler says that the memory is too small.
    """
    mesh = make_mesh(settings.mesh.fsdp, where.devices)
    parts = settings.training[stage].micro_batches
    check_batch(batch, mesh, f"training.{stage}.batch_size", parts)
    step = stage_step(settings, stage, data.identities)
    state, rows, placed, given, fixed, running = step_arguments(settings, stage, step, mesh, batch, data)
    began = time.perf_counter()
    try:
        function = compiled_step(step.objective(running), step.optimizer, state, mesh)
        compiled = function.lower(state, rows, placed, given, fixed).compile()
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        raise TooLarge(_why(error)) from error
    seconds = time.perf_counter() - began
    text, memory, cost = compiled.as_text() or "", compiled.memory_analysis(), compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    extra = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries, code = memory.temp_size_in_bytes + extra, memory.generated_code_size_in_bytes
    total = memory.argument_size_in_bytes + temporaries + code
    images = batch * (len(MODALITIES) if settings.training[stage].modality == BOTH else 1)
    host = sum(leaf.size * leaf.dtype.itemsize for leaf in rows.values()) // mesh.size
    program = Program(
        batch=batch,
        images=images,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        arguments=memory.argument_size_in_bytes,
        temporaries=temporaries,
        code=code,
        peak=total,
        host=host,
        micro_batches=parts,
        flops=parts * float(cost.get("flops", 0.0)),
        accessed=parts * float(cost.get("bytes accessed", 0.0)),
        collectives=collectives(text, mesh.size),
        seconds=seconds,
    )
    return program, dataclasses.replace(where, devices=list(mesh.devices.flat))


def step_arguments(
    settings: Settings, stage: str, step: StageStep, mesh: jax.sharding.Mesh, batch: int, data: Data
) -> tuple[Any, dict[str, Any], Placed, Any, Any, frozenset[str]]:
    """Shapes of what a run calls its step with, as they lie on its devices.

    Returns:
        State, batch, images on the devices, what is given beside them, what is prepared from frozen kernels, and the
        batch norms that keep their statistics.
    """
    params, batch_stats = abstract_variables(settings, stage, data.identities)
    trainable, frozen, running = parted(settings.training[stage], params)

    def create(trainable: Any, frozen: Any, batch_stats: Any) -> Any:
        return create_state(jax.random.key(0), trainable, frozen, batch_stats, step.optimizer)

    state = jax.eval_shape(create, trainable, frozen, batch_stats)
    state = jax.tree.map(_placed_as, state, shardings(state, mesh))
    rows, whole = batch_sharding(mesh), replicated(mesh)
    width = embedding_width(step.network)

    def of(shape: tuple[int, ...], dtype: Any, sharding: Any = rows) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    columns = {"identity": of((batch,), jnp.int32), "target": of((batch, width), jnp.float32)}
    given = {"bank": of((data.frames, width), jnp.float32, whole)}

    def prepared(name: str, frozen: Any, *weights: Any) -> Any:
        prepare = preparation(settings, step, settings.training[name].modality, frozen, mesh)
        return jax.eval_shape(prepare, *weights) if prepare else {}

    def everywhere(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: of(leaf.shape, leaf.dtype, whole), tree)

    if "teacher" in step.given:
        teacher = abstract_variables(settings, "teacher", data.identities)
        more = prepared("teacher", teacher[0], *teacher)
        given["teacher"] = everywhere(({**teacher[0], **more}, teacher[1]))
    found = {name: columns[name] for name in step.columns}
    placed = NOWHERE
    sizes = {name: (data.height, data.width, IMAGE_TYPES[name][1]) for name in step.images}
    if settings.dataset.cache == "device":
        found[ROWS] = of((batch, 2), jnp.int32)
        flat = {name: (data.frames, size[0] * size[1] * size[2]) for name, size in sizes.items()}
        arrays: Any = {name: of(shape, IMAGE_TYPES[name][0], whole) for name, shape in flat.items()}
        placed = Placed(arrays, tuple(sizes.items()))
    else:
        found |= {name: of((batch, *size), IMAGE_TYPES[name][0]) for name, size in sizes.items()}
    fixed = everywhere(prepared(stage, frozen, params, batch_stats))
    return state, found, placed, {name: given[name] for name in step.given}, fixed, running


def _placed_as(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _why(error: Exception) -> str:
    """The sentence of a compiler's message that says how much is needed."""
    text = " ".join(str(error).split())
    for mark in ("Ran out of memory", "Used "):
        if mark in text:
            return text[text.index(mark) :].split(". ")[0][:200]
    return text[:200]


def batch_unit(settings: Settings, stage: str, devices: int) -> int:
    """What every global batch of a stage is a multiple of: its devices, micro-batches and norm groups divide it."""
    wanted = settings.training[stage]
    return wanted.micro_batches * math.lcm(devices, wanted.norm_groups)


def share_of(settings: Settings, stage: str, share: int) -> Settings:
    """Settings of an n-th of a stage's devices, which do an n-th of its work.

    What batch norm takes together stays as large if n divides `norm_groups`; else it is all of the share.
    """
    wanted = settings.training[stage]
    groups = 1 if wanted.norm_groups % share else wanted.norm_groups // share
    wanted = dataclasses.replace(wanted, norm_groups=groups)
    return dataclasses.replace(settings, training={**settings.training, stage: wanted})


def least_batch(settings: Settings, stage: str) -> int:
    """The fewest rows of a global batch: parts that are normalised by themselves have two each."""
    parts = settings.training[stage].micro_batches * settings.training[stage].norm_groups
    return 2 * parts if parts > 1 else 1


def whole_batches(settings: Settings, stage: str, where: Slice, per_chip: int) -> int:
    """The global batch of `per_chip` rows a chip.

    Raises:
        InputError: micro-batches do not divide them.
    """
    parts = settings.training[stage].micro_batches
    if per_chip < 1 or per_chip % parts:
        raise InputError(f"--batch_per_chip={per_chip} is no positive multiple of {parts} micro-batches; choose one")
    return per_chip * len(where.devices)
