"""A made-up head has the parts of a real one, in their places and of their sizes."""

import numpy as np
import pytest
from phantoms import centred_grid
from scipy import ndimage

from bids_cmb.anatomy.labels import BILATERAL_CODES
from bids_cmb.imaging import resampling
from bids_cmb.simulation.phantom import make_procedural_head
from bids_cmb.simulation.tissue_properties import CSF, KNOWN_CODES, is_brain


def ml(labels, *codes):
    return np.isin(labels.data, codes).sum() * labels.voxel_volume / 1000


def test_every_code_in_use_has_a_tissue(made_up):
    assert set(np.unique(made_up.labels.data)) <= KNOWN_CODES


def test_the_same_seed_makes_the_same_head_and_another_seed_another(made_up):
    again = make_procedural_head(np.random.default_rng(1)).labels
    np.testing.assert_array_equal(again.data, made_up.labels.data)
    other = make_procedural_head(np.random.default_rng(2)).labels
    first, second = (
        np.isin(resampling.resample(labels, *centred_grid(2.0), order=0).data, (3, 42))
        for labels in (made_up.labels, other)
    )
    dice = 2 * (first & second).sum() / (first.sum() + second.sum())
    assert dice < 0.9


@pytest.mark.parametrize(
    ("codes", "least", "most"),  # ml in adults, generously
    [
        ((3, 42), 350, 620),
        ((2, 41), 380, 750),
        ((4, 43), 8, 60),
        ((8, 47, 7, 46), 90, 170),
        ((16,), 14, 32),
        ((10, 49), 8, 18),
        ((12, 51), 6, 13),
        ((13, 52), 2, 5),
        ((11, 50), 5, 11),
        ((17, 53), 4, 10),
        ((514,), 5, 60),
        ((506,), 8, 22),
    ],
)
def test_the_parts_of_a_made_up_head_have_the_volumes_of_real_ones(made_up, codes, least, most):
    assert least < ml(made_up.labels, *codes) < most


def test_a_made_up_brain_is_one_litre_and_a_bit_and_has_no_air_in_it(made_up):
    data = made_up.labels.data
    assert 1.1e6 < is_brain(data).sum() < 1.6e6
    closed = ndimage.binary_fill_holes(is_brain(data) | (data == CSF))
    assert not (closed & (data == 0)).any()
    near_air = ndimage.binary_dilation(data == 0, iterations=2)
    assert not (near_air & is_brain(data)).any()


def test_left_is_left_in_a_made_up_head(made_up):
    thinned = made_up.labels.data[:, ::3, ::3]
    for left, right in BILATERAL_CODES:
        for code, sign in ((left, -1), (right, 1)):
            where = np.argwhere(thinned == code)
            if len(where):
                assert sign * made_up.labels.world(where)[:, 0].mean() > 0


def test_cortex_is_folded(made_up):
    """A ball of the same volume has less than a third of the surface."""
    cerebrum = np.isin(made_up.labels.data, (2, 3, 41, 42))
    faces = sum(np.abs(np.diff(cerebrum.astype(int), axis=axis)).sum() for axis in range(3))
    radius = np.cbrt(3 * cerebrum.sum() / (4 * np.pi))
    assert faces > 3 * 1.5 * 4 * np.pi * radius**2  # faces of voxels overstate a ball by a half
