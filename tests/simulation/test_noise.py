"""Noise on a lattice is smooth and of unit variance; stretching loses nothing at the nodes."""

import numpy as np
import pytest
from scipy import ndimage

from bids_cmb.simulation.noise import (
    coil_bias,
    count_nodes,
    sample_noise,
    upsample,
    upsample_planes,
)


def test_a_stretched_lattice_is_the_linear_interpolation_from_corner_to_corner(rng):
    lattice = rng.standard_normal((4, 5, 3)).astype(np.float32)
    shape = (31, 16, 24)
    ticks = [np.linspace(0, n - 1, m) for n, m in zip(lattice.shape, shape, strict=True)]
    known = ndimage.map_coordinates(lattice, np.meshgrid(*ticks, indexing="ij"), order=1)
    found = upsample(lattice, shape)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, known, atol=1e-5)
    np.testing.assert_allclose(upsample_planes(lattice, shape[1:])[0], known[0], atol=1e-5)


@pytest.mark.parametrize(("count", "spacing"), [(1, 2.0), (100, 0.45), (31, 4.0)])
def test_nodes_lie_no_further_apart_than_asked(count, spacing):
    nodes = count_nodes(count, spacing, 4.0)
    assert nodes >= 2
    assert (count - 1) * spacing / (nodes - 1) <= 4.0


def test_noise_has_unit_variance_and_is_smooth_across_its_ends(rng):
    noise = sample_noise(rng, (40, 40, 40), 2.0)
    assert noise.std() == pytest.approx(1, abs=1e-3)
    steps = np.diff(noise, axis=0)
    assert np.std(noise[0] - noise[-1]) == pytest.approx(steps.std(), rel=0.3)
    assert steps.std() < 0.5  # 1.4 without the blur


def test_coils_change_the_signal_by_no_more_than_their_share(rng):
    bias = coil_bias(rng, (30, 24, 10), share=0.2)
    assert bias.shape == (30, 24, 10)
    assert np.abs(bias - 1).max() == pytest.approx(0.2, abs=1e-5)
    assert np.abs(np.diff(bias, axis=0)).max() < 0.06
