"""Options of XLA's compiler: which library computes what on a CPU."""

import functools
import os
from typing import Any

import jax

_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
# YNNPACK's products and sums are quick, its convolutions are not: of few channels and in gradients of kernels they take
# up to three times as long as XLA's own. What is not named here stays with XLA.
_CPU = {_LIBRARY: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options(device: Any) -> dict[str, Any]:
    """For `jax.jit` of what runs convolutions on a device, or on others of its kind.

    Empty on other devices, where `XLA_FLAGS` chooses itself, and where XLA does not know them.
    """
    if device.platform != "cpu" or _LIBRARY in os.environ.get("XLA_FLAGS", ""):
        return {}
    return dict(_known())


@functools.cache
def _known() -> dict[str, Any]:
    """They are experimental: a version of XLA may lack them, and is only slower without."""
    try:
        jax.jit(lambda: 0, compiler_options=_CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return _CPU
