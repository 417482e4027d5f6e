"""Plans of training stages on slices: compiled programs and their times, one chip's beside it, the largest batch."""

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import jax

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.mesh import check_batch, make_mesh
from rgbd_reid_jax.core.progress import format_seconds, say
from rgbd_reid_jax.planning.attempt import GivenUp, compile_within
from rgbd_reid_jax.planning.measure import measured_chip
from rgbd_reid_jax.planning.program import (
    Data,
    Program,
    TooLarge,
    assumed_data,
    batch_unit,
    compile_step,
    lacking,
    least_batch,
    share_of,
    whole_batches,
)
from rgbd_reid_jax.planning.roofline import Times, step_times
from rgbd_reid_jax.planning.search import largest
from rgbd_reid_jax.planning.topology import Chip, Slice, find_slice
from rgbd_reid_jax.stages.settings import Settings

Made = tuple[Program, Slice] | TooLarge | GivenUp


@dataclasses.dataclass(frozen=True)
class Side:
    """A program and how long its step takes at least."""

    program: Program
    times: Times

    @property
    def speeds(self) -> tuple[float, float]:
        """Images per second: with no collective hidden, and with all."""
        return self.program.images / self.times.exposed, self.program.images / self.times.hidden


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What was found for one stage on one slice.

    Attributes:
        stage: its name.
        where: the slice, its devices in the order of the mesh.
        chip: what each device can do.
        data: what the training split is taken to be.
        lacking: what a run does with a batch that this split is too small for; "" where it is not.
        dtype: the network's `compute_dtype`.
        batch: rows of the global batch.
        found: the program; None where it does not fit.
        too_large: why it does not; "" where it does.
        single: one chip with as many rows a chip; None for a slice of one chip, or where that does not fit.
        bounds: rows of a global batch that fit, and fewest tried that do not; None where it was not looked for.
        given_up: whether of the latter it is only known that they had not compiled when the time for a try was over.
    """

    stage: str
    where: Slice
    chip: Chip
    data: Data
    lacking: str
    dtype: str
    batch: int
    found: Side | None
    too_large: str = ""
    single: Side | None = None
    bounds: tuple[int, int] | None = None
    given_up: bool = False

    @property
    def efficiency(self) -> tuple[float, float] | None:
        """One chip's step time over the slice's: with no collective hidden, and with all; None without one chip's."""
        if self.found is None or self.single is None:
            return None
        alone = self.single.times.on_chip
        return alone / self.found.times.exposed, alone / self.found.times.hidden


