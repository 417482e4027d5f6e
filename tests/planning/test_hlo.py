"""Collectives in HLO text: by hand, and of programs compiled here."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from rgbd_reid_jax.core.mesh import ROWS
from rgbd_reid_jax.planning.hlo import array_sizes, axes_of, collectives, replica_groups

PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (p: bf16[2,128]) -> bf16[16,128] {
  %p = bf16[2,128]{1,0} parameter(0)
  ROOT %all-gather.9 = bf16[16,128]{1,0} all-gather(%p), replica_groups=[1,8]<=[8], dimensions={0}
}

%all-reduce-scatter.1 (q: f32[64]) -> f32[8] {
  %q = f32[64]{0} parameter(0)
  %all-reduce.8 = f32[64]{0} all-reduce(%q), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[8]{0} dynamic-slice(%all-reduce.8, %q), dynamic_slice_sizes={8}
}

%body (s: (s32[], f32[10])) -> (s32[], f32[10]) {
  %s = (s32[], f32[10]{0}) parameter(0)
  %x = f32[10]{0} get-tuple-element(%s), index=1
  %all-reduce.7 = f32[10]{0} all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[10]{0}) tuple(%i, %all-reduce.7)
}

%condition (s: (s32[], f32[10])) -> pred[] {
  %s.1 = (s32[], f32[10]{0}) parameter(0)
  ROOT %less = pred[] compare(%s.1, %s.1), direction=LT
}

%unused (p: f32[5]) -> f32[5] {
  ROOT %all-reduce.6 = f32[5]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}

ENTRY %main (a: f32[64]) -> f32[64] {
  %a = f32[64]{0:T(128)S(1)} parameter(0)
  %all-reduce.1 = (f32[64]{0:T(128)S(1)}, bf16[3,4]{1,0:T(8,128)(2,1)}) all-reduce(%a, %b), channel_id=2, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, use_global_device_ids=true, to_apply=%add, \
metadata={op_name="jit(step)/backbone/bn1/reduce_sum" stack_frame_id=4}
  %all-reduce-start.1 = f32[100]{0} all-reduce-start(%a), replica_groups={}, to_apply=%add
  %all-reduce-done.1 = f32[100]{0} all-reduce-done(%all-reduce-start.1)
  %all-gather-start.1 = (f32[2,6]{1,0}, f32[8,6]{1,0}) all-gather-start(%a), replica_groups=[2,4]<=[4,2]T(1,0)
  %all-gather-done.1 = f32[8,6]{1,0} all-gather-done(%all-gather-start.1)
  %reduce-scatter.1 = f32[16]{0} reduce-scatter(%a), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %async.1 = ((bf16[2,128]{1,0}), bf16[16,128]{1,0}, u32[]) async-start(%a), calls=%wrapped
  %scattered.1 = f32[8]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %while.1 = (s32[], f32[10]{0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %permute.1 = f32[7]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  ROOT %r = f32[64]{0} add(%a, %a)
}
"""
MESH = {"data": 4, "fsdp": 2}


def test_collectives_of_a_program_by_hand():
    found = collectives(PROGRAM, 8)
    seen = {
        (one.op, "+".join(one.dtypes), one.arrays, one.size, axes_of(one.groups, MESH), one.asynchronous, one.turns)
        for one in found
    }
    assert seen == {
        ("all-reduce", "f32+bf16", 2, 4 * 64 + 2 * 12, "data", False, 1),
        ("all-reduce", "f32", 1, 400, "data+fsdp", True, 1),
        ("all-gather", "f32", 1, 4 * 48, "data", True, 1),
        ("reduce-scatter", "f32", 1, 2 * 64, "fsdp", False, 1),
        ("all-gather", "bf16", 1, 2 * 16 * 128, "data+fsdp", True, 1),
        ("reduce-scatter", "f32", 1, 4 * 64, "data+fsdp", False, 1),
        ("all-reduce", "f32", 1, 40, "fsdp", False, 5),
        ("collective-permute", "f32", 1, 28, "other", False, 1),
    }
    assert len(found) == len(seen)  # halves that end a pair, and what is never called, do not count
    assert all(one.turns_known for one in found)
    assert [one.origin for one in found if one.origin] == ["jit(step)/backbone/bn1/reduce_sum"]


def test_a_loop_of_unknown_length_is_told():
    text = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    looped = [one for one in collectives(text, 8) if not one.turns_known]
    assert [(one.size, one.turns) for one in looped] == [(40, 1)]


