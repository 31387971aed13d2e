"""Lobes by rules, held against centres of regions that an atlas publishes."""

from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec

from bids_cmb.anatomy.atlases import Atlases
from bids_cmb.anatomy.lobes import draw_lobes, name_lobes
from bids_cmb.anatomy.mars import find_label
from bids_cmb.anatomy.scan_anatomy import AnatomyResult, add_atlases

# Centres of regions of AAL on the left, mm in MNI space (Tzourio-Mazoyer et al. 2002).
CENTRES = {
    "frontal": [
        (-38.7, -5.7, 50.9), (-18.5, 34.8, 42.2), (-33.4, 32.7, 35.5), (-45.6, 29.9, 14.0),
        (-48.4, 12.7, 19.0), (-30.7, 50.4, -9.6), (-5.1, 37.1, -18.1), (-5.3, 4.9, 61.4),
        (-4.8, 49.2, 30.9), (-4.0, 35.4, 14.0), (-7.6, -25.4, 70.1),
    ],
    "parietal": [
        (-42.5, -22.6, 48.9), (-23.5, -59.6, 59.0), (-42.8, -45.8, 46.7), (-55.8, -33.6, 30.5),
        (-44.1, -60.8, 35.6), (-7.2, -56.1, 48.0), (-4.9, -42.9, 24.7),
    ],
    "temporal": [
        (-31.2, -40.3, -20.2), (-42.0, -18.9, 10.0), (-53.2, -20.7, 7.1), (-39.9, 15.1, -20.2),
        (-55.5, -33.8, -2.2), (-36.3, 14.6, -34.1), (-49.8, -28.1, -23.2), (-21.2, -16.0, -20.7),
    ],
    "occipital": [
        (-7.1, -78.7, 6.4), (-5.9, -80.1, 27.2), (-14.6, -67.6, -4.6), (-16.5, -84.3, 28.2),
        (-32.4, -80.7, 16.1), (-36.4, -78.3, -7.8),
    ],
}  # fmt: skip


@pytest.mark.parametrize("lobe", CENTRES)
def test_the_centre_of_every_gyrus_lies_in_its_lobe_on_either_side(lobe):
    centres = np.array(CENTRES[lobe])
    for side in (1, -1):
        found = name_lobes(centres * [side, 1, 1])
        assert (found == find_label(lobe)).all(), centres[found != find_label(lobe)]


@pytest.fixture(scope="module")
def placed(anatomy):
    """A head whose deep nuclei lie where those of the template do."""
    thalami = anatomy.structures.world(
        np.argwhere(np.isin(anatomy.structures.data, (10, 49))).mean(axis=0)
    )
    return replace(anatomy, to_mni=from_matvec(np.eye(3), [0, -18, 8] - thalami), fit_mm=2.0)


def test_cortex_and_white_matter_have_a_lobe_without_any_atlas(placed):
    result = add_atlases(AnatomyResult(placed), Atlases())
    codes, lobes = placed.structures.data, result.lobes
    tissue = np.isin(codes, (2, 3, 41, 42))
    assert (lobes[tissue] > 0).all()
    assert not lobes[~tissue].any()
    names = ("frontal", "parietal", "temporal", "occipital", "insula")
    shares = {name: (lobes == find_label(name)).sum() / tissue.sum() for name in names}
    assert min(shares.values()) > 0.005
    assert shares["insula"] < 0.1
    assert max(shares, key=shares.get) == "frontal"


def test_the_insula_lies_lateral_to_the_putamen(placed):
    lobes = draw_lobes(placed)
    grid = placed.structures
    insula = apply_affine(placed.to_mni, grid.world(np.argwhere(lobes == find_label("insula"))))
    putamen = apply_affine(placed.to_mni, grid.world(np.argwhere(np.isin(grid.data, (12, 51)))))
    assert np.abs(insula[:, 0]).min() > 25
    assert np.median(np.abs(insula[:, 0])) > np.median(np.abs(putamen[:, 0]))
    for one in insula[::17]:
        assert np.linalg.norm(putamen - one, axis=1).min() <= 11.01


def test_without_a_way_to_mni_space_there_are_no_lobes(placed):
    assert draw_lobes(replace(placed, to_mni=None)) is None


def test_lobes_that_are_known_stay(placed):
    known = np.full(placed.structures.shape, 3, np.uint8)
    assert add_atlases(AnatomyResult(placed, known), Atlases()).lobes is known
