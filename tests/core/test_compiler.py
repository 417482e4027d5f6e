"""Options of XLA's compiler: known here, and left out where they are not."""

import jax
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


def test_this_version_of_xla_knows_them(mesh_of):
    assert compiler.compiler_options(mesh_of(1)) == compiler._CPU != {}


@pytest.mark.parametrize("content", [{"xla_cpu_unheard_of": "1"}, dict.fromkeys(compiler._CPU, "UNHEARD_OF")])
def test_unknown_ones_are_left_out(options, content):
    assert options(content) == {}


def test_convolutions_stay_with_xla_and_products_do_not(mesh_of):
    def library(function, *operands):
        options = compiler.compiler_options(mesh_of(1))
        return "__ynn" in (jax.jit(function, compiler_options=options).lower(*operands).compile().as_text() or "")

    images, kernel = jax.numpy.ones((4, 16, 16, 32)), jax.numpy.ones((3, 3, 32, 32))
    numbers = ("NHWC", "HWIO", "NHWC")
    assert not library(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers), images, kernel
    )
    assert library(lambda x, k: x @ k, images[0, 0], kernel[0, 0])
