"""Options of XLA's compiler: known here, and left out where they are not."""

import jax
import jax.numpy as jnp
import pytest

from rgbd_reid_jax.core import compiler


@pytest.fixture
def options(monkeypatch):
    def of(content):
        monkeypatch.setattr(compiler, "_CPU", content)
        compiler._known.cache_clear()
        return compiler._known()

    yield of
    compiler._known.cache_clear()


@pytest.fixture(autouse=True)
def known():
    if not compiler._known() and jax.__version_info__ >= (0, 11):
        pytest.skip("this later version of XLA has no such options; convolutions on CPUs may be slower")


def test_this_version_of_xla_knows_them(monkeypatch):
    assert compiler.compiler_options(jax.devices()[0]) == compiler._CPU != {}
    monkeypatch.setenv("XLA_FLAGS", f"--{compiler._LIBRARY}= --xla_cpu_use_xnnpack=false")
    assert compiler.compiler_options(jax.devices()[0]) == {}  # the user's own stand


@pytest.mark.parametrize("content", [{"xla_cpu_unheard_of": "1"}, dict.fromkeys(compiler._CPU, "UNHEARD_OF")])
def test_unknown_ones_are_left_out(options, content):
    assert options(content) == {}


def test_convolutions_stay_with_xla_and_products_do_not():
    images, kernel = jnp.ones((4, 16, 16, 32)), jnp.ones((3, 3, 32, 32))

    def convolution(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def kernel_gradient(x, k):
        return jax.vjp(lambda k: convolution(x, k), k)[1](x)[0]

    def product(x, k):
        return x[0, 0] @ k[0, 0]

    options = compiler.compiler_options(jax.devices()[0])
    for function, chosen in ((convolution, False), (kernel_gradient, False), (product, True)):
        cases = [(options, chosen)]
        if jax.__version_info__ < (0, 11):  # what it does by default; of later versions that is not known
            cases.append(({}, True))
        for given, expected in cases:
            text = jax.jit(function, compiler_options=given).lower(images, kernel).compile().as_text() or ""
            assert ("__ynn" in text) == expected, function
