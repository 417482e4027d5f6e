"""Options of XLA's compiler: which library computes what on a CPU."""

import functools
from collections.abc import Mapping

import jax

# YNNPACK's products and sums are quick, its convolutions are not: of few channels and in gradients of kernels they take
# up to three times as long as XLA's own. What is not named here stays with XLA.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options(mesh: jax.sharding.Mesh) -> Mapping[str, str]:
    """For `jax.jit` of what runs convolutions on the devices of a mesh; nothing where XLA does not know them."""
    return _known() if mesh.devices.flat[0].platform == "cpu" else {}


@functools.cache
def _known() -> Mapping[str, str]:
    """They are experimental: a version of XLA may lack them, and is only slower without."""
    try:
        jax.jit(lambda: 0, compiler_options=_CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return _CPU
