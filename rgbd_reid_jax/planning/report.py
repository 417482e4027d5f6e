"""A plan for a reader."""

import collections
import re
from collections.abc import Sequence

from rgbd_reid_jax.core.progress import format_seconds
from rgbd_reid_jax.planning.plan import Side, StagePlan, versions
from rgbd_reid_jax.planning.roofline import collective_times

_NORM = re.compile(r"/(bn\d*|\w+_bn)/")
_ASSUMED = """\
A prediction from a roofline, not a measurement: arithmetic, memory and links at their peaks, FLOPs and bytes as XLA
counts them in the compiled program, arithmetic and memory traffic overlapped. 'exposed': no collective overlaps with
other work (the pessimistic end); 'hidden': all do. Hosts, reading images and uneven chips cost nothing here."""


def readable(plans: Sequence[StagePlan]) -> str:
    """All plans, and what they assume."""
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n\n".join([*("\n".join(_lines(plan)) for plan in plans), f"{_ASSUMED}\nCompiled with {made}."])


def _lines(plan: StagePlan) -> list[str]:
    count = len(plan.where.devices)
    lines = [f"stage {plan.stage} on {plan.where.name}: {count} x {plan.chip.name}, {plan.dtype}"]
    lines.append(_line("batch", f"{plan.batch:,} rows, {plan.batch // count:,} a chip"))
    lines.append(_line("data", f"{plan.data.identities} identities, {plan.data.frames:,} frames: {plan.data.words}"))
    if plan.lacking:
        lines.append(_line("", plan.lacking))
    lines.append(_line("peaks of", plan.chip.source))
    if plan.found is None:
        lines.append(_line("memory", f"does not fit: {plan.too_large}"))
    else:
        lines += _program(plan, plan.found)
    if plan.bounds is not None:
        fits, fails = plan.bounds
        why = "had not compiled when they were given up" if plan.given_up else "do not fit"
        found = f"{fits:,} rows ({fits // count:,} a chip) fit" if fits else "none"
        lines.append(_line("largest batch", f"{found}; {fails:,} rows ({fails // count:,} a chip) {why}"))
    return lines


def _program(plan: StagePlan, found: Side) -> list[str]:
    program, times, chip = found.program, found.times, plan.chip
    mesh = " x ".join(f"{name} {size}" for name, size in program.mesh.items())
    limit = f" of {_bytes(chip.memory)} ({100 * program.peak / chip.memory:.0f} %)" if chip.memory else ""
    memory = f"arguments {_bytes(program.arguments)} + temporaries {_bytes(program.temporaries)}"
    memory += f" + program {_bytes(program.code)} = {_bytes(program.peak)}{limit}"
    work = f"{program.flops / 1e12:.4g} TFLOP, {_bytes(program.accessed)} read and written"
    chips = "a chip"
    lines = [
        _line("compiled", f"in {format_seconds(program.seconds)}; mesh {mesh}; nothing was run"),
        _line("memory", f"{memory}, {chips}"),
        _line("work", f"{work}, {chips} and step; {_bytes(program.host)} of its batch come from the host"),
    ]
    if program.micro_batches > 1:
        words = f"{program.micro_batches} micro-batches: XLA counts their loop once, so work is taken that many times"
        lines.append(_line("", words))
    lines += _collectives(plan, found)
    lines.append(
        _line(
            "roofline",
            f"compute {_ms(times.compute)}, memory {_ms(times.memory)}, interconnect {_ms(times.interconnect)} "
            f"(bytes {_ms(times.transfer)}, hops {_ms(times.latency)}): {times.binds} binds",
        )
    )
    slow, fast = found.speeds
    if program.devices == 1:
        lines.append(_line("step", f"{_ms(times.on_chip)}, {fast:,.0f} images/s"))
        return lines
    lines.append(_line("step", f"exposed {_ms(times.exposed)}, {slow:,.0f} images/s"))
    lines.append(_line("", f"hidden {_ms(times.hidden)}, {fast:,.0f} images/s"))
    if plan.efficiency is not None and plan.single is not None:
        low, high = plan.efficiency
        alone, speed = plan.single, plan.single.speeds[1]
        words = f"one chip, {alone.program.batch:,} rows: {_ms(alone.times.on_chip)}, {speed:,.0f} images/s"
        lines.append(_line("weak scaling", f"efficiency {_share(low)} exposed, {_share(high)} hidden ({words})"))
    return lines


def _collectives(plan: StagePlan, found: Side) -> list[str]:
    """Each kind of collective with how many there are, and what batch norms cause of all."""
    program = found.program
    if not program.collectives:
        return [_line("collectives", "none")]
    kinds = collections.Counter()
    for one in program.collectives:
        key = (one.op, "+".join(one.dtypes), program.axis(one), one.size, one.asynchronous, one.turns_known)
        kinds[key] += one.turns
    total = sum(kinds.values())
    size = sum(one.turns * one.size for one in program.collectives)
    apart = sum(one.turns for one in program.collectives if one.asynchronous)
    norms = [one for one in program.collectives if _NORM.search(one.origin)]
    seconds = sum(one.turns * sum(collective_times(one, plan.where, plan.chip)) for one in norms)
    words = f"{total} a step, {_bytes(size)}; {apart} asynchronous; "
    words += f"{sum(one.turns for one in norms)} stem from batch norms, {_ms(seconds)}"
    lines = [_line("collectives", words)]
    for (op, dtype, axis, each, asynchronous, known), count in sorted(kinds.items(), key=lambda item: -item[0][3]):
        extra = ", asynchronous" * asynchronous + ", in a loop of unknown length" * (not known)
        lines.append(f"  {'':<15}{count:>5} x {op} {dtype} over {axis}, {_bytes(each)} each{extra}")
    return lines


def _line(name: str, text: str) -> str:
    return f"  {name:<15}{text}"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _share(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