def versions() -> dict[str, str]:
    """Of what decides a compiled program."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Planner:
    """Makes plans; what several of them compare with is compiled once.

    Args:
        settings: of the run.
        identities: people of the training split; 0 takes the dataset's.
        frames: of the training split; 0 likewise.
        batch_per_chip: rows a chip in place of the settings' batch; 0 keeps that.
        look_for_largest: whether to look for the largest batch, which takes some more compilations.
        minutes: after which each of these is given up, for slices that are not there.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        identities: int = 0,
        frames: int = 0,
        batch_per_chip: int = 0,
        look_for_largest: bool = True,
        minutes: float = 20,
    ):
        self._settings, self._batch_per_chip, self._search = settings, batch_per_chip, look_for_largest
        self._minutes = minutes
        self._data = assumed_data(settings, identities, frames)
        self._dtype = settings.model.compute_dtype
        self._compiled: dict[tuple[str, str, int, int], Made] = {}

    def check(self, stages: Sequence[str], slices: Sequence[Slice]) -> None:
        """Raises InputError for what could not be compiled anyway, before anything is."""
        for where in slices:
            mesh = make_mesh(self._settings.mesh.fsdp, where.devices)
            for stage in stages:
                wanted, batch = self._settings.training[stage], self._batch(stage, where)
                check_batch(batch, mesh, f"training.{stage}.batch_size", wanted.micro_batches)
                parts = wanted.micro_batches * wanted.norm_groups
                if batch % parts:
                    raise InputError(
                        f"--batch_per_chip={self._batch_per_chip}: {batch} rows do not divide into micro_batches x "
                        f"norm_groups = {parts} parts; choose another number"
                    )

    def plan(self, stage: str, where: Slice) -> StagePlan:
        """The plan of one stage on one slice."""
        chip = where.chip or measured_chip(where.devices, self._dtype)
        batch = self._batch(stage, where)
        made = self._compile(stage, where, batch)
        short = lacking(self._settings, stage, batch, self._data)
        plan = StagePlan(stage, where, chip, self._data, short, self._dtype, batch, None)
        if isinstance(made, tuple):
            plan = dataclasses.replace(plan, found=self._side(made, chip), where=made[1])
            if len(where.devices) > 1:
                alone = self._compile(stage, where.single(), batch // len(where.devices), len(where.devices))
                single = self._side(alone, chip) if isinstance(alone, tuple) else None
                plan = dataclasses.replace(plan, single=single)
        else:
            plan = dataclasses.replace(plan, too_large=str(made))
        if self._search and chip.memory:
            bounds = self._bounds(stage, where, chip, plan)
            given_up = isinstance(self._compiled.get(self._key(self._settings, stage, where, bounds[1])), GivenUp)
            plan = dataclasses.replace(plan, bounds=bounds, given_up=given_up)
        return plan

    def _batch(self, stage: str, where: Slice) -> int:
        if self._batch_per_chip:
            return whole_batches(self._settings, stage, where, self._batch_per_chip)
        return self._settings.training[stage].batch_size

    def _side(self, made: tuple[Program, Slice], chip: Chip) -> Side:
        program, where = made
        times = step_times(program.flops, program.accessed, program.collectives, where, chip, self._dtype)
        return Side(program, times)

    def _key(self, settings: Settings, stage: str, where: Slice, batch: int) -> tuple[str, str, int, int]:
        return stage, f"{where.name} {len(where.devices)}", batch, settings.training[stage].norm_groups

    def _compile(self, stage: str, where: Slice, batch: int, share: int = 1, *, limited: bool = False) -> Made:
        """A stage's program; with a `share` of n, of one chip that does an n-th of a slice's work."""
        settings = self._settings
        if share > 1:
            mesh = dataclasses.replace(settings.mesh, fsdp=1)
            settings = dataclasses.replace(share_of(settings, stage, share), mesh=mesh)
        key = self._key(settings, stage, where, batch)
        if key not in self._compiled:
            say("plan", f"compiles stage {stage}, {batch} rows, for {where.name} ({len(where.devices)} devices)")
            try:
                if limited:
                    made = compile_within(self._minutes, settings, stage, where.name, batch, self._data), where
                else:
                    made = compile_step(settings, stage, where, batch, self._data)
                say("plan", f"compiled in {format_seconds(made[0].seconds)}, {made[0].peak / 1e9:.2f} GB a device")
                self._compiled[key] = made
            except TooLarge as error:
                say("plan", f"does not fit: {error}")
                self._compiled[key] = error
            except GivenUp as error:
                say("plan", f"not compiled in {self._minutes:g} min: given up")
                self._compiled[key] = error
        return self._compiled[key]

    def _bounds(self, stage: str, where: Slice, chip: Chip, plan: StagePlan) -> tuple[int, int]:
        """Rows of the largest global batch that was found to fit, and of the smallest that was found not to."""
        limit = chip.memory
        assert limit is not None, "asked for where the memory is known"
        unit = batch_unit(self._settings, stage, len(where.devices))

        def fits(batch: int) -> bool:
            made = self._compile(stage, where, batch, limited=not where.attached)
            return isinstance(made, tuple) and made[0].peak <= limit

        start = plan.batch if plan.found is not None and plan.found.program.peak <= limit else 0
        guess = plan.batch
        if plan.found is not None:  # what grows with the batch is all but the arguments and the program
            program = plan.found.program
            fixed = program.arguments + program.code
            guess = int(plan.batch * (limit - fixed) / max(program.peak - fixed, 1))
        return largest(fits, unit, start, guess, least_batch(self._settings, stage))


def make_plans(planner: Planner, stages: Sequence[str], topologies: Sequence[str]) -> list[StagePlan]:
    """Plans of stages on slices.

    Raises:
        InputError: an unknown topology, or devices that a stage's batch or `mesh.fsdp` does not suit.
    """
    slices = [find_slice(name) for name in topologies]
    planner.check(stages, slices)
    return [planner.plan(stage, where) for stage in stages for where in slices]


def as_json(plan: StagePlan) -> dict[str, Any]:
    """All of a plan as plain values; seconds, bytes, images per second, fractions of 1."""

    def side(one: Side | None) -> dict[str, Any] | None:
        if one is None:
            return None
        program = dataclasses.asdict(one.program)
        collectives = []
        for each in one.program.collectives:
            groups = {"groups": len(each.groups), "devices": len(each.groups[0]), "axis": one.program.axis(each)}
            collectives.append({**dataclasses.asdict(each), **groups})
        times = {**dataclasses.asdict(one.times), "interconnect": one.times.interconnect, "binds": one.times.binds}
        times |= {"step_exposed": one.times.exposed, "step_hidden": one.times.hidden}
        return {**program, "collectives": collectives, "times": times, "images_per_s": list(one.speeds)}

    return {
        "stage": plan.stage,
        "topology": plan.where.name,
        "devices": len(plan.where.devices),
        "chip": dataclasses.asdict(plan.chip),
        "data": dataclasses.asdict(plan.data),
        "lacking": plan.lacking,
        "compute_dtype": plan.dtype,
        "batch": plan.batch,
        "program": side(plan.found),
        "too_large": plan.too_large,
        "one_chip": side(plan.single),
        "efficiency": plan.efficiency,
        "largest_batch": plan.bounds,
        "given_up": plan.given_up,
        "versions": versions(),
        "platform": jax.default_backend() if plan.where.attached else "tpu",
    }
