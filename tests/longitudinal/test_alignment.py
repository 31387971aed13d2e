"""Two scans of one head are laid over each other; those of two heads are refused."""

import numpy as np
import pytest
from nibabel.affines import apply_affine
from sessions import RADIUS_MM, TURNED, scanned

from bids_cmb.imaging.registration import measure_rotation_deg
from bids_cmb.imaging.volume import Volume
from bids_cmb.longitudinal.alignment import align

SPOTS = [(20, 10, 5), (-25, 0, 15)]


def with_brain(image):
    return image, Volume(image.data > 0, image.affine)


@pytest.fixture(scope="module")
def first():
    return with_brain(scanned(1, SPOTS))


def test_the_same_head_on_other_voxels_is_laid_over_to_half_a_millimetre(first, rng):
    later = scanned(1, SPOTS[:1], motion=TURNED, noise=2, spacing=(2.5, 2.5, 3.0))
    alignment = align(*with_brain(later), *first)
    points = rng.uniform(-1, 1, (200, 3)) * RADIUS_MM / np.sqrt(3)
    back = apply_affine(alignment.to_reference @ TURNED, points)
    apart = np.linalg.norm(back - points, axis=1)
    assert np.median(apart) < 0.5
    assert np.percentile(apart, 95) < 1.5
    assert alignment.rotation_deg == pytest.approx(measure_rotation_deg(TURNED), abs=1)
    assert not alignment.problem


def test_another_head_is_refused_in_one_sentence(first):
    alignment = align(*with_brain(scanned(2, SPOTS, motion=TURNED)), *first)
    assert alignment.similarity < 0.2
    assert alignment.problem.endswith("Is it the same person?")
