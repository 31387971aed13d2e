"""The network in stages computes what Keras computes layer by layer, where it is asked to."""

import numpy as np
import pytest
from networks import weights_of
from scipy import ndimage
from scipy.special import expit

from bids_cmb.networks import backend
from bids_cmb.networks.builders import fuse_batchnorm
from bids_cmb.networks.external import tiled_unet, tiling

WIDTHS = (2, 3, 4, 5)
SHAPES = [(16, 32, 48), (35, 22, 19), (70, 17, 33)]


def by_chance(rng, shape):
    """A network of SHIVA's kind with weights by chance, its folded weights, and an image."""
    backend.get_tensorflow()
    from bids_cmb.networks.architectures.shiva import shiva  # noqa: PLC0415 after TensorFlow, which is silent so

    model = shiva(widths=WIDTHS, shape=shape)
    for one in model.variables:
        if one.path.endswith(("gamma", "moving_variance")):
            one.assign(rng.uniform(0.5, 2, one.shape))
        else:
            one.assign(rng.normal(0, np.prod(one.shape[:-1]) ** -0.5, one.shape))
    arrays = fuse_batchnorm(weights_of(model))
    return model, arrays, rng.random(shape, np.float32)


def layer_by_layer(model, image):
    return expit(np.asarray(model(image[None, ..., None]))[0, ..., 0])


@pytest.fixture(params=SHAPES, ids=str)
def case(request, rng):
    return by_chance(rng, request.param)


def test_stages_give_what_layers_give(case):
    model, arrays, image = case
    run = tiled_unet.build_tiled_unet(backend.get_tensorflow(), arrays, WIDTHS)
    np.testing.assert_allclose(run(image, None), layer_by_layer(model, image), atol=2e-6)


def test_where_it_is_wanted_nothing_changes_and_elsewhere_it_is_zero(case, rng):
    model, arrays, image = case
    wanted = ndimage.binary_dilation(rng.random(image.shape) < 0.0005, iterations=3)
    wanted[-3:, :4, -5:] = True  # a corner, where boxes end with the image
    found = tiled_unet.build_tiled_unet(backend.get_tensorflow(), arrays, WIDTHS)(image, wanted)
    np.testing.assert_allclose(found[wanted], layer_by_layer(model, image)[wanted], atol=2e-6)


def test_nothing_wanted_is_zero_everywhere(rng):
    _, arrays, image = by_chance(rng, SHAPES[1])
    run = tiled_unet.build_tiled_unet(backend.get_tensorflow(), arrays, WIDTHS)
    assert not run(image, np.zeros(image.shape, bool)).any()


def test_slabs_and_tiles_of_any_size_agree(rng, monkeypatch):
    model, arrays, image = by_chance(rng, SHAPES[2])
    monkeypatch.setattr(tiled_unet, "SLAB_VOXELS", 8)
    monkeypatch.setattr(tiling, "MAX_TILE_VOXELS", 3_000)
    run = tiled_unet.build_tiled_unet(backend.get_tensorflow(), arrays, WIDTHS)
    np.testing.assert_allclose(run(image, None), layer_by_layer(model, image), atol=2e-6)


def test_sixteen_bits_change_little(rng):
    model, arrays, image = by_chance(rng, SHAPES[0])
    run = tiled_unet.build_tiled_unet(backend.get_tensorflow(), arrays, WIDTHS, mixed=True)
    assert np.abs(run(image, None) - layer_by_layer(model, image)).max() < 0.1


def test_the_doubling_kernel_is_repeating_and_convolving(rng):
    """In one dimension, against numpy: repeat each value, then correlate with three taps."""
    kernel = rng.normal(size=(3, 3, 3, 1, 1))
    kernel[[0, 2]] = kernel[:, [0, 2]] = 0  # along the last axis alone
    made = tiled_unet.make_doubling_kernel(kernel)[..., 0, 0].sum(axis=(0, 1)) / 4
    coarse = rng.normal(size=5)
    fine = np.convolve(np.repeat(coarse, 2), kernel[1, 1, ::-1, 0, 0], "same")
    transposed = np.zeros(2 * coarse.size + 2)
    for at, value in enumerate(coarse):
        transposed[2 * at : 2 * at + 4] += value * made
    np.testing.assert_allclose(transposed[1:-1], fine)


def test_the_published_size_has_the_published_number_of_weights():
    """39 854 657: what the public re-implementation counts, normalisations included."""
    kernels = tiled_unet.list_kernels((10, 18, 32, 58, 104, 187, 337))
    weights = sum(int(np.prod(shape)) for shape in kernels.values())
    norms = sum(4 * shape[-1] for name, shape in kernels.items() if name != "answer")
    assert weights + norms + 1 == 39_854_657


def test_the_convolutions_are_those_of_the_layers(rng):
    model, _, _ = by_chance(rng, SHAPES[0])
    found = {one.path[:-7]: tuple(one.shape) for one in model.variables if "kernel" in one.path}
    assert found == tiled_unet.list_kernels(WIDTHS)
    assert list(found) == list(tiled_unet.list_kernels(WIDTHS))
