"""A user's own segmentation in FreeSurfer's codes does what the network does."""

import numpy as np
import pytest

from bids_cmb.cards import card
from bids_cmb.mars import by_label
from bids_cmb.segmentations import read_segmentation
from bids_cmb.volume import Volume, save

CLASSES = card("anatomy")["classes"]
CENTROIDS = card("anatomy")["mni_centroids"]


@pytest.fixture
def stored(known, tmp_path):
    """A maker of files: the made-up head's codes, changed."""

    def make(change=lambda codes: codes):
        codes = known[0]
        path = tmp_path / "aseg.nii.gz"
        save(Volume(change(codes.data.astype(np.int32)), codes.affine), path, dtype=np.int32)
        return path

    return make


def test_structures_and_sides_are_those_of_the_file(anatomy, stored):
    found, lobes = read_segmentation(stored(), CLASSES, CENTROIDS)
    assert lobes is None
    assert (found.structures.data == anatomy.structures.data).mean() > 0.995
    np.testing.assert_allclose(found.midline[0], anatomy.midline[0], atol=1e-6)


def test_parcels_of_the_cortex_tell_lobes_apart(anatomy, stored):
    """The front half of the left cortex is called superior frontal, the back half cuneus."""

    def parcelled(codes):
        back = np.arange(codes.shape[1])[None, :, None] < codes.shape[1] // 2
        left = codes == 3
        codes = np.where(left & back, 1005, np.where(left, 1028, codes))
        return np.where(codes == 42, 2028, codes)

    found, lobes = read_segmentation(stored(parcelled), CLASSES, CENTROIDS)
    assert (found.structures.data == anatomy.structures.data).mean() > 0.995
    left = anatomy.structures.data == 3
    told = {by_label()[int(code)][0] for code in np.unique(lobes[left])}
    assert told == {"frontal", "occipital"}
    assert (lobes[anatomy.structures.data == 2] > 0).all()


def test_white_parcels_are_white_matter(anatomy, stored):
    """wmparc: 3000 and more on the left, 4000 on the right."""

    def parcelled(codes):
        return np.where(codes == 2, 3028, np.where(codes == 41, 4028, codes))

    found, _ = read_segmentation(stored(parcelled), CLASSES, CENTROIDS)
    assert (found.structures.data == anatomy.structures.data).mean() > 0.995


def test_a_mask_is_no_segmentation(stored):
    path = stored(lambda codes: (codes > 0).astype(np.int32))
    with pytest.raises(ValueError, match=r"aseg\.nii\.gz: .* codes; found 0 of them"):
        read_segmentation(path, CLASSES, CENTROIDS)


def test_codes_that_nobody_knows_are_outside(stored):
    def odd(codes):
        codes = codes.copy()
        codes[codes == 10] = -5
        codes[codes == 49] = 99_999
        return codes

    found, _ = read_segmentation(stored(odd), CLASSES, CENTROIDS)
    assert not np.isin(found.structures.data, [10, 49]).any()