OVERLAPPED = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%begin (p: bf16[2,8]) -> (bf16[2,8], bf16[8,8]) {
  %p = bf16[2,8]{1,0} parameter(0)
  %all-gather.1 = bf16[8,8]{1,0} all-gather(%p), channel_id=4, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %c = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: bf16[2,8]) -> f32[3] {
  %q = bf16[2,8]{1,0} parameter(0)
  %all-gather.2 = bf16[8,8]{1,0} all-gather(%q), channel_id=4, replica_groups=[1,4]<=[4], dimensions={0}
  %all-reduce.2 = f32[3]{0} all-reduce(%q), channel_id=5, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %r = f32[3]{0} add(%all-reduce.2, %all-reduce.2)
}

%end (p: bf16[2,8]) -> bf16[8,8] {
  %s = bf16[2,8]{1,0} parameter(0)
  %all-gather.3 = bf16[8,8]{1,0} all-gather(%s), channel_id=4, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %d = bf16[8,8]{1,0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[2,8]) -> bf16[8,8] {
  %a = bf16[2,8]{1,0} parameter(0)
  %async-collective-start = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) fusion(%a), kind=kCustom, calls=%begin
  %fusion.1 = f32[3]{0} fusion(%a), kind=kOutput, calls=%async_collective_fusion.1
  ROOT %async-collective-done = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%end
}
"""


def test_a_collective_that_is_repeated_beside_other_work_counts_once():
    found = collectives(OVERLAPPED, 4)
    assert [(one.op, one.size, one.asynchronous) for one in found] == [
        ("all-gather", 128, True),
        ("all-reduce", 12, False),
    ]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{}", ((0, 1, 2, 3, 4, 5, 6, 7),)),
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=4] {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['a'=2,'b'=4] {'a'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['a'=4], device_ids=([4]<=[2,2]T(1,0)) {'a':(1)2}", ((0, 1), (2, 3))),
        ("mesh['a'=4], device_ids=(3,2,1,0) {'a':(2)2}", ((3, 2), (1, 0))),
    ],
)
def test_replica_groups(text, groups):
    assert replica_groups(text, 8) == groups
    line = f"ENTRY %m () -> f32[] {{\n  %x = f32[2]{{0}} all-reduce(%y), replica_groups={text}, to_apply=%add\n}}"
    assert [one.groups for one in collectives(line, 8)] == [groups]


def test_groups_of_an_unknown_form_are_an_error():
    with pytest.raises(ValueError, match="unknown form"):
        collectives("ENTRY %m () -> f32[] {\n  %x = f32[2]{0} all-reduce(%y), replica_groups=<<0>>\n}", 8)


def test_sizes_of_shapes():
    assert array_sizes("(f32[2,3]{1,0:T(8,128)}, bf16[], pred[5], s4[3], u16[0])") == [
        ("f32", 24),
        ("bf16", 2),
        ("pred", 5),
        ("s4", 2),
        ("u16", 0),
    ]


@pytest.mark.parametrize(
    ("groups", "axis"),
    [
        (((0, 1), (2, 3), (4, 5), (6, 7)), "fsdp"),
        (((6, 4, 2, 0), (1, 3, 5, 7)), "data"),
        ((tuple(range(8)),), "data+fsdp"),
        (((0, 1, 2, 3), (4, 5, 6, 7)), "other"),
    ],
)
def test_axes_of_groups(groups, axis):
    assert axes_of(groups, MESH) == axis


def test_an_axis_of_one_device_has_no_name():
    assert axes_of((tuple(range(8)),), {"data": 8, "fsdp": 1}) == "data"


@pytest.mark.parametrize(
    ("name", "op", "axis", "size"),
    [
        ("psum_data", "all-reduce", "data", 4 * 6),
        ("psum_all", "all-reduce", "data+fsdp", 4 * 6),
        ("gather_fsdp", "all-gather", "fsdp", 4 * 2 * 6),
        ("scatter_data", "reduce-scatter", "data", 4 * 24),
        ("permute", "collective-permute", "fsdp", 4 * 6),
    ],
)
def test_collectives_of_compiled_programs(mesh_of, name, op, axis, size):
    mesh = mesh_of(8, fsdp=2)
    functions = {
        "psum_data": lambda x: jax.lax.psum(x, "data"),
        "psum_all": lambda x: jax.lax.psum(x, ("data", "fsdp")),
        "gather_fsdp": lambda x: jax.lax.all_gather(x, "fsdp"),
        "scatter_data": lambda x: jax.lax.psum_scatter(jnp.tile(x, (1, 4))[0], "data", tiled=True),
        "permute": lambda x: jax.lax.ppermute(x, "fsdp", [(0, 1), (1, 0)]),
    }
    rows = PartitionSpec(ROWS)
    mapped = jax.shard_map(functions[name], mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    text = jax.jit(mapped).lower(jnp.ones((8, 6))).compile().as_text() or ""
    found = collectives(text, 8)
    assert [(one.op, axes_of(one.groups, mesh.shape), one.size) for one in found] == [(op, axis, size)]
